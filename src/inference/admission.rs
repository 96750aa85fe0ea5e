//! Whether a caller may make a call now: allowed names, requests and tokens per minute, budgets. What is reserved before the call is
//! settled when its log row is written.

use super::road::Road;
use super::size::Size;
use super::{Ask, Inference, Setup, blocking};
use crate::access::Bounds;
use crate::access::meter::{self, Meter, Moment, Need, Owner, Receipt, Refusal};
use crate::store::usage::{self, Whose};
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingRequest;
use crate::types::money::MicroUsd;
use crate::types::plain::PlainChat;
use crate::types::{Code, Failure};
use serde_json::Value;
use std::sync::Arc;

/// Endpoints that ask no model for an answer: they count as requests, and cost nothing.
const WITHOUT_ANSWER: [&str; 1] = ["messages.count_tokens"];

/// What a call has been granted; settled once, or given back when it is dropped unsettled.
#[derive(Debug, Default)]
pub(super) struct Grant {
    size: Size,
    held: Option<(Arc<Bounds>, Receipt)>,
}

impl Grant {
    /// Tokens that the call reads, as a guess.
    pub(super) fn likely_tokens(&self) -> u64 {
        self.size.likely_tokens()
    }

    /// Puts what was really used in the place of what was reserved. What costs nobody knows how much is let through for nothing.
    pub(super) fn settle(mut self, tokens: u64, cost_micro_usd: Option<i64>) {
        if let Some((bounds, receipt)) = self.held.take() {
            meter::settle(&bounds.meters, &receipt, (tokens, MicroUsd(cost_micro_usd.unwrap_or(0))), Moment::now());
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some((bounds, receipt)) = self.held.take() {
            meter::settle(&bounds.meters, &receipt, (0, MicroUsd(0)), Moment::now());
        }
    }
}

/// What a call may read and write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    size: Size,
    /// Bound of the reply's tokens, as the caller named it.
    output: Option<u64>,
    /// Replies.
    replies: u64,
}

impl Extent {
    pub(super) fn of_chat(request: &ChatRequest) -> Self {
        let replies = u64::from(request.n.unwrap_or(1)).max(1);
        Extent { size: Size::of_chat(request), output: request.token_limit().map(u64::from), replies }
    }

    pub(super) fn of_plain(plain: &PlainChat) -> Self {
        let size = Size::of_texts(plain.messages, plain.text_bytes);
        Extent { size, output: plain.token_limit.map(u64::from), replies: u64::from(plain.choices).max(1) }
    }

    /// Of values that are read and not answered.
    pub(super) fn of_values<'v>(values: impl IntoIterator<Item = &'v Value>) -> Self {
        Extent { size: Size::default().and_values(values), output: Some(0), replies: 1 }
    }

    pub(super) fn of_embedding(request: &EmbeddingRequest) -> Self {
        Extent { size: Size::of_embedding(request), output: Some(0), replies: 1 }
    }
}

impl Inference {
    /// Refuses a name that the caller's key may not call, before anything is looked up: what else exists is not told.
    ///
    /// # Errors
    /// [`Code::FORBIDDEN`] on `model`.
    pub(super) fn may_name(&self, ask: &Ask, model: &str, prompt: Option<&Value>) -> Result<(), Failure> {
        // The name of a prompt stands for the model that the prompt names, which is known once it is read.
        let names_prompt = prompt.is_some_and(|prompt| prompt.get("id").and_then(Value::as_str) == Some(model));
        if names_prompt || allows(ask, model) { Ok(()) } else { Err(not_allowed(model)) }
    }

    /// The failure as a caller may see it who may not call every name: without a name that is near.
    pub(super) fn told_to(&self, ask: &Ask, failure: Failure) -> Failure {
        let restricted = ask.caller.bounds.as_ref().is_some_and(|bounds| bounds.names.is_some());
        if !restricted || failure.code() != Code::MODEL_NOT_FOUND {
            return failure;
        }
        Failure::on(Code::MODEL_NOT_FOUND, "model", "the model does not exist").with_hint("GET /v1/models lists what this key may call")
    }

