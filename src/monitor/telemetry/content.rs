//! Messages and replies in the shape that the GenAI conventions give them: roles with parts.

use serde_json::{Value, json};

/// System messages, and all others, of a chat request's body.
pub(super) fn input(body: &str) -> Option<(Option<String>, String)> {
    let body: Value = serde_json::from_str(body).ok()?;
    let messages = body.get("messages")?.as_array()?;
    let is_system = |message: &&Value| matches!(message["role"].as_str(), Some("system" | "developer"));
    let (system, others): (Vec<_>, Vec<_>) = messages.iter().partition(is_system);
    let system: Vec<Value> = system.into_iter().flat_map(parts).collect();
    let others: Vec<Value> = others.into_iter().map(|message| json!({"role": message["role"], "parts": parts(message)})).collect();
    Some(((!system.is_empty()).then(|| json!(system).to_string()), json!(others).to_string()))
}

/// The choices of a chat completion's body.
pub(super) fn output(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    let choice = |choice: &Value| {
        let message = &choice["message"];
        json!({"role": message["role"], "parts": parts(message), "finish_reason": choice["finish_reason"]})
    };
    let choices: Vec<_> = body.get("choices")?.as_array()?.iter().map(choice).collect();
    Some(json!(choices).to_string())
}

fn parts(message: &Value) -> Vec<Value> {
    let text = |text: &Value| json!({"type": "text", "content": text});
    if message["role"] == "tool" {
        return vec![json!({"type": "tool_call_response", "id": message["tool_call_id"], "response": message["content"]})];
    }
    let mut parts = match &message["content"] {
        Value::String(_) => vec![text(&message["content"])],
        // Pictures and the like are named, not carried along.
        Value::Array(items) => items.iter().map(|item| item.get("text").map_or_else(|| json!({"type": item["type"]}), text)).collect(),
        _ => Vec::new(),
    };
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        parts.push(json!({"type": "tool_call", "id": call["id"], "name": function["name"], "arguments": function["arguments"]}));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_in_parts() {
        let body = json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": [
            {"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:x"}}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"}]});
        let (system, others) = input(&body.to_string()).expect("messages");
        assert_eq!(system.as_deref(), Some(r#"[{"type":"text","content":"be kind"}]"#));
        let others: Value = serde_json::from_str(&others).expect("JSON");
        assert_eq!(others[0]["parts"], json!([{"type": "text", "content": "hi"}, {"type": "image_url"}]));
        assert_eq!(others[1]["parts"], json!([{"type": "tool_call", "id": "c1", "name": "f", "arguments": "{}"}]));
        assert_eq!(others[2]["parts"], json!([{"type": "tool_call_response", "id": "c1", "response": "42"}]));
        assert_eq!(input("not whole … [cut: 9 bytes]"), None);
    }
}
