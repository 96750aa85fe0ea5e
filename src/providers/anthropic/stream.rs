//! A streamed message read as chat chunks. Several blocks of text are one text; tool calls are numbered in the order of their
//! blocks; a thinking block is repeated whole, with its signature, when it ends, and so is every block of a message that is more than
//! chat completions can say.

use crate::providers::sse::Event;
use crate::providers::upstream::{self, Decode, Source};
use crate::providers::{Piece, Protocol, ProviderError, RawEvent};
use crate::types::chat::{ChatChunk, ChunkChoice, Delta};
use crate::types::messages::{BLOCKS, NATIVE_REASON, finish_reason, fits_chat, usage_of_messages};
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What has been read of a stream so far.
pub(super) struct Events {
    /// The caller speaks this protocol: events are passed on as they are.
    native: bool,
    frame: ChatChunk,
    open: HashMap<u64, Block>,
    /// Blocks that have ended, in order; all of them are handed out once [`Events::beyond`] holds.
    done: Vec<Value>,
    told: usize,
    /// Text, thinking and calls alone do not say everything.
    beyond: bool,
    thoughts: u32,
    tools: u32,
    /// Counts, put together from the first and the last events.
    usage: Map<String, Value>,
    finished: bool,
    over: bool,
}

/// A block that has begun.
struct Block {
    body: Value,
    /// Its text, thoughts or JSON so far.
    text: String,
    /// Number of the call that it is.
    call: Option<u32>,
}

impl Block {
    /// The block as a whole reply has it.
    fn whole(mut self) -> Value {
        let field = match self.body["type"].as_str().unwrap_or_default() {
            "text" => "text",
            "thinking" => "thinking",
            _ => {
                if let Ok(input) = crate::types::json::read(self.text.as_bytes(), crate::types::json::MAX_VALUES) {
                    self.body["input"] = input;
                }
                return self.body;
            }
        };
        self.body[field] = self.text.into();
        self.body
    }
}

impl Events {
    pub(super) fn new(native: bool) -> Self {
        Events {
            native,
            frame: ChatChunk { object: "chat.completion.chunk".into(), created: now_ms() / 1000, ..ChatChunk::default() },
            open: HashMap::new(),
            done: Vec::new(),
            told: 0,
            beyond: false,
            thoughts: 0,
            tools: 0,
            usage: Map::new(),
            finished: false,
            over: false,
        }
    }

    fn chunk(&self, delta: Delta) -> ChatChunk {
        ChatChunk { choices: vec![ChunkChoice { delta, ..ChunkChoice::default() }], ..self.frame.clone() }
    }

    fn text(&self, text: &str) -> Option<ChatChunk> {
        (!text.is_empty()).then(|| self.chunk(Delta { content: Some(text.into()), ..Delta::default() }))
    }

    fn field(&self, name: &str, value: Value) -> ChatChunk {
        self.chunk(Delta { extra: Map::from_iter([(name.to_string(), value)]), ..Delta::default() })
    }

    fn arguments(&self, index: u32, arguments: &str) -> ChatChunk {
        self.field("tool_calls", json!([{"index": index, "function": {"arguments": arguments}}]))
    }