    /// Grants a call, or says why not and when again.
    ///
    /// # Errors
    /// [`Code::FORBIDDEN`] for a name that the key may not call, [`Code::RATE_LIMIT`] and [`Code::BUDGET`] with seconds to wait,
    /// [`Code::PRICE_UNKNOWN`] where a budget stands over a call that nobody knows the price of.
    pub(super) async fn admit(&self, setup: &Setup, ask: &Ask, road: &Road, extent: Extent) -> Result<Grant, Failure> {
        let Some(bounds) = &ask.caller.bounds else { return Ok(Grant { size: extent.size, held: None }) };
        self.may_take(ask, road)?;
        if bounds.meters.is_empty() {
            return Ok(Grant { size: extent.size, held: None });
        }
        let extent = self.with_releases(road, extent)?;
        let need =
            if WITHOUT_ANSWER.contains(&ask.endpoint) { Need { tokens: 0, cost: Some(MicroUsd(0)) } } else { need(setup, road, extent) };
        let receipt = match meter::reserve(&bounds.meters, need, Moment::now()) {
            Err(Refusal::Unread { .. }) => {
                self.read_spending(&bounds.meters).await?;
                meter::reserve(&bounds.meters, need, Moment::now())?
            }
            reserved => reserved?,
        };
        Ok(Grant { size: extent.size, held: Some((bounds.clone(), receipt)) })
    }

    /// Whether the caller may go where the road leads: a prompt of the library names its model itself. What stands behind a route that
    /// may be called may be called through it.
    fn may_take(&self, ask: &Ask, road: &Road) -> Result<(), Failure> {
        if ask.caller.bounds.as_ref().is_none_or(|bounds| bounds.names.is_none()) {
            return Ok(());
        }
        let of_plan =
            |plan: &Arc<super::plan::Plan>| plan.route.clone().or_else(|| plan.manifest.as_ref().map(|manifest| manifest.model.clone()));
        let named = road.name.clone().map_or_else(|| road.targets.iter().filter_map(of_plan).collect(), |name| vec![name]);
        named.iter().find(|name| !allows(ask, name)).map_or(Ok(()), |name| Err(not_allowed(name)))
    }

    /// With what the releases on the road add to the request.
    fn with_releases(&self, road: &Road, mut extent: Extent) -> Result<Extent, Failure> {
        for plan in &road.targets {
            let Some(manifest) = &plan.manifest else { continue };
            let source = plan.prompt(&self.prompts)?.map_or(0, |prompt| prompt.source_bytes);
            extent.size = extent.size.and_text(source).and_values(manifest.tools.iter().chain(&manifest.response_format));
            let bound = |name| manifest.parameters.get(name).and_then(Value::as_u64);
            extent.output = extent.output.or_else(|| bound("max_completion_tokens").or_else(|| bound("max_tokens")));
        }
        Ok(extent)
    }

    /// Reads what was spent before this process began to count, for budgets that are looked at for the first time.
    async fn read_spending(&self, meters: &[Arc<Meter>]) -> Result<(), Failure> {
        // One at a time: the others find it read.
        let _reading = self.reading.lock().await;
        let unread: Vec<_> = meters.iter().filter_map(|meter| Some((meter.clone(), meter.unread()?))).collect();
        if unread.is_empty() {
            return Ok(());
        }
        let (store, recorder) = (self.store.clone(), self.setup.load().log.recorder.clone());
        blocking(move || {
            // Rows on their way to the database are spent, too.
            recorder.flush()?;
            for (meter, first_day) in unread {
                let owner = meter.owner();
                let whose = match &owner {
                    Owner::Key { id, .. } => Whose::Key(id),
                    Owner::Project(name) => Whose::Project(name),
                };
                meter.spent_before(first_day, MicroUsd(usage::spent(store.db.as_ref(), whose, first_day)?));
            }
            Ok(())
        })
        .await
    }
}

fn allows(ask: &Ask, name: &str) -> bool {
    ask.caller.bounds.as_ref().and_then(|bounds| bounds.names.as_ref()).is_none_or(|names| names.allow(name))
}

fn not_allowed(name: &str) -> Failure {
    let name: String = name.chars().take(200).collect();
    let failure = Failure::on(Code::FORBIDDEN, "model", format!("this key may not call {name:?}"));
    failure.with_hint("GET /v1/models lists what it may call; an administrator can add names with `refit key update --route`")
}

/// The most that the call may need, wherever on its road it is answered.
fn need(setup: &Setup, road: &Road, extent: Extent) -> Need {
    let Extent { size, output, replies } = extent;
    let most_output = output.unwrap_or(setup.config.budgets.max_output_tokens).saturating_mul(replies);
    let now = crate::types::time::now_ms();
    let mut cost = Some(MicroUsd(0));
    for plan in &road.targets {
        let price = setup.prices.of(&plan.provider_name, &plan.model, now).map(|price| price.most(size.most_tokens(), most_output));
        let price = price.or(setup.config.budgets.allow_unpriced.then_some(MicroUsd(0)));
        cost = cost.zip(price).map(|(a, b)| a.max(b));
    }
    // Without a bound nobody knows what will be written: it is counted when it has been.
    let tokens = size.likely_tokens().saturating_add(output.unwrap_or(0).saturating_mul(replies));
    Need { tokens, cost }
}
