//! A streamed message read as chat chunks. Several blocks of text are one text; tool calls are numbered in the order of their
//! blocks; a thinking block is repeated whole, with its signature, when it ends.

use crate::providers::sse::Event;
use crate::providers::upstream::{self, Decode, Source};
use crate::providers::{Piece, Protocol, ProviderError, RawEvent};
use crate::types::chat::{ChatChunk, ChunkChoice, Delta};
use crate::types::messages::{NATIVE_REASON, finish_reason, usage_of_messages};
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What has been read of a stream so far.
pub(super) struct Events {
    /// The caller speaks this protocol: events are passed on as they are.
    native: bool,
    frame: ChatChunk,
    blocks: HashMap<u64, Block>,
    tools: u32,
    /// Counts, put together from the first and the last events.
    usage: Map<String, Value>,
    whole: bool,
    over: bool,
}

/// A block that has begun.
enum Block {
    Text,
    Thinking(Value),
    Tool { index: u32, input: Value, any: bool },
    Other(Value),
}

impl Events {
    pub(super) fn new(native: bool) -> Self {
        let frame = ChatChunk { object: "chat.completion.chunk".into(), created: now_ms() / 1000, ..ChatChunk::default() };
        Events { native, frame, blocks: HashMap::new(), tools: 0, usage: Map::new(), whole: false, over: false }
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
            "content_block_start" => self.start(index, &event["content_block"]).into_iter().collect(),
            "content_block_delta" => self.delta(index, &event["delta"]).into_iter().collect(),
            "content_block_stop" => self.stop(index).into_iter().collect(),
            "message_delta" => self.end(event),
            "message_stop" => {
                self.over = true;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self, index: u64, block: &Value) -> Option<ChatChunk> {
        let field = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
        let (begun, chunk) = match field("type") {
            "text" => (Block::Text, self.text(field("text"))),
            "thinking" => (Block::Thinking(block.clone()), None),
            "tool_use" => {
                let number = self.tools;
                self.tools += 1;
                let call =
                    json!({"index": number, "id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": ""}});
                (Block::Tool { index: number, input: block["input"].clone(), any: false }, Some(self.field("tool_calls", json!([call]))))
            }
            _ => (Block::Other(block.clone()), None),
        };
        self.blocks.insert(index, begun);
        chunk
    }

    fn delta(&mut self, index: u64, delta: &Value) -> Option<ChatChunk> {
        let field = |name: &str| delta.get(name).and_then(Value::as_str).unwrap_or_default();
        match (field("type"), self.blocks.get_mut(&index)) {
            ("text_delta", _) => self.text(field("text")),
            ("thinking_delta", Some(Block::Thinking(block))) => {
                let so_far = block["thinking"].as_str().unwrap_or_default();
                block["thinking"] = format!("{so_far}{}", field("thinking")).into();
                Some(self.field("reasoning_content", field("thinking").into()))
            }
            ("signature_delta", Some(Block::Thinking(block))) => {
                block["signature"] = field("signature").into();
                None
            }
            ("input_json_delta", Some(Block::Tool { index, any, .. })) => {
                let json = field("partial_json");
                *any |= !json.is_empty();
                let index = *index;
                (!json.is_empty()).then(|| self.arguments(index, json))
            }
            _ => None,
        }
    }

    fn stop(&mut self, index: u64) -> Option<ChatChunk> {
        match self.blocks.remove(&index)? {
            Block::Text => None,
            Block::Thinking(block) => Some(self.field("thinking_blocks", json!([block]))),
            Block::Tool { any: true, .. } => None,
            // A tool without arguments sends none; its caller parses them all the same.
            Block::Tool { index, input, any: false } => {
                let input = if input.is_object() { input.to_string() } else { "{}".into() };
                Some(self.arguments(index, &input))
            }
            Block::Other(block) if block["type"] == "redacted_thinking" => Some(self.field("thinking_blocks", json!([block]))),
            Block::Other(block) => Some(self.field("content_blocks", json!([block]))),
        }
    }

    fn end(&mut self, event: &Value) -> Vec<ChatChunk> {
        self.count(&event["usage"]);
        self.whole = true;
        let delta = &event["delta"];
        let native = delta.get("stop_reason").and_then(Value::as_str).unwrap_or_default();
        let mut last = self.chunk(Delta::default());
        last.choices[0].finish_reason = Some(finish_reason(native).into());
        last.choices[0].extra.insert(NATIVE_REASON.into(), native.into());
        if let Some(sequence) = delta.get("stop_sequence").filter(|sequence| !sequence.is_null()) {
            last.choices[0].extra.insert("stop_sequence".into(), sequence.clone());
        }
        let usage = ChatChunk { usage: Some(usage_of_messages(&self.usage)), ..self.frame.clone() };
        vec![last, usage]
    }

    /// Counts of the last event are totals, and may leave out what the first said.
    fn count(&mut self, usage: &Value) {
        for (name, value) in usage.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            self.usage.insert(name.clone(), value.clone());
        }
    }
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
                None => pieces.push(Piece { chunk: None, raw: Some(raw) }),
            }
        }
        Ok(pieces)
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn is_whole(&self) -> bool {
        self.whole
    }
}
