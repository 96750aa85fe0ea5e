//! Chat chunks written as the events of a streamed message: `message_start`, blocks with their deltas, `message_delta`,
//! `message_stop`. Text and thinking blocks are open one at a time; tool blocks stay open to the end, because chat completions may
//! write several of them in turn.

use super::origins::Origins;
use super::{error, reply};
use crate::gateway::sse::{Encode, event, forwarded};
use crate::inference::AnswerStream;
use crate::providers::{Piece, Protocol};
use crate::types::Failure;
use crate::types::chat::{ChatChunk, ChunkChoice};
use crate::types::messages::{BLOCKS, NATIVE_REASON, signature_block, usage_to_messages};
use serde_json::{Map, Value, json};
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
    said: reply::Said,
    /// Fields of the message that come beside its choices.
    beside: Map<String, Value>,
    origins: Origins,
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
    pub(super) fn new(request_id: String, model: String, origins: Origins) -> Self {
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
            said: reply::Said::default(),
            beside: Map::new(),
            origins,
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
        let beside = chunk.extra.into_iter().filter(|(name, value)| reply::BESIDE.contains(&name.as_str()) && !value.is_null());
        self.beside.extend(beside);
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
        self.said.refuses |= refusal.is_some_and(|text| !text.is_empty());
        for text in [delta.content.as_deref(), refusal].into_iter().flatten().filter(|text| !text.is_empty()) {
            let index = self.block("text", json!({"type": "text", "text": ""}), out);
            out.push_str(&added(index, json!({"type": "text_delta", "text": text})));
        }
        if let Some(signature) = reply::signature(&delta.extra) {
            self.put(&signature_block("", signature), out);
        }
        for call in delta.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.said.calls = true;
            self.tool(call, out);
        }
        for block in delta.extra.get(BLOCKS).and_then(Value::as_array).into_iter().flatten() {
            self.other(block, out);
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
            self.put(thought, out);
            return;
        }
        let index = self.block("thinking", json!({"type": "thinking", "thinking": "", "signature": ""}), out);
        out.push_str(&added(index, json!({"type": "signature_delta", "signature": thought.get("signature").unwrap_or(&json!(""))})));
        self.close(out);
    }

    /// A whole block of a list that SDKs number.
    fn put(&mut self, block: &Value, out: &mut String) {
        self.close(out);
        let mut block = block.clone();
        block.as_object_mut().map(|block| block.shift_remove("index"));
        let index = self.begin(block, out);
        out.push_str(&stopped(index));
    }

    /// A block of a message that is more than a chat completion can say. Text, thinking and calls were written as they came, and the
    /// end of a text brings its citations; other providers' parts have no type.
    fn other(&mut self, block: &Value, out: &mut String) {
        match block.get("type").and_then(Value::as_str) {
            None | Some("thinking" | "redacted_thinking" | "tool_use") => {}
            Some("text") => {
                let citations = block.get("citations").and_then(Value::as_array).into_iter().flatten();
                if let Some((index, "text")) = self.open {
                    citations.for_each(|citation| out.push_str(&added(index, json!({"type": "citations_delta", "citation": citation}))));
                    self.close(out);
                }
            }
            // Clients put the input of a call together from its deltas.
            Some("server_tool_use" | "mcp_tool_use") => {
                self.close(out);
                let mut empty = block.clone();
                let input = std::mem::replace(&mut empty["input"], json!({}));
                empty.as_object_mut().map(|block| block.shift_remove("index"));
                let index = self.begin(empty, out);
                out.push_str(&added(index, json!({"type": "input_json_delta", "partial_json": input.to_string()})));
                out.push_str(&stopped(index));
            }
            Some(_) => self.put(block, out),
        }
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
        if let Some(signature) = reply::signature_of_call(call) {
            self.put(&signature, out);
        }
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
        let reason = self.said.reason(self.finish.as_deref(), self.native.as_deref());
        let usage = usage_to_messages(&stream.usage().cloned().unwrap_or_default());
        let mut delta =
            Map::from_iter([("stop_reason".to_string(), json!(reason)), ("stop_sequence".to_string(), self.stop_sequence.take())]);
        delta.append(&mut self.beside);
        out.push_str(&event("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage})));
        out.push_str(&event("message_stop", &json!({"type": "message_stop"})));
        out
    }

    fn failed(&mut self, failure: &Failure) -> String {
        event("error", &error::body(failure.code(), &self.origins.text(failure), Some(&self.request_id)))
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
