//! What the log needs of a chat completion, read without reading the rest: for replies that go to the caller byte for byte.

use super::chat::Usage;
use super::text::IsText;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Larger bodies are read with the bounds of [`json`](super::json).
const MAX_BYTES: usize = 1 << 20;

/// A glance at a reply.
#[derive(Debug, Deserialize)]
pub struct Glance {
    /// The reply's own id.
    pub id: String,
    #[serde(rename = "object")]
    _object: IsText,
    /// What the provider calls the model that answered.
    pub model: String,
    #[serde(rename = "created")]
    _created: u64,
    choices: Vec<Choice>,
    /// What the provider calls how it runs that model.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
    /// Token counts.
    pub usage: Option<Usage>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(rename = "index")]
    _index: u32,
    #[serde(rename = "message")]
    _message: Message,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "role")]
    _role: IsText,
    #[serde(default, rename = "content")]
    _content: Option<IsText>,
}

impl Glance {
    /// Reads a body that is exactly what every client of chat completions takes: texts and whole numbers where they belong, at least
    /// one choice, no error beside them. None for any other, which is to be read as a whole.
    pub fn of(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_BYTES {
            return None;
        }
        let glance: Glance = serde_json::from_slice(body).ok()?;
        (!glance.choices.is_empty() && glance.error.is_none()).then_some(glance)
    }

    /// Why the first choice ended.
    pub fn finish_reason(&self) -> Option<&str> {
        self.choices.first()?.finish_reason.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_what_needs_no_change_is_taken_at_a_glance() {
        let good = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "x": {"y": [1]}, "choices": [
            {"index": 0, "message": {"role": "assistant", "content": null, "tool_calls": []}, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}});
        let glance = |body: &Value| Glance::of(body.to_string().as_bytes());
        let seen = glance(&good).expect("a good reply");
        assert_eq!((seen.model.as_str(), seen.system_fingerprint.as_deref()), ("m", None));
        assert_eq!((seen.finish_reason(), seen.usage.as_ref().map(|usage| usage.total_tokens)), (Some("stop"), Some(4)));
        for (pointer, value) in [
            ("/id", json!(null)),
            ("/created", json!(1.5)),
            ("/model", json!(7)),
            ("/choices", json!([])),
            ("/choices", json!(null)),
            ("/choices/0/message/role", json!(null)),
            ("/choices/0/message/content", json!([{"type": "text", "text": "x"}])),
            ("/x", json!(null)),
        ] {
            let mut other = good.clone();
            *other.pointer_mut(pointer).expect("a field") = value;
            assert_eq!(glance(&other).is_some(), pointer == "/x", "{pointer}");
        }
        let mut failed = good.clone();
        failed["error"] = json!({"message": "no"});
        assert!(glance(&failed).is_none() && Glance::of(b"{}").is_none() && Glance::of(b"nope").is_none());
        failed["error"] = Value::Null;
        assert!(glance(&failed).is_some());
    }
}
