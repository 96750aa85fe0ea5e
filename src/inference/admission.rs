//! Whether a caller may make a call now: allowed names, requests and tokens per minute, budgets. What is reserved before the call is
//! settled when its log row is written.

use super::foresee::Foreseen;
use super::plan::Plan;
use super::road::Road;
use super::size::Size;
use super::{Ask, Inference, Setup, blocking, cascade};
use crate::access::Bounds;
use crate::access::meter::{self, Meter, Moment, Need, Owner, Receipt, Refusal};
use crate::store::usage::{self, Whose};
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingRequest;
use crate::types::money::MicroUsd;
use crate::types::plain::PlainChat;
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Endpoints that ask no model for an answer: they count as requests, and cost nothing.
const WITHOUT_ANSWER: [&str; 1] = ["messages.count_tokens"];
/// Endpoints of calls that Refit makes by itself beside a caller's: they cost, and count as no request.
const BESIDE: [&str; 1] = [super::cache::VECTORS];
/// Bytes of what is said to a model whose reply is to be mended, beside the reply.
const COMPLAINT_BYTES: usize = 4_000;

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
    pub(super) fn settle(mut self, tokens: u64, cost_micro_usd: i64) {
        if let Some((bounds, receipt)) = self.held.take() {
            meter::settle(&bounds.meters, &receipt, (tokens, MicroUsd(cost_micro_usd)), Moment::now());
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
    /// A bound that only some providers know: it may be more than the usual one, and is not less.
    own_output: u64,
    /// Replies.
    replies: u64,
    /// Whether a reply may be asked for once more.
    repairs: bool,
}

/// The most that a call of any target of a road may need.
struct Most {
    /// None where a price is not known.
    cost: Option<MicroUsd>,
    /// The same for a second call, that is to mend the reply.
    again: Option<MicroUsd>,
    /// Tokens, as far as they can be guessed.
    tokens: u64,
    /// Tokens of all replies.
    output: u64,
}

impl Extent {
    pub(super) fn of_chat(request: &ChatRequest) -> Self {
        let (own_output, own_replies) = own_bounds(request);
        let replies = u64::from(request.n.unwrap_or(1)).max(own_replies).max(1);
        let output = request.token_limit().map(u64::from);
        Extent { size: Size::of_chat(request), output, own_output, replies, repairs: false }
    }

    pub(super) fn of_plain(plain: &PlainChat) -> Self {
        let size = Size::of_texts(plain.messages, plain.text_bytes);
        let (output, replies) = (plain.token_limit.map(u64::from), u64::from(plain.choices).max(1));
        Extent { size, output, own_output: 0, replies, repairs: false }
    }

    /// Of values that are read and not answered.
    pub(super) fn of_values<'v>(values: impl IntoIterator<Item = &'v Value>) -> Self {
        Extent { size: Size::default().and_values(values), output: Some(0), own_output: 0, replies: 1, repairs: false }
    }

    pub(super) fn of_embedding(request: &EmbeddingRequest) -> Self {
        Extent { size: Size::of_embedding(request), output: Some(0), own_output: 0, replies: 1, repairs: false }
    }

    /// The most that a call of this extent, with everything that its release adds, may cost at a target; none where the price is not known.
    pub(super) fn most_cost(&self, setup: &Setup, plan: &Plan) -> Option<MicroUsd> {
        let usual = setup.config.budgets.max_output_tokens.max(self.own_output);
        let output = self.output.unwrap_or(usual).saturating_mul(self.replies);
        Bill { setup, now: now_ms() }.of(plan, &self.size, output)
    }

    /// Whether the reply's tokens have a bound that every provider knows.
    pub(super) fn is_bounded(&self) -> bool {
        self.output.is_some()
    }

    /// The same where a reply may be asked for once more.
    pub(super) fn repairing(self, repairs: bool) -> Self {
        Extent { repairs, ..self }
    }
}

