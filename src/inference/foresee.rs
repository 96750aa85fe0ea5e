//! What prompts make of a request, looked at before the call is granted: a template may write a variable many times, and examples
//! come on top. So a budget reserves for what is sent, not for what came in.

use super::plan::Plan;
use super::road::Road;
use super::size::Size;
use super::{Ask, Inference, blocking, render};
use crate::prompts::Prompt;
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use std::sync::Arc;

/// Sizes of a request as the targets with prompts are asked.
#[derive(Default)]
pub(super) struct Foreseen(Vec<(Arc<Plan>, Size)>);

impl Foreseen {
    /// The size for a target; none for one without a prompt, or where nobody counts.
    pub(super) fn of(&self, plan: &Arc<Plan>) -> Option<Size> {
        self.0.iter().find(|(known, _)| Arc::ptr_eq(known, plan)).map(|(_, size)| *size)
    }
}

impl Inference {
    /// The request as every target with a prompt is asked, where the caller has limits. A prompt that cannot be rendered is left
    /// out: the call itself says why.
    pub(super) async fn foresee(&self, ask: &Ask, road: &Road, request: &ChatRequest) -> Foreseen {
        match ask.caller.bounds.as_ref().is_none_or(|bounds| bounds.meters.is_empty()) {
            true => Foreseen::default(),
            false => self.sizes(road, request).await,
        }
    }

    /// The same for a caller without limits.
    pub(super) async fn sizes(&self, road: &Road, request: &ChatRequest) -> Foreseen {
        let mut foreseen = Foreseen::default();
        let first = road.cascade.iter().flat_map(|cascade| &cascade.first.targets);
        for plan in road.targets.iter().chain(first) {
            let has_prompt = plan.manifest.as_ref().is_some_and(|manifest| manifest.prompt.is_some());
            if has_prompt
                && foreseen.of(plan).is_none()
                && let Ok(Some(size)) = self.size_for(plan, request).await
            {
                foreseen.0.push((plan.clone(), size));
            }
        }
        foreseen
    }

    async fn size_for(&self, plan: &Arc<Plan>, request: &ChatRequest) -> Result<Option<Size>, Failure> {
        let (shared, prompts) = (plan.clone(), self.prompts.clone());
        let Some(prompt) = blocking(move || shared.prompt(&prompts)).await? else { return Ok(None) };
        let examples = self.most_examples(&prompt, &render::given(&prompt, request)?).await?;
        let (plan, request): (_, ChatRequest) = (plan.clone(), request.clone());
        let written = move |prompt: &Prompt| render::chat(plan.manifest.as_ref(), Some(prompt), request, &examples);
        // A template may take its time.
        blocking(move || Ok(Some(Size::of_chat(&written(&prompt)?)))).await
    }
}
