//! What a provider signed, as the opaque text of a reasoning item. The caller sends the item back with the next turn, in which the
//! provider wants its thoughts, and the calls that came of them, as it signed them.

use crate::types::json;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// Field of a message or a call that holds what a provider adds to it, such as the signature of a thought.
const EXTRA: &str = "extra_content";
/// Our own kind of block: what belongs to a call, or to the message where it names none.
const KIND: &str = "extra_content";

/// The text; none where nothing is signed.
pub(super) fn sealed(blocks: &[Value]) -> Option<String> {
    (!blocks.is_empty()).then(|| BASE64_STANDARD.encode(Value::from(blocks).to_string()))
}

/// What has to come back of a message or a delta, in the order of its items: thoughts, what belongs to the message.
pub(super) fn of_message(extra: &Map<String, Value>) -> Vec<Value> {
    let mut blocks = extra.get("thinking_blocks").and_then(Value::as_array).cloned().unwrap_or_default();
    blocks.extend(extra.get(EXTRA).filter(|extra| extra.is_object()).map(|extra| json!({"type": KIND, EXTRA: extra})));
    blocks
}

/// What has to come back of a call.
pub(super) fn of_call(id: &str, call: &Value) -> Option<Value> {
    let extra = call.get(EXTRA).filter(|extra| extra.is_object())?;
    Some(json!({"type": KIND, "call_id": id, EXTRA: extra}))
}

/// What a reasoning item brings back.
#[derive(Default)]
pub(super) struct Thoughts {
    /// Signed thoughts.
    pub blocks: Vec<Value>,
    /// Thoughts in plain words, where they are not signed.
    pub text: String,
    /// What belongs to the message.
    extra: Option<Value>,
    /// What belongs to calls, by their id.
    calls: Map<String, Value>,
}

impl Thoughts {
    /// Learns what belongs to calls, which may stand before or after the reasoning item.
    pub(super) fn learn(&mut self, items: &[Value]) {
        let items = items.iter().filter(|item| item["type"] == "reasoning");
        for mut block in items.flat_map(opened).filter(|block| block["type"] == KIND) {
            if let Value::String(id) = block["call_id"].take() {
                self.calls.insert(id, block[EXTRA].take());
            }
        }
    }

    /// Adds a reasoning item.
    pub(super) fn add(&mut self, item: &Value) {
        let (own, blocks): (Vec<_>, Vec<_>) = opened(item).into_iter().partition(|block| block["type"] == KIND);
        let mut of_message = own.into_iter().filter(|block| block["call_id"].is_null()).map(|mut block| block[EXTRA].take());
        self.extra = of_message.next_back().or(self.extra.take());
        if blocks.is_empty() {
            let texts = |list: &str| item.get(list).and_then(Value::as_array).into_iter().flatten();
            let texts = |list: &str| texts(list).filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n\n");
            // The whole thoughts, where there are any beside their summary.
            let text = Some(texts("content")).filter(|text| !text.is_empty()).unwrap_or_else(|| texts("summary"));
            append(&mut self.text, &text);
        }
        self.blocks.extend(blocks);
    }

    /// Whether there is nothing but what belongs to the message.
    pub(super) fn is_signature(&self) -> bool {
        self.extra.is_some() && self.blocks.is_empty() && self.text.is_empty()
    }

    /// Puts them into the assistant's message that they led to.
    pub(super) fn put_into(&mut self, message: &mut Value) {
        if !self.blocks.is_empty() {
            let mut blocks = message["thinking_blocks"].as_array().cloned().unwrap_or_default();
            blocks.append(&mut self.blocks);
            message["thinking_blocks"] = blocks.into();
        }
        if !self.text.is_empty() {
            let mut text = message["reasoning_content"].as_str().unwrap_or_default().to_string();
            append(&mut text, &std::mem::take(&mut self.text));
            message["reasoning_content"] = text.into();
        }
        if let Some(extra) = self.extra.take() {
            message[EXTRA] = extra;
        }
    }

    /// Puts back what belongs to a call.
    pub(super) fn complete(&mut self, id: &str, call: &mut Value) {
        if let Some(extra) = self.calls.shift_remove(id) {
            call[EXTRA] = extra;
        }
    }

    /// Forgets thoughts that led to nothing; calls keep what is theirs.
    pub(super) fn forget(&mut self) {
        *self = Thoughts { calls: std::mem::take(&mut self.calls), ..Thoughts::default() };
    }
}

/// The blocks that an item seals; none where another service sealed it, whose summary can still be read.
fn opened(item: &Value) -> Vec<Value> {
    let sealed = item.get("encrypted_content").and_then(Value::as_str);
    let read = |text| match json::read(&BASE64_STANDARD.decode(text).ok()?, json::MAX_VALUES) {
        Ok(Value::Array(blocks)) => Some(blocks),
        _ => None,
    };
    sealed.and_then(read).filter(|blocks| blocks.iter().all(Value::is_object)).unwrap_or_default()
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}
