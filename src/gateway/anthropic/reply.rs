//! A chat completion written as a message: thinking, text, tool calls, in that order.

use crate::types::chat::{ChatResponse, Choice};
use crate::types::messages::{NATIVE_REASON, stop_reason, usage_to_messages};
use serde_json::{Value, json};

/// The message.
pub(super) fn of_chat(response: &ChatResponse) -> Value {
    let nothing = Choice::default();
    let choice = response.choices.first().unwrap_or(&nothing);
    let native = choice.extra.get(NATIVE_REASON).and_then(Value::as_str);
    let reason = stop_reason(choice.finish_reason.as_deref().unwrap_or("stop"), native);
    json!({"id": response.id, "type": "message", "role": "assistant", "model": response.model, "content": content(choice),
        "stop_reason": reason, "stop_sequence": choice.extra.get("stop_sequence"),
        "usage": usage_to_messages(&response.usage.clone().unwrap_or_default())})
}

fn content(choice: &Choice) -> Vec<Value> {
    let message = &choice.message;
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
    blocks.extend(calls.into_iter().flatten().map(tool_use));
    blocks
}

/// The thoughts of a message or a delta, under either of the two names in use.
pub(super) fn reasoning(extra: &serde_json::Map<String, Value>) -> Option<&str> {
    let named = |name: &str| extra.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    named("reasoning_content").or_else(|| named("reasoning"))
}

fn tool_use(call: &Value) -> Value {
    let arguments = call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or_default();
    // The protocol wants an object; arguments that a model wrote wrongly are handed over as they are, under a name of their own.
    let input = match serde_json::from_str::<Value>(if arguments.trim().is_empty() { "{}" } else { arguments }) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({"invalid_arguments": arguments}),
    };
    json!({"type": "tool_use", "id": call["id"], "name": call.pointer("/function/name"), "input": input})
}
