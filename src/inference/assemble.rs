//! The chunks of a stream put together as the reply they make, for the log.

use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Content, Delta};
use serde_json::{Map, Value};

/// Adds one chunk to the reply.
pub(super) fn add(reply: &mut ChatResponse, chunk: &ChatChunk) {
    if reply.id.is_empty() {
        reply.id = chunk.id.clone();
        reply.object = "chat.completion".into();
        reply.created = chunk.created;
        reply.model = chunk.model.clone();
    }
    if chunk.usage.is_some() {
        reply.usage.clone_from(&chunk.usage);
    }
    merge(&mut reply.extra, &chunk.extra);
    for piece in &chunk.choices {
        let at = reply.choices.iter().position(|choice| choice.index == piece.index).unwrap_or_else(|| {
            reply.choices.push(Choice { index: piece.index, ..Choice::default() });
            reply.choices.len() - 1
        });
        add_choice(&mut reply.choices[at], piece);
    }
}

fn add_choice(choice: &mut Choice, piece: &ChunkChoice) {
    let Delta { role, content, extra } = &piece.delta;
    if let Some(role) = role {
        choice.message.role = role.clone();
    }
    if let Some(text) = content {
        match &mut choice.message.content {
            Some(Content::Text(so_far)) => so_far.push_str(text),
            other => *other = Some(Content::Text(text.clone())),
        }
    }
    append(&mut choice.message.extra, extra);
    merge(&mut choice.extra, &piece.extra);
    choice.finish_reason = piece.finish_reason.clone().or_else(|| choice.finish_reason.take());
}

/// Deltas: texts grow, lists of indexed objects (tool calls) grow item by item, anything else is replaced.
fn append(into: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (name, new) in delta {
        match (into.get_mut(name), new) {
            (_, Value::Null) => {}
            (Some(Value::String(so_far)), Value::String(text)) if !matches!(name.as_str(), "id" | "type") => so_far.push_str(text),
            (Some(Value::Object(so_far)), Value::Object(new)) => append(so_far, new),
            (Some(Value::Array(so_far)), Value::Array(new)) => append_items(so_far, new),
            _ => drop(into.insert(name.clone(), new.clone())),
        }
    }
}

fn append_items(so_far: &mut Vec<Value>, new: &[Value]) {
    for item in new {
        let index = item.get("index");
        let same = so_far.iter_mut().find(|known| index.is_some() && known.get("index") == index);
        match (same, item) {
            (Some(Value::Object(known)), Value::Object(item)) => append(known, item),
            _ => so_far.push(item.clone()),
        }
    }
}

fn merge(into: &mut Map<String, Value>, new: &Map<String, Value>) {
    for (name, value) in new.iter().filter(|(_, value)| !value.is_null()) {
        into.insert(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_and_tool_calls_grow_together() {
        let mut reply = ChatResponse::default();
        for delta in [
            json!({"role": "assistant", "content": "a"}),
            json!({"content": "b", "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\""}}]}),
            json!({"tool_calls": [{"index": 0, "type": "function", "function": {"arguments": ":1}"}}, {"index": 1, "id": "c2"}]}),
        ] {
            let chunk = json!({"id": "i", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
            add(&mut reply, &serde_json::from_value(chunk).expect("a chunk"));
        }
        assert_eq!(reply.text(), "ab");
        let calls = &reply.choices[0].message.extra["tool_calls"];
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
        assert_eq!((&calls[0]["type"], &calls[1]["id"]), (&json!("function"), &json!("c2")));
    }
}
