//! How the runner asks a model: one small trait, so that runs go the same road as production and whoever counts money stands between. A
//! call is written first, so that its key and its price are known, and then made.

use super::prepare::PlanTarget;
use super::scorers::{Calling, Services};
use crate::access::Caller;
use crate::inference::{Answer, Ask, CacheWish, Inference, Measured, MostCost, Priced, Ready};
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingRequest;
use crate::types::told::Cost;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text.
    pub output: String,
    /// Tools that the model wants to call; `null` where there are none.
    #[serde(default)]
    pub tool_calls: Value,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Milliseconds from asking to the whole answer.
    pub latency_ms: f64,
    /// What it cost in micro-dollars; none where nobody knows.
    pub cost_micro_usd: Option<i64>,
    /// The provider's word that the model declined, where it says so.
    #[serde(default)]
    pub refusal: Option<String>,
    /// What the provider's reply says in `model`; none for local models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_as: Option<String>,
}

impl Reply {
    /// What an answer of the production road comes to.
    pub fn of(answer: &Answer) -> Self {
        let usage = answer.response.usage.clone().unwrap_or_default();
        let said = |field: &str| answer.response.choices.first().and_then(|choice| choice.message.extra.get(field)).cloned();
        let refusal = said("refusal").and_then(|text| text.as_str().map(str::to_string)).filter(|text| !text.is_empty());
        let text = answer.response.text();
        Reply {
            // Who declines this way says nothing else.
            output: if text.is_empty() { refusal.clone().unwrap_or_default() } else { text },
            tool_calls: said("tool_calls").unwrap_or_default(),
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            latency_ms: answer.latency_ms,
            cost_micro_usd: paid(answer.told.cost),
            refusal,
            answered_as: Some(&answer.response.model).filter(|name| !name.is_empty() && answer.provider != "local").cloned(),
        }
    }
}

/// What an answer cost, where that is known. One that came without anybody being asked cost nothing.
fn paid(cost: Cost) -> Option<i64> {
    match cost {
        Cost::Open => Some(0),
        cost => cost.micro_usd(),
    }
}

/// Answers for a target and the variables of its prompt.
pub trait Respond: Send + Sync {
    /// Writes what will be asked.
    fn write<'a>(&'a self, target: &'a PlanTarget, variables: &'a Map<String, Value>) -> BoxFuture<'a, Result<Ready, Failure>>;

    /// Asks once.
    fn ask(&self, ready: Ready) -> BoxFuture<'_, Result<Reply, Failure>>;

    /// What is known of the price of a `provider/model`.
    fn priced(&self, model: &str) -> Priced;

    /// Days that answers are given again for; 0 for ever.
    fn replies_days(&self) -> u64;

    /// What scorers may call.
    fn services(&self) -> &dyn Services;
}

/// The production road: every evaluation call is rendered, attempted and logged like an application's.
impl Respond for Inference {
    fn write<'a>(&'a self, target: &'a PlanTarget, variables: &'a Map<String, Value>) -> BoxFuture<'a, Result<Ready, Failure>> {
        let measured = Measured { manifest: &target.manifest, release: target.release };
        Box::pin(async move { self.ready(measured, variables, &Caller::local("eval")).await })
    }

    fn ask(&self, ready: Ready) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async move { Ok(Reply::of(&self.ask_ready(ready, &Caller::local("eval")).await?)) })
    }

    fn priced(&self, model: &str) -> Priced {
        Inference::priced(self, model)
    }

    fn replies_days(&self) -> u64 {
        self.config().evals.replies_retention_days
    }

    fn services(&self) -> &dyn Services {
        self
    }
}

/// Judges and embeddings go the road of applications, too.
impl Services for Inference {
    fn chat(&self, request: ChatRequest, cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async move {
            let ask = Ask { cache, ..Ask::new(&Caller::local("eval"), "eval") };
            Ok(Reply::of(&self.answer(ask, request).await?))
        })
    }

    fn most_cost<'a>(&'a self, calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
        Box::pin(async move {
            match calling {
                Calling::Chat(request) => self.most_of_chat(request).await,
                Calling::Vectors(model, texts) => {
                    let request = EmbeddingRequest { model: (*model).to_string(), input: (*texts).into(), ..EmbeddingRequest::default() };
                    self.most_of_vectors(&request).await
                }
            }
        })
    }

    fn allows_commands(&self) -> bool {
        self.config().evals.allow_commands
    }
}
