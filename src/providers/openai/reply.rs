//! What a service answers, made to fit one shape for every caller; events keep their own bytes for callers of the same protocol.

use crate::providers::sse::Event;
use crate::providers::upstream::{self, Decode, Source};
use crate::providers::{Passage, Piece, Protocol, ProviderError, RawEvent, Said};
use crate::types::chat::{ChatChunk, ChunkChoice, Delta, Usage};
use crate::types::text::{IsText, Text};
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
pub(super) struct Chunks {
    /// Whether what needs no reading may go on as it is.
    passes: bool,
    /// The choices seen, and whether each gave its finish reason.
    ended: BTreeMap<u32, bool>,
    over: bool,
}

impl Chunks {
    pub(super) fn new(passes: bool) -> Self {
        Chunks { passes, ended: BTreeMap::new(), over: false }
    }
}

/// Larger events are read with the bounds of [`json`](crate::types::json).
const MAX_PLAIN_BYTES: usize = 16 << 10;

/// A chunk that adds text to one choice, or ends it, and does nothing else: read without keeping what nobody asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passing<'a> {
    #[serde(rename = "id")]
    _id: IsText,
    #[serde(borrow)]
    object: Text<'a>,
    #[serde(rename = "created")]
    _created: i64,
    #[serde(rename = "model")]
    _model: IsText,
    #[serde(borrow)]
    choices: (PassingChoice<'a>,),
    #[serde(default, rename = "usage")]
    _usage: (),
    #[serde(default, rename = "service_tier")]
    _service_tier: Option<IsText>,
    #[serde(default, rename = "system_fingerprint")]
    _system_fingerprint: Option<IsText>,
    #[serde(default, rename = "obfuscation")]
    _obfuscation: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PassingChoice<'a> {
    index: u32,
    #[serde(borrow)]
    delta: PassingDelta<'a>,
    #[serde(default, borrow)]
    finish_reason: Option<Text<'a>>,
    #[serde(default, rename = "logprobs")]
    _logprobs: (),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PassingDelta<'a> {
    #[serde(default, borrow)]
    role: Option<Text<'a>>,
    #[serde(default, borrow)]
    content: Option<Text<'a>>,
    #[serde(default, rename = "refusal")]
    _refusal: (),
}

impl Passing<'_> {
    /// Adds the chunk to what goes on.
    fn add_to(self, passage: &mut Passage) {
        let (PassingChoice { index, delta, finish_reason, .. },) = self.choices;
        let at = passage.said.iter().position(|said| said.index == index).unwrap_or_else(|| {
            passage.said.push(Said { index, ..Said::default() });
            passage.said.len() - 1
        });
        let said = &mut passage.said[at];
        said.text.push_str(delta.content.as_deref().unwrap_or_default());
        if let Some(reason) = finish_reason.filter(|reason| !reason.is_empty()) {
            said.finish_reason = Some(reason.to_string());
        }
    }
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
    if event.data.len() > MAX_PLAIN_BYTES || event.kind == "error" {
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
        Ok(vec![Piece { chunk: Some(chunk), raw: Some(raw), passage: None }])
    }

    fn pass(&mut self, event: &Event, passage: &mut Passage) -> bool {
        if !self.passes || event.data.len() > MAX_PLAIN_BYTES || event.kind != "message" {
            return false;
        }
        let Ok(passing) = serde_json::from_str::<Passing<'_>>(&event.data) else { return false };
        let choice = &passing.choices.0;
        // Of the first chunk of a choice more is read.
        let (Some(ended), "chat.completion.chunk") = (self.ended.get_mut(&choice.index), &*passing.object) else { return false };
        if choice.delta.role.as_deref().is_some_and(|role| role != "assistant")
            || memchr::memchr2(b'\n', b'\r', event.data.as_bytes()).is_some()
        {
            return false;
        }
        *ended |= choice.finish_reason.as_deref().is_some_and(|reason| !reason.is_empty());
        passage.events.push_str("data: ");
        passage.events.push_str(&event.data);
        passage.events.push_str("\n\n");
        passing.add_to(passage);
        true
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// A stream that ends before every choice said why it ended was cut off.
    fn is_whole(&self) -> bool {
        !self.ended.is_empty() && self.ended.values().all(|ended| *ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(choices: Value, more: Value) -> Event {
        let mut chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices});
        for (name, value) in more.as_object().expect("an object") {
            chunk[name] = value.clone();
        }
        Event { kind: "message".into(), data: chunk.to_string() }
    }

    #[test]
    fn only_what_needs_no_reading_passes() {
        let source = Source { provider: "p".into(), model: "m".into(), key: None };
        let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": null}]);
        let text = || choice(json!({"content": "a\n\u{e9}"}), json!(null));
        let mut chunks = Chunks::new(true);
        let mut passage = Passage::default();
        assert!(!chunks.pass(&event(text(), json!({})), &mut passage), "the first of a choice is read");
        chunks.event(event(text(), json!({})), &source).expect("a chunk");
        let passes = [
            (text(), json!({})),
            (choice(json!({"role": "assistant", "content": "b", "refusal": null}), json!("")), json!({"usage": null, "obfuscation": "xy"})),
            (choice(json!({}), json!("stop")), json!({"service_tier": "default", "system_fingerprint": null})),
        ];
        let mut sent = String::new();
        for (choices, more) in passes {
            let event = event(choices, more);
            assert!(chunks.pass(&event, &mut passage), "{}", event.data);
            sent.push_str(&format!("data: {}\n\n", event.data));
        }
        assert_eq!(passage.events, sent);
        let Said { index, text: said, finish_reason } = &passage.said[0];
        assert_eq!((passage.said.len(), *index, said.as_str(), finish_reason.as_deref()), (1, 0, "a\n\u{e9}b", Some("stop")));
        assert!(chunks.is_whole());

        let reads = [
            event(json!([]), json!({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})),
            event(text(), json!({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})),
            event(text(), json!({"citations": ["x"]})),
            event(text(), json!({"object": "error"})),
            event(choice(json!({"tool_calls": []}), json!(null)), json!({})),
            event(choice(json!({"reasoning_content": "hm"}), json!(null)), json!({})),
            event(choice(json!({"content": [{"type": "text", "text": "x"}]}), json!(null)), json!({})),
            event(choice(json!({"role": "tool", "content": "x"}), json!(null)), json!({})),
            event(json!([{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": []}}]), json!({})),
            event(json!([{"index": 1, "delta": {"content": "x"}}]), json!({})),
            event(json!([{"index": 0, "delta": {"content": "x"}}, {"index": 0, "delta": {}}]), json!({})),
            Event { kind: "error".into(), ..event(text(), json!({})) },
            Event { kind: "message".into(), data: event(text(), json!({})).data.replacen(',', ",\n", 1) },
            Event { kind: "message".into(), data: "[DONE]".into() },
            Event { kind: "message".into(), data: "{".into() },
        ];
        let before = passage.events.len();
        for event in reads {
            assert!(!chunks.pass(&event, &mut passage), "{}", event.data);
        }
        assert_eq!((passage.events.len(), passage.said.len()), (before, 1));
        assert!(!Chunks::new(false).pass(&event(text(), json!({})), &mut passage));
    }
}
