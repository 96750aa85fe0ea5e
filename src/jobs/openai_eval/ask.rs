//! Asks models on behalf of a run: each call takes the road of a request over HTTP with the key that made the run, and is asked again
//! where that may help.

use crate::access::Caller;
use crate::jobs::batch::line::pause;
use crate::jobs::batch::{Endpoint, LineReply, LineRequest};
use crate::jobs::served::raised;
use crate::types::Code;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NoAnswer {
    /// The run was halted.
    Halted,
    /// The call failed: code and message.
    Failed(String, String),
}

/// How models are asked.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) caller: watch::Receiver<Option<Caller>>,
    /// Shared by all runs; a call that waits for its next try holds none.
    pub(super) slots: Arc<Semaphore>,
    /// Becomes true when nothing further is to be asked.
    pub(super) halt: watch::Receiver<bool>,
}

impl Asker {
    /// The body of a chat request's reply.
    pub(super) async fn chat(&self, request: &Value) -> Result<Value, NoAnswer> {
        let reply = self.post("/v1/chat/completions", request).await?;
        if reply.status == 200 { Ok(reply.body) } else { Err(failed(&reply)) }
    }

    /// A vector for each text.
    pub(super) async fn embed(&self, model: &str, texts: &[&str]) -> Result<Vec<Vec<f32>>, NoAnswer> {
        let reply = self.post("/v1/embeddings", &json!({"model": model, "input": texts})).await?;
        if reply.status != 200 {
            return Err(failed(&reply));
        }
        let numbers = |item: &Value| {
            item["embedding"].as_array().map(|list| list.iter().filter_map(Value::as_f64).map(|number| number as f32).collect())
        };
        let vectors: Option<Vec<Vec<f32>>> = reply.body["data"].as_array().and_then(|data| data.iter().map(numbers).collect());
        vectors
            .filter(|vectors| vectors.len() == texts.len())
            .ok_or_else(|| NoAnswer::Failed(Code::UPSTREAM.name.into(), "the provider sent no vectors".into()))
    }

    async fn post(&self, path: &'static str, body: &Value) -> Result<LineReply, NoAnswer> {
        let body = Bytes::from(body.to_string());
        let mut halt = self.halt.clone();
        for tries in 1.. {
            let slot = tokio::select! {
                biased;
                () = raised(&mut halt) => return Err(NoAnswer::Halted),
                slot = self.slots.clone().acquire_owned() => slot.map_err(|_| NoAnswer::Halted)?,
            };
            // Never none: a run whose key had ended before the first beat asks nothing.
            let caller = self.caller.borrow().clone().ok_or(NoAnswer::Halted)?;
            let reply = self.endpoint.answer(LineRequest { caller, path, body: body.clone() }).await;
            drop(slot);
            let Some(pause) = pause(&reply, tries) else { return Ok(reply) };
            tokio::select! {
                () = raised(&mut halt) => return Err(NoAnswer::Halted),
                () = tokio::time::sleep(pause) => {}
            }
        }
        Err(NoAnswer::Halted)
    }
}

fn failed(reply: &LineReply) -> NoAnswer {
    let text = |pointer: &str| reply.body.pointer(pointer).and_then(Value::as_str).map(String::from);
    let code = text("/error/code").or_else(|| text("/error/type")).unwrap_or_else(|| Code::UPSTREAM.name.into());
    NoAnswer::Failed(code, text("/error/message").unwrap_or_else(|| format!("status {}", reply.status)))
}
