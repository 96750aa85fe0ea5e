//! How large a call is, before anybody has counted its tokens: from bytes, once as a guess and once as a bound.

use crate::types::chat::{ChatRequest, Content, Message};
use crate::types::embeddings::EmbeddingRequest;
use serde_json::{Map, Value};

/// Bytes that a token usually has (English text; others have fewer).
const USUAL_BYTES: u64 = 4;
/// Tokens that the frame of a message takes.
const FRAME: u64 = 8;
/// Tokens of a picture or a file: as a guess, and at most (a large picture at the dearest provider), unless it has fewer bytes.
const MEDIA: u64 = 1_000;
const MOST_MEDIA: u64 = 50_000;
/// Longer texts that begin with `data:` are media.
const DATA_URL: (&str, usize) = ("data:", 256);

/// What a call reads, in bytes of text and tokens of everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    text_bytes: u64,
    frames: u64,
    media: u64,
    most_media: u64,
}

impl Size {
    /// Of a conversation with everything that travels beside it (tools, schemas, variables).
    pub(super) fn of_chat(request: &ChatRequest) -> Self {
        let mut size = Size::default();
        request.messages.iter().for_each(|message| size.message(message));
        size.fields(&request.extra);
        size
    }

    /// Of so many messages with so many bytes of text.
    pub(super) fn of_texts(messages: u64, text_bytes: u64) -> Self {
        Size { text_bytes, frames: messages.saturating_mul(FRAME), ..Size::default() }
    }

    /// Of texts or token ids to embed.
    pub(super) fn of_embedding(request: &EmbeddingRequest) -> Self {
        let mut size = Size::default();
        size.value(&request.input);
        size
    }

    /// With so many bytes of text more.
    pub(super) fn and_text(self, bytes: usize) -> Self {
        Size { text_bytes: self.text_bytes.saturating_add(bytes as u64), ..self }
    }

    /// With values more.
    pub(super) fn and_values<'v>(mut self, values: impl IntoIterator<Item = &'v Value>) -> Self {
        values.into_iter().for_each(|value| self.value(value));
        self
    }

    /// Tokens, as a guess.
    pub(super) fn likely_tokens(&self) -> u64 {
        self.text_bytes.div_ceil(USUAL_BYTES) + self.frames + self.media
    }

    /// Tokens at most: no tokenizer makes more than one of a byte.
    pub(super) fn most_tokens(&self) -> u64 {
        self.text_bytes.saturating_add(self.frames).saturating_add(self.most_media)
    }

    fn message(&mut self, message: &Message) {
        self.frames += FRAME;
        match &message.content {
            Some(Content::Text(text)) => self.text_bytes += text.len() as u64,
            Some(Content::Parts(parts)) => parts.iter().for_each(|part| self.part(part)),
            None => {}
        }
        self.fields(&message.extra);
    }

    fn part(&mut self, part: &Value) {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        // A picture by address is as large as the provider finds it.
        if kind.contains("image") && !part.to_string().contains(DATA_URL.0) {
            self.media += MEDIA;
            self.most_media += MOST_MEDIA;
        }
        self.value(part);
    }

    fn fields(&mut self, fields: &Map<String, Value>) {
        for (name, value) in fields {
            self.text_bytes += name.len() as u64;
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) if text.len() > DATA_URL.1 && text.starts_with(DATA_URL.0) => {
                self.media += (text.len() as u64).min(MEDIA);
                self.most_media += (text.len() as u64).min(MOST_MEDIA);
            }
            Value::String(text) => self.text_bytes += text.len() as u64,
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(fields) => self.fields(fields),
            // A number, also a token id, is a few bytes at most that count.
            _ => self.text_bytes += USUAL_BYTES,
        }
    }
}

/// Tokens of so many bytes that were answered, as a guess.
pub(super) fn likely_tokens(bytes: u64) -> u64 {
    bytes.div_ceil(USUAL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn size(value: Value) -> Size {
        Size::of_chat(&serde_json::from_value(value).expect("a request"))
    }

    #[test]
    fn everything_that_is_read_is_counted() {
        let text = size(json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(400)}]}));
        assert_eq!((text.likely_tokens(), text.most_tokens()), (108, 408));
        let tools = size(
            json!({"model": "m", "messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": "y".repeat(400)}}]}),
        );
        assert!(tools.likely_tokens() > 100, "{tools:?}");
        let picture = json!([{"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", "A".repeat(1 << 20))}}]);
        let picture = size(json!({"model": "m", "messages": [{"role": "user", "content": picture}]}));
        assert!((MOST_MEDIA..MOST_MEDIA + 200).contains(&picture.most_tokens()), "{picture:?}");
        let address = json!([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]);
        assert!(size(json!({"model": "m", "messages": [{"role": "user", "content": address}]})).most_tokens() > MOST_MEDIA);
        let ids: EmbeddingRequest = serde_json::from_value(json!({"model": "m", "input": [[1, 2, 3], [4]]})).expect("a request");
        assert_eq!(Size::of_embedding(&ids).likely_tokens(), 4);
    }
}
