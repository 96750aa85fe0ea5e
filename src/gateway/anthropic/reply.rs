//! A chat completion written as a message: thinking, text, tool calls, in that order.

use crate::types::chat::{ChatResponse, Choice};
use crate::types::json::{MAX_VALUES, read};
use crate::types::messages::{NATIVE_REASON, blocks_of, signature_block, stop_reason, usage_to_messages};
use serde_json::{Map, Value, json};

/// Fields of a message that a chat completion keeps beside its choices, for a whole reply and for the end of a stream.
pub(super) const BESIDE: [&str; 3] = ["container", "stop_details", "diagnostics"];

/// The message.
pub(super) fn of_chat(response: &ChatResponse) -> Value {
    let nothing = Choice::default();
    let choice = response.choices.first().unwrap_or(&nothing);
    let has = |name: &str| choice.message.extra.get(name);
    let said = Said {
        calls: has("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty()),
        refuses: has("refusal").and_then(Value::as_str).is_some_and(|refusal| !refusal.is_empty()),
    };
    let native = choice.extra.get(NATIVE_REASON).and_then(Value::as_str);
    let mut message = json!({"id": response.id, "type": "message", "role": "assistant", "model": response.model,
        "content": content(choice), "stop_reason": said.reason(choice.finish_reason.as_deref(), native),
        "stop_sequence": choice.extra.get("stop_sequence"), "usage": usage_to_messages(&response.usage.clone().unwrap_or_default())});
    for name in BESIDE {
        if let Some(value) = response.extra.get(name) {
            message[name] = value.clone();
        }
    }
    message
}

/// What a message holds that its reason to stop has to agree with.
#[derive(Default)]
pub(super) struct Said {
    pub(super) calls: bool,
    pub(super) refuses: bool,
}

impl Said {
    /// `stop_reason`. Services say `stop` after a call that was demanded, and after a refusal; clients of this protocol go by the
    /// reason.
    pub(super) fn reason(&self, finish: Option<&str>, native: Option<&str>) -> &'static str {
        match finish.unwrap_or("stop") {
            "stop" if self.calls => "tool_use",
            "stop" if self.refuses => "refusal",
            finish => stop_reason(finish, native),
        }
    }
}

fn content(choice: &Choice) -> Vec<Value> {
    let message = &choice.message;
    if let Some(blocks) = blocks_of(message) {
        return blocks;
    }
    let mut blocks = Vec::new();
    match (message.extra.get("thinking_blocks"), reasoning(&message.extra)) {
        (Some(Value::Array(thoughts)), _) => blocks.extend(thoughts.iter().cloned()),
        (_, Some(text)) => blocks.push(json!({"type": "thinking", "thinking": text, "signature": ""})),
        _ => {}
    }
    let refusal = message.extra.get("refusal").and_then(Value::as_str).unwrap_or_default();
    let text = message.plain_text() + refusal;
    let calls = message.extra.get("tool_calls").and_then(Value::as_array);
    if !text.is_empty() {
        blocks.push(json!({"type": "text", "text": text}));
    }
    blocks.extend(signature(&message.extra).map(|signature| signature_block("", signature)));
    for call in calls.into_iter().flatten() {
        blocks.extend(signature_of_call(call));
        blocks.push(tool_use(call));
    }
    blocks
}

/// Gemini's signature of a message or a delta.
pub(super) fn signature(extra: &Map<String, Value>) -> Option<&str> {
    extra.get("extra_content")?.pointer("/google/thought_signature")?.as_str()
}

/// The block that carries Gemini's signature of a call.
pub(super) fn signature_of_call(call: &Value) -> Option<Value> {
    let signature = call.pointer("/extra_content/google/thought_signature")?.as_str()?;
    Some(signature_block(call.get("id").and_then(Value::as_str).unwrap_or_default(), signature))
}

/// The thoughts of a message or a delta, under either of the two names in use.
pub(super) fn reasoning(extra: &Map<String, Value>) -> Option<&str> {
    let named = |name: &str| extra.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    named("reasoning_content").or_else(|| named("reasoning"))
}

fn tool_use(call: &Value) -> Value {
    let arguments = call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or_default();
    // The protocol wants an object; arguments that a model wrote wrongly are handed over as they are, under a name of their own.
    let input = match read(if arguments.trim().is_empty() { b"{}" } else { arguments.as_bytes() }, MAX_VALUES) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({"invalid_arguments": arguments}),
    };
    json!({"type": "tool_use", "id": call["id"], "name": call.pointer("/function/name"), "input": input})
}
