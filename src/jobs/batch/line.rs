//! One line of a batch: asked until it has an answer that another try would not better.

use super::{Endpoint, LineReply, LineRequest, check};
use crate::access::Caller;
use crate::types::Code;
use crate::types::ids::new_id;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Tries of a line whose provider fails, and of one whose provider has too much to do.
const TRIES: u32 = 4;
const TRIES_WHEN_BUSY: u32 = 30;
/// The first pause, which doubles with each try, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is obeyed.
const LONGEST_WISH: Duration = Duration::from_secs(600);

/// What became of a line.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) custom_id: String,
    what: Result<LineReply, (&'static str, String)>,
}

impl Outcome {
    pub(super) fn answered(custom_id: String, reply: LineReply) -> Self {
        Outcome { custom_id, what: Ok(reply) }
    }

    /// It was never asked, or cannot be.
    pub(super) fn failed(custom_id: String, code: &'static str, message: impl Into<String>) -> Self {
        Outcome { custom_id, what: Err((code, message.into())) }
    }

    /// The line of the output file.
    pub(super) fn to_json(&self) -> Value {
        let (response, error) = match &self.what {
            Ok(reply) => (json!({"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}), Value::Null),
            Err((code, message)) => (Value::Null, json!({"code": code, "message": message})),
        };
        json!({"id": new_id("batch_req"), "custom_id": self.custom_id, "response": response, "error": error})
    }
}

/// A line as it stands in the file, with its share of the memory for such lines.
pub(super) struct Waiting {
    pub(super) bytes: Vec<u8>,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// How lines are asked.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) endpoint: Arc<dyn Endpoint>,
    /// Whom lines are asked for, as of now.
    pub(super) caller: watch::Receiver<Option<Caller>>,
    pub(super) path: &'static str,
    /// Largest line, in bytes.
    pub(super) limit: usize,
    /// Shared by all batches; a line that waits for its next try holds none.
    pub(super) slots: Arc<Semaphore>,
    /// Becomes true when no further line is to be asked.
    pub(super) halt: watch::Receiver<bool>,
}

impl Asker {
    /// Asks a line; none when the batch was halted before it had its answer.
    pub(super) async fn ask(self, waiting: Waiting) -> Option<Outcome> {
        let mut halt = self.halt.clone();
        let mut slot = self.slot(&mut halt).await?;
        let Waiting { bytes, _permit } = waiting;
        let (custom_id, body) = match check::line(&bytes, self.path, self.limit) {
            Ok(line) => (line.custom_id, Bytes::from(line.body.to_string())),
            // It was good when the batch began; the limits may have been lowered since.
            Err(problem) => {
                let id = check::custom_id(&bytes).unwrap_or_default();
                return Some(Outcome::failed(id, problem.code, problem.message));
            }
        };
        drop(bytes);
        for tries in 1.. {
            // Never none: a batch whose key had ended before the first beat asks nothing.
            let caller = self.caller.borrow().clone()?;
            let request = LineRequest { caller, path: self.path, body: body.clone() };
            let reply = self.endpoint.answer(request).await;
            drop(slot);
            let Some(pause) = pause(&reply, tries) else { return Some(Outcome::answered(custom_id, reply)) };
            tokio::select! {
                _ = halt.wait_for(|halt| *halt) => return None,
                () = tokio::time::sleep(pause) => {}
            }
            slot = self.slot(&mut halt).await?;
        }
        None
    }

    /// Leave to ask; none when the batch was halted.
    async fn slot(&self, halt: &mut watch::Receiver<bool>) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            _ = halt.wait_for(|halt| *halt) => None,
            slot = self.slots.clone().acquire_owned() => slot.ok(),
        }
    }
}

/// How long to wait before the next try; none when the answer stands. Half of a pause is random, so that lines that failed together
/// do not come back together.
pub(in crate::jobs) fn pause(reply: &LineReply, tries: u32) -> Option<Duration> {
    let most = match reply.status {
        // An account without money has none a minute later.
        429 if reply.body.pointer("/error/code").is_some_and(|code| code == Code::QUOTA.name) => return None,
        // Nor has a budget; what calls on their way have reserved may come back.
        429 if reply.body.pointer("/error/code").is_some_and(|code| code == Code::BUDGET.name) && reply.retry_after_s != Some(1) => {
            return None;
        }
        429 => TRIES_WHEN_BUSY,
        // Anthropic's word for overloaded is 529.
        408 | 500..=599 => TRIES,
        _ => return None,
    };
    if tries >= most {
        return None;
    }
    let pause = PAUSE.saturating_mul(1 << (tries - 1).min(10)).min(LONGEST_PAUSE);
    let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
    let wished = reply.retry_after_s.map(Duration::from_secs).unwrap_or_default().min(LONGEST_WISH);
    Some(jittered.max(wished))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_pass_is_tried_again_and_nothing_for_ever() {
        let reply = |status, retry_after_s| LineReply { status, request_id: String::new(), retry_after_s, body: Value::Null };
        assert!([200, 400, 404, 422].iter().all(|status| pause(&reply(*status, None), 1).is_none()));
        assert!(pause(&reply(502, None), 1).is_some() && pause(&reply(502, None), TRIES).is_none());
        assert_eq!(pause(&reply(429, Some(7)), 1), Some(Duration::from_secs(7)));
        assert!(pause(&reply(429, None), 29).is_some_and(|pause| pause <= LONGEST_PAUSE) && pause(&reply(429, None), 30).is_none());
        assert_eq!(pause(&reply(503, Some(1 << 40)), 1), Some(LONGEST_WISH));
        assert!(pause(&reply(529, None), 1).is_some());
        let body = json!({"error": {"code": "insufficient_quota"}});
        assert!(pause(&LineReply { body, ..reply(429, None) }, 1).is_none());
        let spent = |wait| LineReply { body: json!({"error": {"code": "budget_exceeded"}}), ..reply(429, wait) };
        assert!(pause(&spent(None), 1).is_none() && pause(&spent(Some(3_600)), 1).is_none() && pause(&spent(Some(1)), 1).is_some());
    }
}
