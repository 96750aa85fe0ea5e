//! What a service answers, made to fit one shape for every caller; events keep their own bytes for callers of the same protocol.

use crate::providers::sse::Event;
use crate::providers::upstream::{self, Decode, Source};
use crate::providers::{Piece, Protocol, ProviderError, RawEvent};
use crate::types::chat::{ChatChunk, ChunkChoice, Delta, Usage};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
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

/// A chunk as almost all are: texts where they belong, and no field that would have to be kept. `null` is nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slim {
    id: String,
    object: String,
    created: i64,
    model: String,
    choices: Vec<SlimChoice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    service_tier: Option<String>,
    #[serde(default)]
    system_fingerprint: Option<String>,
    /// Random letters that hide how long an event is.
    #[serde(default, rename = "obfuscation")]
    _obfuscation: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlimChoice {
    index: u32,
    delta: SlimDelta,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default, rename = "logprobs")]
    _logprobs: (),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlimDelta {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default, rename = "refusal")]
    _refusal: (),
}

impl From<Slim> for ChatChunk {
    fn from(slim: Slim) -> Self {
        let Slim { id, object, created, model, choices, usage, service_tier, system_fingerprint, _obfuscation } = slim;
        let choice = |SlimChoice { index, delta: SlimDelta { role, content, .. }, finish_reason, .. }| ChunkChoice {
            index,
            delta: Delta { role, content, extra: Map::new() },
            // An empty text is no reason.
            finish_reason: finish_reason.filter(|reason| !reason.is_empty()),
            extra: Map::new(),
        };
        let named = [("service_tier", service_tier), ("system_fingerprint", system_fingerprint)];
        let extra = named.into_iter().filter_map(|(name, text)| Some((name.to_string(), text?.into()))).collect();
        ChatChunk { id, object, created, model, choices: choices.into_iter().map(choice).collect(), usage, extra }
    }
}

/// An event that is a chunk with choices and nothing to be looked at twice, which almost all are: read in one go.
fn plain_chunk(event: &Event) -> Option<ChatChunk> {
    const MAX_BYTES: usize = 16 << 10;
    if event.data.len() > MAX_BYTES || event.kind == "error" {
        return None;
    }
    let slim: Slim = serde_json::from_str(&event.data).ok()?;
    (!slim.choices.is_empty() && slim.object != "error").then(|| slim.into())
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