/// Tokens and replies that a request bounds in Gemini's words, in either spelling; 0 for none.
fn own_bounds(request: &ChatRequest) -> (u64, u64) {
    let config = ["generationConfig", "generation_config"].into_iter().filter_map(|name| request.extra.get(name)).collect::<Vec<_>>();
    let most = |names: [&str; 2]| {
        let found = config.iter().flat_map(|config| names.map(|name| config.get(name).and_then(Value::as_u64)));
        found.flatten().max().unwrap_or(0)
    };
    (most(["maxOutputTokens", "max_output_tokens"]), most(["candidateCount", "candidate_count"]))
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

    /// The failure as a caller may see it who may not call every name: without a name that is near, and without the
    /// model that a prompt names.
    pub(super) fn told_to(&self, ask: &Ask, failure: Failure) -> Failure {
        let restricted = ask.caller.bounds.as_ref().is_some_and(|bounds| bounds.names.is_some());
        if !restricted {
            return failure;
        }
        let param = failure.param().unwrap_or_default();
        let (code, message, hint) = match failure.code() {
            Code::MODEL_NOT_FOUND => (Code::MODEL_NOT_FOUND, "the model does not exist", "GET /v1/models lists what this key may call"),
            Code::UNKNOWN_NAME if param.starts_with("prompt.") => (
                Code::UNKNOWN_NAME,
                "the prompt does not exist, or has no such version or label",
                "ask whoever keeps the prompts for its name",
            ),
            Code::INVALID_VALUE if param == "prompt" => (
                Code::INVALID_VALUE,
                "the route answers with the prompt of its live release",
                "call the route without prompt.id, or name a model",
            ),
            _ => return failure,
        };
        let param = if code == Code::MODEL_NOT_FOUND { "model".to_string() } else { param };
        Failure::on(code, param, message).with_hint(hint)
    }

    /// Grants a call, or says why not and when again.
    ///
    /// # Errors
    /// [`Code::FORBIDDEN`] for a name that the key may not call, [`Code::RATE_LIMIT`] and [`Code::BUDGET`] with seconds to wait,
    /// [`Code::PRICE_UNKNOWN`] where a budget stands over a call that nobody knows the price of.
    pub(super) async fn admit(
        &self,
        setup: &Setup,
        ask: &Ask,
        road: &Road,
        (extent, foreseen): (Extent, &Foreseen),
    ) -> Result<Grant, Failure> {
        let Some(bounds) = &ask.caller.bounds else { return Ok(Grant { size: extent.size, held: None }) };
        self.may_take(ask, road)?;
        if bounds.meters.is_empty() {
            return Ok(Grant { size: extent.size, held: None });
        }
        let need = match ask.endpoint {
            endpoint if WITHOUT_ANSWER.contains(&endpoint) => Need { requests: 1, tokens: 0, cost: Some(MicroUsd(0)) },
            endpoint => Need { requests: u64::from(!BESIDE.contains(&endpoint)), ..self.need(setup, road, (extent, foreseen))? },
        };
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
        let of_plan = |plan: &Arc<Plan>| plan.route.clone().or_else(|| plan.manifest.as_ref().map(|manifest| manifest.model.clone()));
        let named = road.name.clone().map_or_else(|| road.targets.iter().filter_map(of_plan).collect(), |name| vec![name]);
        let Some(name) = named.iter().find(|name| !allows(ask, name)) else { return Ok(()) };
        if road.targets.iter().any(|plan| plan.prompt.is_some()) {
            // What the caller said himself was looked at before: this name is the prompt's.
            let failure = Failure::on(Code::FORBIDDEN, "model", "this key may not call the model that the prompt names");
            return Err(failure.with_hint("send a \"model\" that it may call; GET /v1/models lists them"));
        }
        Err(not_allowed(name))
    }

    /// The most that a call may cost, wherever on its road it is answered; none where a price is not known.
    pub(super) fn most_of(&self, setup: &Setup, road: &Road, call: (Extent, &Foreseen)) -> Result<Option<MicroUsd>, Failure> {
        Ok(self.need(setup, road, call)?.cost)
    }

    /// Whether the reply of a target has a bound: the caller's, or its release's.
    pub(super) fn has_bound(&self, plan: &Arc<Plan>, extent: Extent, foreseen: &Foreseen) -> Result<bool, Failure> {
        Ok(self.with_release(plan, extent, foreseen)?.is_bounded())
    }

    /// The most that the call may need, wherever on its road it is answered: by its target, after a cascade has asked others, and once
    /// more where the reply may have to be mended.
    fn need(&self, setup: &Setup, road: &Road, (extent, foreseen): (Extent, &Foreseen)) -> Result<Need, Failure> {
        let bill = Bill { setup, now: now_ms() };
        let Most { mut cost, again, tokens, .. } = self.most(&bill, road, (extent, foreseen))?;
        if extent.repairs {
            cost = sum(cost, again);
        }
        if let Some(cascade) = &road.cascade {
            let first = self.most(&bill, &cascade.first, (extent, foreseen))?;
            cost = sum(cost, first.cost);
            for plan in cascade.judge.iter().flat_map(|judge| &judge.targets) {
                let (size, output) = cascade::judging(&cascade.accept, &extent.size, first.output);
                cost = sum(cost, bill.of(plan, &size, output));
            }
        }
        Ok(Need { requests: 1, tokens, cost })
    }

    /// The most that a call of any target of a road may need, with what its release adds to the request.
    fn most(&self, bill: &Bill<'_>, road: &Road, (extent, foreseen): (Extent, &Foreseen)) -> Result<Most, Failure> {
        let usual = bill.setup.config.budgets.max_output_tokens.max(extent.own_output);
        let mut most = Most { cost: Some(MicroUsd(0)), again: Some(MicroUsd(0)), tokens: 0, output: 0 };
        for plan in &road.targets {
            let Extent { size, output, replies, .. } = self.with_release(plan, extent, foreseen)?;
            let most_output = output.unwrap_or(usual).saturating_mul(replies);
            most.cost = dearer(most.cost, bill.of(plan, &size, most_output));
            if extent.repairs {
                let said = usize::try_from(most_output).unwrap_or(usize::MAX).saturating_add(COMPLAINT_BYTES);
                most.again = dearer(most.again, bill.of(plan, &size.and_text(said), most_output));
            }
            most.output = most.output.max(most_output);
            // Without a bound nobody knows what will be written: it is counted when it has been.
            let tokens = size.likely_tokens().saturating_add(output.unwrap_or(0).saturating_mul(replies));
            most.tokens = most.tokens.max(tokens);
        }
        Ok(most)
    }

    /// With what the release of a target adds to the request; its bound holds where the caller has none.
    fn with_release(&self, plan: &Arc<Plan>, mut extent: Extent, foreseen: &Foreseen) -> Result<Extent, Failure> {
        let Some(manifest) = &plan.manifest else { return Ok(extent) };
        let prompt = plan.prompt(&self.prompts)?;
        extent.size = foreseen.of(plan).unwrap_or_else(|| {
            let source = prompt.as_ref().map_or(0, |prompt| prompt.source_bytes);
            extent.size.and_text(source).and_values(manifest.tools.iter().chain(&manifest.response_format))
        });
        let of = |fields: &Map<String, Value>| {
            ["max_completion_tokens", "max_tokens"].into_iter().filter_map(|name| fields.get(name)?.as_u64()).max()
        };
        let of_prompt = || prompt.as_ref().and_then(|prompt| of(&prompt.front.config));
        extent.output = extent.output.or_else(|| of(&manifest.parameters)).or_else(of_prompt);
        extent.replies = extent.replies.max(manifest.parameters.get("n").and_then(Value::as_u64).unwrap_or(1));
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

/// What calls cost at most, at the prices of a moment.
struct Bill<'s> {
    setup: &'s Setup,
    now: i64,
}

impl Bill<'_> {
    /// None where the price is not known and the configuration does not let it pass.
    fn of(&self, plan: &Plan, size: &Size, output: u64) -> Option<MicroUsd> {
        let price = self.setup.prices.of(&plan.provider_name, &plan.model, self.now);
        let most = price.map(|price| price.most(size.most_tokens(), output));
        most.or(self.setup.config.budgets.allow_unpriced.then_some(MicroUsd(0)))
    }
}

fn dearer(a: Option<MicroUsd>, b: Option<MicroUsd>) -> Option<MicroUsd> {
    a.zip(b).map(|(a, b)| a.max(b))
}

fn sum(a: Option<MicroUsd>, b: Option<MicroUsd>) -> Option<MicroUsd> {
    a.zip(b).map(|(a, b)| MicroUsd(a.0.saturating_add(b.0)))
}
