//! What a service answers, made to fit one shape for every caller; events keep their own bytes for callers of the same protocol.

use crate::providers::sse::Event;
use crate::providers::upstream::{self, Decode, Source};
use crate::providers::{Piece, Protocol, ProviderError, RawEvent};
use crate::types::chat::ChatChunk;
use serde_json::Value;
use std::collections::BTreeMap;

/// Fits a whole reply: a role that is not named is the assistant's, thinking in parts (Mistral) stands in `reasoning_content`, too.
pub(super) fn fit(reply: &mut Value) {
    for choice in reply.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(message) = choice.get_mut("message").filter(|message| message.is_object()) else { continue };
        if message.get("role").is_none_or(Value::is_null) {
            message["role"] = "assistant".into();
        }
        think(message);
    }
}

/// Thinking parts of a message's or a delta's content, told in `reasoning_content`.
fn think(message: &mut Value) {
    let parts = message.get("content").and_then(Value::as_array).into_iter().flatten();
    let parts = parts.filter(|part| part.get("type").is_some_and(|kind| kind == "thinking"));
    let text: String = parts.map(|part| thinking(&part["thinking"])).collect();
    if !text.is_empty() && message.get("reasoning_content").is_none_or(Value::is_null) {
        message["reasoning_content"] = text.into();
    }
}

fn thinking(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => String::new(),
    }
}

/// `data: {chunk}` up to `data: [DONE]`.
#[derive(Default)]
pub(super) struct Chunks {
    /// The choices seen, and whether each gave its finish reason.
    ended: BTreeMap<u32, bool>,
    over: bool,
}

/// An event that is a chunk with choices and nothing to be looked at twice, which almost all are: read in one go.
fn plain_chunk(event: &Event) -> Option<ChatChunk> {
    const MAX_BYTES: usize = 16 << 10;
    let plain = event.data.len() <= MAX_BYTES
        && event.kind != "error"
        && !["\"error\"", "\"thinking\""].iter().any(|word| event.data.contains(word));
    // A key may be spelt with escapes, which texts have, too: the slow road reads those.
    let chunk: ChatChunk = if plain && !event.data.contains("\\u") { serde_json::from_str(&event.data).ok()? } else { return None };
    (!chunk.choices.is_empty() && chunk.object != "error").then_some(chunk)
}

/// Any event: an error is told as one, thinking in parts is told in `reasoning_content`, too.
fn chunk(event: &Event, source: &Source) -> Result<ChatChunk, ProviderError> {
    let mut value = upstream::read_event(&event.data, source)?;
    if event.kind == "error" || upstream::is_error(&value) {
        return Err(upstream::from_body(upstream::IN_SUCCESS, &value, source));
    }
    for choice in value.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(delta) = choice.get_mut("delta") {
            think(delta);
        }
    }
    upstream::fitting(value, source)
}

impl Decode for Chunks {
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError> {
        // Some servers never say why a choice ended: their mark of the end counts as one.
        if event.data.trim() == "[DONE]" {
            self.over = true;
            return Ok(Vec::new());
        }
        let chunk = match plain_chunk(&event) {
            Some(chunk) => chunk,
            None => chunk(&event, source)?,
        };
        for choice in &chunk.choices {
            *self.ended.entry(choice.index).or_default() |= choice.finish_reason.is_some();
        }
        let raw = RawEvent { protocol: Protocol::Chat, kind: event.kind, data: event.data };
        Ok(vec![Piece { chunk: Some(chunk), raw: Some(raw) }])
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// A stream that ends before every choice said why it ended was cut off.
    fn is_whole(&self) -> bool {
        !self.ended.is_empty() && self.ended.values().all(|ended| *ended)
    }
}