    fn read(&mut self, event: &Value) -> Vec<ChatChunk> {
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        match event.get("type").and_then(Value::as_str).unwrap_or_default() {
            "message_start" => {
                let message = &event["message"];
                let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
                (self.frame.id, self.frame.model) = (text("id"), text("model"));
                self.count(&message["usage"]);
                vec![self.chunk(Delta { role: Some("assistant".into()), content: Some(String::new()), ..Delta::default() })]
            }
            "content_block_start" => self.start(index, &event["content_block"]),
            "content_block_delta" => self.delta(index, &event["delta"]).into_iter().collect(),
            "content_block_stop" => self.stop(index),
            "message_delta" => self.ending(event),
            "message_stop" => {
                self.over = true;
                if self.finished { Vec::new() } else { self.finish(&Value::Null, "") }
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self, index: u64, body: &Value) -> Vec<ChatChunk> {
        if !body.is_object() {
            return Vec::new();
        }
        let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        // Whether citations follow is not known yet; with the list there, its text has to be told apart from the one before.
        let cited = body.get("citations").is_some_and(Value::is_array);
        self.beyond = self.beyond || cited || !fits_chat(self.done.iter().chain([body]));
        let mut chunks: Vec<_> = self.blocks().into_iter().collect();
        let mut block = Block { body: body.clone(), text: String::new(), call: None };
        match field("type") {
            kind @ ("text" | "thinking") => {
                block.text = field(kind).into();
                chunks.extend((kind == "text").then(|| self.text(&block.text)).flatten());
            }
            "tool_use" => {
                block.call = Some(self.tools);
                let function = json!({"name": body["name"], "arguments": ""});
                let call = json!({"index": self.tools, "id": body["id"], "type": "function", "function": function});
                chunks.push(self.field("tool_calls", json!([call])));
                self.tools += 1;
            }
            _ => {}
        }
        self.open.insert(index, block);
        chunks
    }

    fn delta(&mut self, index: u64, delta: &Value) -> Option<ChatChunk> {
        let field = |name: &str| delta.get(name).and_then(Value::as_str).unwrap_or_default();
        let block = self.open.get_mut(&index)?;
        match field("type") {
            "text_delta" => {
                block.text.push_str(field("text"));
                self.text(field("text"))
            }
            "thinking_delta" => {
                block.text.push_str(field("thinking"));
                Some(self.field("reasoning_content", field("thinking").into()))
            }
            "signature_delta" => {
                block.body["signature"] = field("signature").into();
                None
            }
            "citations_delta" => {
                self.beyond = true;
                match &mut block.body["citations"] {
                    Value::Array(citations) => citations.push(delta["citation"].clone()),
                    none => *none = json!([delta["citation"]]),
                }
                None
            }
            "input_json_delta" => {
                let json = field("partial_json");
                block.text.push_str(json);
                let call = block.call.filter(|_| !json.is_empty())?;
                Some(self.arguments(call, json))
            }
            _ => None,
        }
    }

    fn stop(&mut self, index: u64) -> Vec<ChatChunk> {
        let Some(block) = self.open.remove(&index) else { return Vec::new() };
        let mut chunks = Vec::new();
        // A tool without arguments sends none; its caller parses them all the same.
        if let Some(call) = block.call.filter(|_| block.text.is_empty()) {
            let input = &block.body["input"];
            chunks.push(self.arguments(call, &if input.is_object() { input.to_string() } else { "{}".into() }));
        }
        let block = block.whole();
        if matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking")) {
            chunks.push(self.field("thinking_blocks", json!([numbered(&block, self.thoughts)])));
            self.thoughts += 1;
        }
        self.done.push(block);
        chunks.extend(self.blocks());
        chunks
    }

    /// The blocks that have ended and were not handed out yet, where they have to be.
    fn blocks(&mut self) -> Option<ChatChunk> {
        let from = if self.beyond { std::mem::replace(&mut self.told, self.done.len()) } else { self.done.len() };
        let new: Vec<_> = (0u32..).zip(&self.done).skip(from).map(|(at, block)| numbered(block, at)).collect();
        (!new.is_empty()).then(|| self.field(BLOCKS, new.into()))
    }

    /// An event between the last block and the end; only with a reason to stop does it end the message.
    fn ending(&mut self, event: &Value) -> Vec<ChatChunk> {
        self.count(&event["usage"]);
        let delta = &event["delta"];
        match delta.get("stop_reason").and_then(Value::as_str) {
            Some(native) if !self.finished => self.finish(delta, native),
            _ if self.finished => vec![self.counts()],
            _ => Vec::new(),
        }
    }

    fn finish(&mut self, delta: &Value, native: &str) -> Vec<ChatChunk> {
        self.finished = true;
        let mut last = self.chunk(Delta::default());
        last.choices[0].finish_reason = Some(finish_reason(native).into());
        if !native.is_empty() {
            last.choices[0].extra.insert(NATIVE_REASON.into(), native.into());
        }
        for (name, value) in delta.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "stop_reason" => {}
                "stop_sequence" => drop(last.choices[0].extra.insert(name.clone(), value.clone())),
                // Where a whole reply has them, too.
                _ => drop(last.extra.insert(name.clone(), value.clone())),
            }
        }
        vec![last, self.counts()]
    }

    fn counts(&self) -> ChatChunk {
        ChatChunk { usage: Some(usage_of_messages(&self.usage)), ..self.frame.clone() }
    }

    /// Counts of the last event are totals, and may leave out what the first said.
    fn count(&mut self, usage: &Value) {
        for (name, value) in usage.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            self.usage.insert(name.clone(), value.clone());
        }
    }
}

/// An entry of a list that grows over a stream; SDKs put such lists together by `index`.
fn numbered(block: &Value, index: u32) -> Value {
    let mut block = block.clone();
    block["index"] = index.into();
    block
}

impl Decode for Events {
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError> {
        let value = upstream::read_event(&event.data, source)?;
        if value["type"] == "error" || event.kind == "error" {
            return Err(upstream::from_body(502, &value, source));
        }
        let mut pieces: Vec<_> = self.read(&value).into_iter().map(Piece::from).collect();
        if self.native {
            let raw = RawEvent { protocol: Protocol::Messages, kind: event.kind, data: event.data };
            match pieces.first_mut() {
                Some(first) => first.raw = Some(raw),
                None => pieces.push(Piece { raw: Some(raw), ..Piece::default() }),
            }
        }
        Ok(pieces)
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// A caller of the same protocol needs the last event, too.
    fn is_whole(&self) -> bool {
        self.over || (self.finished && !self.native)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn time(kind: &str, field: &str) -> Duration {
        let mut events = Events::new(false);
        events.read(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": field, field: ""}}));
        let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: "some words here "}});
        let begun = Instant::now();
        for _ in 0..60_000 {
            assert_eq!(events.read(&delta).len(), 1);
        }
        begun.elapsed()
    }

    #[test]
    fn long_thoughts_cost_what_long_texts_cost() {
        let (text, thinking) = (time("text_delta", "text"), time("thinking_delta", "thinking"));
        assert!(thinking < text * 5 + Duration::from_secs(1), "{thinking:?} for thoughts, {text:?} for text");
    }

    #[test]
    fn a_message_ends_once_and_only_with_a_reason() {
        let mut events = Events::new(false);
        let ending = |reason: Value| json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 3}});
        assert!(events.read(&ending(Value::Null)).is_empty() && !events.is_whole());
        let chunks = events.read(&ending(json!("end_turn")));
        assert_eq!(chunks[0].choices[0].finish_reason.as_deref(), Some("stop"));
        assert!(events.is_whole() && !events.is_over());
        let again = events.read(&ending(json!("end_turn")));
        assert!(again.iter().all(|chunk| chunk.choices.is_empty()), "{again:?}");
        assert!(events.read(&json!({"type": "message_stop"})).is_empty() && events.is_over());

        let mut without = Events::new(true);
        assert_eq!(without.read(&json!({"type": "message_stop"}))[0].choices[0].finish_reason.as_deref(), Some("stop"));
        let mut native = Events::new(true);
        native.read(&ending(json!("end_turn")));
        assert!(!native.is_whole(), "the caller waits for message_stop");
    }
}
