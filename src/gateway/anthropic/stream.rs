//! Chat chunks written as the events of a streamed message: `message_start`, blocks with their deltas, `message_delta`,
//! `message_stop`. Text and thinking blocks are open one at a time; tool blocks stay open to the end, because chat completions may
//! write several of them in turn.

use super::{error, reply};
use crate::gateway::sse::{Encode, event, forwarded};
use crate::inference::AnswerStream;
use crate::providers::{Piece, Protocol};
use crate::types::Failure;
use crate::types::chat::{ChatChunk, ChunkChoice};
use crate::types::messages::{NATIVE_REASON, stop_reason, usage_to_messages};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What has been written of a stream so far.
pub(super) struct Events {
    request_id: String,
    model: String,
    /// The provider's own events are forwarded; nothing is written here.
    forwarding: bool,
    started: bool,
    blocks: u64,
    /// The open block of text or thinking: its number and type.
    open: Option<(u64, &'static str)>,
    tools: BTreeMap<u64, Tool>,
    finish: Option<String>,
    native: Option<String>,
    stop_sequence: Value,
}

/// A tool call; its block begins once its name is known.
#[derive(Default)]
struct Tool {
    block: Option<u64>,
    id: String,
    name: String,
    /// Arguments that came before the name.
    early: String,
}

impl Events {
    pub(super) fn new(request_id: String, model: String) -> Self {
        Events {
            request_id,
            model,
            forwarding: false,
            started: false,
            blocks: 0,
            open: None,
            tools: BTreeMap::new(),
            finish: None,
            native: None,
            stop_sequence: Value::Null,
        }
    }

    fn start(&mut self, id: &str, model: &str) -> String {
        if std::mem::replace(&mut self.started, true) {
            return String::new();
        }
        let message = json!({"id": id, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}});
        event("message_start", &json!({"type": "message_start", "message": message}))
    }

    fn chunk(&mut self, chunk: ChatChunk) -> String {
        let mut out = self.start(&chunk.id, &chunk.model);
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            self.choice(&choice, &mut out);
        }
        out
    }

    fn choice(&mut self, choice: &ChunkChoice, out: &mut String) {
        let delta = &choice.delta;
        if let Some(text) = reply::reasoning(&delta.extra) {
            let index = self.block("thinking", json!({"type": "thinking", "thinking": "", "signature": ""}), out);
            out.push_str(&added(index, json!({"type": "thinking_delta", "thinking": text})));
        }
        for thought in delta.extra.get("thinking_blocks").and_then(Value::as_array).into_iter().flatten() {
            self.thought(thought, out);
        }
        let refusal = delta.extra.get("refusal").and_then(Value::as_str);
        for text in [delta.content.as_deref(), refusal].into_iter().flatten().filter(|text| !text.is_empty()) {
            let index = self.block("text", json!({"type": "text", "text": ""}), out);
            out.push_str(&added(index, json!({"type": "text_delta", "text": text})));
        }
        for call in delta.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.tool(call, out);
        }
        if let Some(finish) = &choice.finish_reason {
            self.finish = Some(finish.clone());
        }
        if let Some(native) = choice.extra.get(NATIVE_REASON).and_then(Value::as_str) {
            self.native = Some(native.to_string());
        }
        if let Some(sequence) = choice.extra.get("stop_sequence") {
            self.stop_sequence = sequence.clone();
        }
    }

    /// Number of the open block of this type, begun if need be.
    fn block(&mut self, kind: &'static str, empty: Value, out: &mut String) -> u64 {
        if let Some((index, open)) = self.open {
            if open == kind {
                return index;
            }
            out.push_str(&stopped(index));
        }
        let index = self.begin(empty, out);
        self.open = Some((index, kind));
        index
    }

    fn begin(&mut self, block: Value, out: &mut String) -> u64 {
        let index = self.blocks;
        self.blocks += 1;
        out.push_str(&event("content_block_start", &json!({"type": "content_block_start", "index": index, "content_block": block})));
        index
    }

    /// The end of a thinking block: its signature, or a block whose thoughts are not shown.
    fn thought(&mut self, thought: &Value, out: &mut String) {
        if thought["type"] == "redacted_thinking" {
            self.close(out);
            let index = self.begin(thought.clone(), out);
            out.push_str(&stopped(index));
            return;
        }
        let index = self.block("thinking", json!({"type": "thinking", "thinking": "", "signature": ""}), out);
        out.push_str(&added(index, json!({"type": "signature_delta", "signature": thought.get("signature").unwrap_or(&json!(""))})));
        self.close(out);
    }

    fn close(&mut self, out: &mut String) {
        if let Some((index, _)) = self.open.take() {
            out.push_str(&stopped(index));
        }
    }

    fn tool(&mut self, call: &Value, out: &mut String) {
        let number = call.get("index").and_then(Value::as_u64).unwrap_or(self.tools.len() as u64);
        let text = |pointer: &str| call.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let mut tool = self.tools.remove(&number).unwrap_or_default();
        if tool.block.is_none() {
            tool.id.push_str(text("/id"));
            tool.name.push_str(text("/function/name"));
            tool.early.push_str(text("/function/arguments"));
            if !tool.name.is_empty() {
                self.close(out);
                let block = json!({"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}});
                tool.block = Some(self.begin(block, out));
            }
        } else {
            tool.early.push_str(text("/function/arguments"));
        }
        if let Some(index) = tool.block {
            let arguments = std::mem::take(&mut tool.early);
            if !arguments.is_empty() {
                out.push_str(&added(index, json!({"type": "input_json_delta", "partial_json": arguments})));
            }
        }
        self.tools.insert(number, tool);
    }
}

impl Encode for Events {
    fn piece(&mut self, piece: Piece) -> String {
        let raw = piece.raw.filter(|raw| raw.protocol == Protocol::Messages);
        if let Some(raw) = raw {
            self.forwarding = true;
            return forwarded(Some(&raw.kind), &raw.data).unwrap_or_else(|| {
                // A text of several lines is written on one.
                serde_json::from_str::<Value>(&raw.data).map(|value| event(&raw.kind, &value)).unwrap_or_default()
            });
        }
        if self.forwarding {
            return String::new();
        }
        piece.chunk.map(|chunk| self.chunk(chunk)).unwrap_or_default()
    }

    fn end(&mut self, stream: &AnswerStream) -> String {
        if self.forwarding {
            return String::new();
        }
        let model = self.model.clone();
        let mut out = self.start(&stream.request_id, &model);
        self.close(&mut out);
        for tool in std::mem::take(&mut self.tools).into_values() {
            out.push_str(&tool.block.map(stopped).unwrap_or_default());
        }
        let reason = stop_reason(self.finish.as_deref().unwrap_or("stop"), self.native.as_deref());
        let usage = usage_to_messages(&stream.usage().cloned().unwrap_or_default());
        let delta = json!({"stop_reason": reason, "stop_sequence": self.stop_sequence});
        out.push_str(&event("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage})));
        out.push_str(&event("message_stop", &json!({"type": "message_stop"})));
        out
    }

    fn failed(&mut self, failure: &Failure) -> String {
        event("error", &error::body(failure.code(), &failure.told(), Some(&self.request_id)))
    }

    fn keep_alive(&self) -> &'static str {
        "event: ping\ndata: {\"type\": \"ping\"}\n\n"
    }
}

fn added(index: u64, delta: Value) -> String {
    event("content_block_delta", &json!({"type": "content_block_delta", "index": index, "delta": delta}))
}

fn stopped(index: u64) -> String {
    event("content_block_stop", &json!({"type": "content_block_stop", "index": index}))
}
