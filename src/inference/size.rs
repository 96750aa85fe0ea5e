//! How large a call is, before anybody has counted its tokens: from bytes, once as a guess and once as a bound.

use crate::types::chat::{ChatRequest, Content, Message};
use crate::types::embeddings::EmbeddingRequest;
use serde_json::{Map, Value};

/// Bytes that a token usually has (English text; others have fewer).
const USUAL_BYTES: u64 = 4;
/// Tokens that the frame of a message takes.
const FRAME: u64 = 8;
/// Tokens of a picture: as a guess, and at most (a large one at the dearest provider), unless it has fewer bytes.
const PICTURE: u64 = 1_000;
const MOST_PICTURE: u64 = 50_000;
/// Tokens of any other file at most, unless it has fewer bytes: no model reads more.
const MOST_FILE: u64 = 1_000_000;
/// Bytes of a file that are a token, as a guess: a page of a document has some 2,000 tokens and 50 kB.
const FILE_BYTES: u64 = 24;
/// Fields that may hold a picture, a sound or a file.
const MEDIA: [&str; 7] = ["url", "image_url", "audio_url", "video_url", "file_url", "file_data", "data"];
/// Shorter values of these are counted as texts.
const MIN_MEDIA_BYTES: usize = 256;
/// What JSON makes of a byte of text inside a text, in the rule.
const ESCAPED: u64 = 2;

/// What a call reads, in bytes of text and tokens of everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    text_bytes: u64,
    frames: u64,
    media: u64,
    most_media: u64,
    /// Bytes of what counts as media.
    media_bytes: u64,
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

    /// The same written as JSON into a text, in which media are texts, too: what a judge reads.
    pub(super) fn quoted(&self) -> Self {
        let text_bytes = self.text_bytes.saturating_add(self.frames.saturating_mul(USUAL_BYTES)).saturating_mul(ESCAPED);
        Size { text_bytes: text_bytes.saturating_add(self.media_bytes), ..Size::default() }
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
        let before = self.media_bytes;
        self.media_or_text(part);
        if self.media_bytes > before {
            return;
        }
        // By address or by id: as large as the provider finds it.
        if kind.contains("image") {
            self.media += PICTURE;
            self.most_media += MOST_PICTURE;
        } else if ["file", "document", "audio", "video"].iter().any(|word| kind.contains(word)) && !is_text_source(part) {
            self.media += PICTURE;
            self.most_media += MOST_FILE;
        }
    }

    /// A part of a message, in which some fields hold media: only what is base64 throughout counts as such.
    fn media_or_text(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.media_or_text(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.text_bytes += name.len() as u64;
                    match value {
                        Value::String(text) if MEDIA.contains(&name.as_str()) && is_media(text, fields) => self.medium(text, fields),
                        // What a tool was given has names of its own.
                        value if name == "input" => self.value(value),
                        value => self.media_or_text(value),
                    }
                }
            }
            value => self.value(value),
        }
    }

    fn medium(&mut self, text: &str, beside: &Map<String, Value>) {
        let bytes = text.len() as u64;
        let kind = beside.get("media_type").and_then(Value::as_str).unwrap_or_default();
        let (likely, most) = match text.starts_with("data:image/") || kind.starts_with("image/") {
            true => (bytes.min(PICTURE), bytes.min(MOST_PICTURE)),
            false => (bytes.div_ceil(FILE_BYTES), bytes.min(MOST_FILE)),
        };
        self.media += likely.min(most);
        self.most_media += most;
        self.media_bytes += bytes;
    }

    fn fields(&mut self, fields: &Map<String, Value>) {
        for (name, value) in fields {
            self.text_bytes += name.len() as u64;
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text_bytes += text.len() as u64,
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(fields) => self.fields(fields),
            // A number, also a token id, is a few bytes at most that count.
            _ => self.text_bytes += USUAL_BYTES,
        }
    }
}

/// Whether a value is a picture, a sound or a file, and not a text: base64 in a `data:` URL, or by itself where the part says so.
fn is_media(text: &str, beside: &Map<String, Value>) -> bool {
    let of_data = |data: &str| data.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte));
    let says_base64 = || beside.get("type").is_some_and(|kind| kind == "base64") || beside.contains_key("format");
    text.len() > MIN_MEDIA_BYTES
        && match text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            Some((_, data)) => of_data(data),
            None => says_base64() && of_data(text),
        }
}

/// Whether a document is a text that was counted.
fn is_text_source(part: &Value) -> bool {
    part.pointer("/source/type").is_some_and(|kind| kind == "text" || kind == "content")
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
        assert!((MOST_PICTURE..MOST_PICTURE + 200).contains(&picture.most_tokens()), "{picture:?}");
        let address = json!([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]);
        assert!(size(json!({"model": "m", "messages": [{"role": "user", "content": address}]})).most_tokens() > MOST_PICTURE);
        let ids: EmbeddingRequest = serde_json::from_value(json!({"model": "m", "input": [[1, 2, 3], [4]]})).expect("a request");
        assert_eq!(Size::of_embedding(&ids).likely_tokens(), 4);
    }

    #[test]
    fn only_what_is_base64_where_media_stand_counts_as_media() {
        let part = |part: Value| size(json!({"model": "m", "messages": [{"role": "user", "content": [part]}]}));
        let long = "word ".repeat(40_000);
        for text in [format!("data:{long}"), format!("data:text/plain;base64,{long}")] {
            assert!(part(json!({"type": "text", "text": text})).most_tokens() >= 200_000);
            assert!(part(json!({"type": "image_url", "image_url": {"url": text}})).most_tokens() >= 200_000);
            let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"url": text}}}]);
            assert!(size(json!({"model": "m", "messages": [], "tools": tools})).most_tokens() >= 200_000);
        }
        let encoded = "A".repeat(200_000);
        assert!(part(json!({"type": "tool_use", "input": {"type": "base64", "data": encoded}})).most_tokens() >= 200_000);
        assert!(
            part(json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}})).most_tokens() < 60_000
        );
        let address = part(json!({"type": "image_url", "image_url": {"url": "https://x/y.png?data:image"}}));
        assert!(address.most_tokens() > MOST_PICTURE, "{address:?}");
    }

    #[test]
    fn a_file_may_have_more_tokens_than_a_picture() {
        let part = |part: Value| size(json!({"model": "m", "messages": [{"role": "user", "content": [part]}]}));
        let file = |bytes| json!({"type": "file", "file": {"file_data": format!("data:application/pdf;base64,{}", "A".repeat(bytes))}});
        assert!((300_000..301_000).contains(&part(file(300_000)).most_tokens()));
        assert!((MOST_FILE..MOST_FILE + 1_000).contains(&part(file(3_000_000)).most_tokens()));
        assert!(part(json!({"type": "file", "file": {"file_id": "f"}})).most_tokens() >= MOST_FILE);
        assert!(part(json!({"type": "document", "source": {"type": "text", "data": "x"}})).most_tokens() < 1_000);
        assert!(part(file(3_000_000)).quoted().most_tokens() >= 3_000_000, "a judge reads it as a text");
    }
}
