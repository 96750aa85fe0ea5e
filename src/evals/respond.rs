//! How the runner asks a model: one small trait, so that runs go the same road as production and tests need no model.

use crate::access::Caller;
use crate::inference::{Answer, Inference};
use crate::releases::Manifest;
use crate::types::Failure;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

/// One answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// The text.
    pub output: String,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Milliseconds from asking to the whole answer.
    pub latency_ms: f64,
}

impl Reply {
    /// What an answer of the production road comes to.
    pub fn of(answer: &Answer) -> Self {
        let usage = answer.response.usage.clone().unwrap_or_default();
        Reply {
            output: answer.response.text(),
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            latency_ms: answer.latency_ms,
        }
    }
}

/// Answers for a manifest and the variables of its prompt.
pub trait Respond: Send + Sync {
    /// Asks once.
    fn respond<'a>(&'a self, manifest: &'a Manifest, variables: &'a Map<String, Value>) -> BoxFuture<'a, Result<Reply, Failure>>;
}

/// The production road: every evaluation call is rendered, attempted and logged like an application's.
impl Respond for Inference {
    fn respond<'a>(&'a self, manifest: &'a Manifest, variables: &'a Map<String, Value>) -> BoxFuture<'a, Result<Reply, Failure>> {
        Box::pin(async move {
            let answer = self.run(manifest, variables, &Caller::local("eval")).await?;
            Ok(Reply::of(&answer))
        })
    }
}
