//! A reply that is kept: as the text that goes out, with what answered.

use crate::inference::plan::Plan;
use crate::types::chat::{ChatResponse, Choice};
use crate::types::{Code, Failure};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that a reply takes besides its text, roughly.
const OVERHEAD_BYTES: u64 = 1_024;
/// Lists of a message whose items carry their place in a stream, and only there.
const NUMBERED: [&str; 3] = ["tool_calls", "thinking_blocks", "content_blocks"];
/// Why a reply ended that may be given again. A reply that was cut by `max_tokens` is the answer to that bound; one that a filter cut
/// may pass the next time.
const NOT_AGAIN: [&str; 2] = ["content_filter", "error"];

/// A kept reply.
pub(in crate::inference) struct Entry {
    /// The chat completion.
    pub(in crate::inference) body: Bytes,
    /// In the protocol of the caller, where the provider sent it so.
    native: Option<Bytes>,
    /// What answered.
    pub(in crate::inference) plan: Arc<Plan>,
    kept_at: Instant,
}

impl Entry {
    /// The reply as it is kept; none where it is not whole, or not to be given again.
    pub(super) fn of(response: &ChatResponse, native: Option<&Value>, plan: Arc<Plan>) -> Option<Self> {
        let is_whole = |choice: &Choice| choice.finish_reason.as_deref().is_some_and(|reason| !NOT_AGAIN.contains(&reason));
        let whole = !response.choices.is_empty() && response.choices.iter().all(is_whole) && !response.extra.contains_key("error");
        whole.then(|| Entry { body: text(response), native: native.map(text), plan, kept_at: Instant::now() })
    }

    /// The same of the chunks of a stream put together.
    pub(super) fn of_stream(mut response: ChatResponse, plan: Arc<Plan>) -> Option<Self> {
        response.choices.sort_by_key(|choice| choice.index);
        response.extra.shift_remove("obfuscation");
        for choice in &mut response.choices {
            for name in NUMBERED {
                choice.message.extra.get_mut(name).into_iter().for_each(in_order);
            }
        }
        Entry::of(&response, None, plan)
    }

    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        self.kept_at.elapsed() > age
    }

    pub(super) fn bytes(&self) -> u64 {
        self.body.len() as u64 + self.native.as_ref().map_or(0, |native| native.len() as u64)
    }

    /// What it counts for in the bound of all.
    pub(super) fn weight(&self) -> u64 {
        self.bytes() + OVERHEAD_BYTES
    }

    /// The reply, read.
    pub(in crate::inference) fn response(&self) -> Result<ChatResponse, Failure> {
        read(&self.body)
    }

    /// The reply in the caller's protocol, read.
    pub(in crate::inference) fn native(&self) -> Result<Option<Value>, Failure> {
        self.native.as_ref().map(read).transpose()
    }
}

fn text(value: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(value).expect("replies are strings, maps and finite numbers: serialising cannot fail");
    // Without the room that it was written in.
    text.into_boxed_slice().into()
}

fn read<T: serde::de::DeserializeOwned>(text: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::new(Code::INTERNAL, format!("a kept reply cannot be read: {error}")))
}

/// Items of a stream in the order of their places, which a whole reply does not say.
fn in_order(list: &mut Value) {
    let Value::Array(items) = list else { return };
    items.sort_by_key(|item| item.get("index").and_then(Value::as_u64));
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.shift_remove("index");
    }
}
