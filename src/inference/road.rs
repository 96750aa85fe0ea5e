//! Where a call may go: the targets of the name that was called, and the rules by which one is chosen and another tried.

use super::plan::{self, Plan};
use super::{Inference, Setup, blocking};
use crate::store::Store;
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use std::sync::Arc;

/// The targets of a name.
pub struct Road {
    /// Name of the configured route, when one was called.
    pub name: Option<String>,
    /// Targets in the order of the configuration; never empty.
    pub targets: Vec<Plan>,
}

impl Road {
    pub(super) fn one(plan: Plan) -> Self {
        Road { name: None, targets: vec![plan] }
    }
}

impl Inference {
    /// The road of a chat request: of the name in `model`, or of the prompt of the library that it names.
    pub(super) async fn road(&self, setup: &Arc<Setup>, request: &ChatRequest) -> Result<Arc<Road>, Failure> {
        if !request.extra.contains_key("prompt") {
            return self.road_of(setup, &request.model).await;
        }
        let (store, setup, prompts) = (self.store.clone(), setup.clone(), self.prompts.clone());
        // Only what planning reads of the request.
        let model = request.model.clone();
        let extra = request.extra.get_key_value("prompt").map(|(name, value)| (name.clone(), value.clone())).into_iter().collect();
        blocking(move || {
            let named = ChatRequest { model, extra, ..ChatRequest::default() };
            Ok(Arc::new(Road::one(plan::for_request(&store, &setup.providers, &prompts, &named)?)))
        })
        .await
    }

    /// The road of a name, looked up once until anybody commits.
    pub(super) async fn road_of(&self, setup: &Arc<Setup>, name: &str) -> Result<Arc<Road>, Failure> {
        let generation = setup.roads.generation()?;
        if let Some(road) = setup.roads.get(generation, name) {
            return Ok(road);
        }
        let (store, prompts, of, model) = (self.store.clone(), self.prompts.clone(), setup.clone(), name.to_string());
        let road = blocking(move || {
            let road = look_up(&store, &of, &model)?;
            for plan in &road.targets {
                // Compiled here, so that whoever finds the road finds the prompts in memory.
                plan.prompt(&prompts)?;
            }
            Ok(Arc::new(road))
        });
        let road = road.await?;
        setup.roads.keep(generation, name.to_string(), road.clone());
        Ok(road)
    }
}

fn look_up(store: &Store, setup: &Setup, name: &str) -> Result<Road, Failure> {
    Ok(Road::one(plan::for_model(store, &setup.providers, name)?))
}
