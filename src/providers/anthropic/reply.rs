//! A message read as a chat completion. Thinking becomes `reasoning_content` (and, with its signature, `thinking_blocks`). Where that
//! and text and calls do not say everything (server tools, citations, thinking between texts), `content_blocks` holds all blocks in
//! their order; the provider's own stop reason is in `native_finish_reason`.

use crate::types::chat::{ChatResponse, Choice, Content, Message};
use crate::types::messages::{BLOCKS, NATIVE_REASON, finish_reason, fits_chat, usage_of_messages};
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};

/// The completion.
///
/// # Errors
/// What is missing in a body that is no message.
pub(super) fn to_chat(message: &Value) -> Result<ChatResponse, String> {
    let blocks = message.get("content").and_then(Value::as_array).ok_or("the reply is not a message: it has no content")?;
    let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let native = text("stop_reason");
    let mut choice = Choice { message: self::message(blocks), finish_reason: Some(finish_reason(&native).into()), ..Choice::default() };
    choice.extra.insert(NATIVE_REASON.into(), native.into());
    if let Some(sequence) = message.get("stop_sequence").filter(|sequence| !sequence.is_null()) {
        choice.extra.insert("stop_sequence".into(), sequence.clone());
    }
    Ok(ChatResponse {
        id: text("id"),
        object: "chat.completion".into(),
        created: now_ms() / 1000,
        model: text("model"),
        choices: vec![choice],
        usage: message.get("usage").and_then(Value::as_object).map(usage_of_messages),
        extra: rest(message),
    })
}

/// Fields of a message that have no other place.
fn rest(message: &Value) -> Map<String, Value> {
    const KNOWN: [&str; 8] = ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"];
    let fields = message.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| !KNOWN.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn message(blocks: &[Value]) -> Message {
    let (mut text, mut thinking) = (String::new(), String::new());
    let (mut calls, mut thoughts) = (Vec::new(), Vec::new());
    for block in blocks {
        let field = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
        match field("type") {
            "text" => text.push_str(field("text")),
            "thinking" => {
                thinking.push_str(field("thinking"));
                thoughts.push(block.clone());
            }
            "redacted_thinking" => thoughts.push(block.clone()),
            "tool_use" => calls.push(tool_call(block)),
            _ => {}
        }
    }
    let mut extra = Map::new();
    if !thinking.is_empty() {
        extra.insert("reasoning_content".into(), thinking.into());
    }
    let all = if fits_chat(blocks) { Vec::new() } else { blocks.to_vec() };
    for (name, list) in [("thinking_blocks", thoughts), ("tool_calls", calls), (BLOCKS, all)] {
        if !list.is_empty() {
            extra.insert(name.into(), list.into());
        }
    }
    let silent = text.is_empty() && extra.contains_key("tool_calls");
    Message { role: "assistant".into(), content: (!silent).then_some(Content::Text(text)), extra }
}

fn tool_call(block: &Value) -> Value {
    let input = block.get("input").filter(|input| !input.is_null()).map_or_else(|| "{}".to_string(), Value::to_string);
    json!({"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": input}})
}
