//! Messages with places to be filled in: `input_messages.template` of a run and `input` of a grader. A message's content is a text or
//! a list of parts (`input_text`, `output_text`, `text`, `input_image`), the words of the Responses API; what is asked is a chat request.

use super::template;
use serde_json::{Value, json};

const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// Checks messages.
///
/// # Errors
/// The place behind the list's own path, and what is wrong there.
pub fn check(messages: &[Value], has_sample: bool) -> Result<(), (String, String)> {
    for (i, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        if !ROLES.contains(&role) {
            return Err((format!("[{i}].role"), format!("expected one of {}", ROLES.join(", "))));
        }
        let in_content = |problem| (format!("[{i}].content"), problem);
        for part in parts(message).map_err(in_content)? {
            if let Part::Text(text) = part {
                template::check(text, has_sample).map_err(in_content)?;
            }
        }
    }
    Ok(())
}

/// Chat messages, filled in.
///
/// # Errors
/// What has no value, or is no message.
pub fn render(messages: &[Value], space: &Value) -> Result<Vec<Value>, String> {
    let one = |message: &Value| {
        let mut content = Vec::new();
        for part in parts(message)? {
            content.push(match part {
                Part::Text(text) => json!({"type": "text", "text": template::render(text, space)?}),
                Part::Image(part) => json!({"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}),
            });
        }
        let content = match content.as_slice() {
            [only] if only["type"] == "text" => only["text"].clone(),
            _ => Value::Array(content),
        };
        Ok(json!({"role": message["role"], "content": content}))
    };
    messages.iter().map(one).collect()
}

enum Part<'m> {
    Text(&'m str),
    Image(&'m Value),
}

fn parts(message: &Value) -> Result<Vec<Part<'_>>, String> {
    match message.get("content") {
        Some(Value::String(text)) => Ok(vec![Part::Text(text)]),
        Some(Value::Array(list)) => list.iter().map(part).collect(),
        Some(one @ Value::Object(_)) => Ok(vec![part(one)?]),
        _ => Err("expected a text or a list of parts".into()),
    }
}

fn part(value: &Value) -> Result<Part<'_>, String> {
    let text = value.as_str().or_else(|| value.get("text").and_then(Value::as_str));
    match (value.get("type").and_then(Value::as_str), text) {
        (Some("input_text" | "output_text" | "text") | None, Some(text)) => Ok(Part::Text(text)),
        (Some("input_image"), _) if value.get("image_url").is_some_and(Value::is_string) => Ok(Part::Image(value)),
        _ => Err("expected a text, or parts of the types input_text, output_text or input_image".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_of_all_forms_become_chat_messages() {
        let messages = [
            json!({"role": "system", "content": "Be {{item.tone}}."}),
            json!({"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.q}}"}}),
            json!({"role": "user", "content": ["{{item.q}}", {"type": "input_image", "image_url": "https://x/y", "detail": "low"}]}),
        ];
        check(&messages, false).expect("fine");
        let rendered = render(&messages, &json!({"item": {"tone": "kind", "q": "Why?"}})).expect("filled in");
        assert_eq!(rendered[0], json!({"role": "system", "content": "Be kind."}));
        assert_eq!(rendered[1], json!({"role": "user", "content": "Why?"}));
        assert_eq!(rendered[2]["content"][0], json!({"type": "text", "text": "Why?"}));
        assert_eq!(rendered[2]["content"][1]["image_url"]["url"], "https://x/y");
        let wrong = |message: Value| check(&[message], false).expect_err("refused").0;
        assert_eq!(wrong(json!({"role": "tool", "content": "x"})), "[0].role");
        assert_eq!(wrong(json!({"role": "user", "content": {"type": "input_audio"}})), "[0].content");
        assert_eq!(wrong(json!({"role": "user", "content": "{{sample.output_text}}"})), "[0].content");
    }
}
