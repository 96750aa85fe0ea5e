//! Chat chunks written as the events of a streamed response. Items begin in the order in which they are first heard of; reasoning
//! ends when something else begins, messages and calls at the end of the stream.

use super::reply::{Frame, function_call, logprobs, message, output_text};
use crate::gateway::sse::{Encode, event};
use crate::inference::AnswerStream;
use crate::providers::Piece;
use crate::types::Failure;
use crate::types::chat::{ChatChunk, ChunkChoice};
use crate::types::ids::new_id;
use serde_json::{Map, Value, json};

/// What has been written of a stream so far.
pub(super) struct Events {
    frame: Frame,
    sequence: u64,
    started: bool,
    model: String,
    items: Vec<Item>,
    finish: Option<String>,
}

/// An output item; its position in the list is its `output_index`.
struct Item {
    id: String,
    kind: Kind,
    /// Text, summary or arguments so far.
    text: String,
    ended: Option<Value>,
}

enum Kind {
    Reasoning(Vec<Value>),
    Text(Vec<Value>),
    Refusal,
    Call { number: u64, call_id: String, name: String },
}

impl Events {
    pub(super) fn new(frame: Frame) -> Self {
        Events { frame, sequence: 0, started: false, model: String::new(), items: Vec::new(), finish: None }
    }

    /// One event, with its number.
    fn write(&mut self, kind: &str, fields: Value) -> String {
        let mut body = Map::from_iter([("type".to_string(), json!(kind)), ("sequence_number".to_string(), json!(self.sequence))]);
        self.sequence += 1;
        if let Value::Object(fields) = fields {
            body.extend(fields);
        }
        event(kind, &body)
    }

    fn start(&mut self, model: &str) -> String {
        if std::mem::replace(&mut self.started, true) {
            return String::new();
        }
        self.model = model.to_string();
        let response = self.frame.object("in_progress", model, Vec::new());
        let mut out = self.write("response.created", json!({"response": response.clone()}));
        out.push_str(&self.write("response.in_progress", json!({"response": response})));
        out
    }

    fn chunk(&mut self, chunk: ChatChunk) -> String {
        let mut out = self.start(&chunk.model);
        for choice in chunk.choices.iter().filter(|choice| choice.index == 0) {
            self.choice(choice, &mut out);
        }
        out
    }

    fn choice(&mut self, choice: &ChunkChoice, out: &mut String) {
        let delta = &choice.delta;
        let text = |name: &str| delta.extra.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(thought) = text("reasoning_content").or_else(|| text("reasoning")) {
            let at = self.item(|kind| matches!(kind, Kind::Reasoning(_)), || Kind::Reasoning(Vec::new()), out);
            self.say(at, thought, Vec::new(), out);
        }
        if let Some(Value::Array(blocks)) = delta.extra.get("thinking_blocks") {
            let at = self.item(|kind| matches!(kind, Kind::Reasoning(_)), || Kind::Reasoning(Vec::new()), out);
            if let Kind::Reasoning(thoughts) = &mut self.items[at].kind {
                thoughts.extend(blocks.iter().cloned());
            }
        }
        if let Some(said) = delta.content.as_deref().filter(|text| !text.is_empty()) {
            let at = self.item(|kind| matches!(kind, Kind::Text(_)), || Kind::Text(Vec::new()), out);
            self.say(at, said, logprobs(choice.extra.get("logprobs")), out);
        }
        if let Some(refusal) = text("refusal") {
            let at = self.item(|kind| matches!(kind, Kind::Refusal), || Kind::Refusal, out);
            self.say(at, refusal, Vec::new(), out);
        }
        for call in delta.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.call(call, out);
        }
        if choice.finish_reason.is_some() {
            self.finish.clone_from(&choice.finish_reason);
        }
    }

    /// Position of the item of this kind that is still open, begun if need be.
    fn item(&mut self, same: impl Fn(&Kind) -> bool, kind: impl FnOnce() -> Kind, out: &mut String) -> usize {
        let open = self.items.iter().position(|item| item.ended.is_none() && same(&item.kind));
        open.unwrap_or_else(|| self.begin(kind(), out))
    }

    fn begin(&mut self, kind: Kind, out: &mut String) -> usize {
        for at in 0..self.items.len() {
            if matches!(self.items[at].kind, Kind::Reasoning(_)) {
                self.finish_item(at, out);
            }
        }
        let prefix = match &kind {
            Kind::Reasoning(_) => "rs",
            Kind::Text(_) | Kind::Refusal => "msg",
            Kind::Call { .. } => "fc",
        };
        let (id, at) = (new_id(prefix), self.items.len());
        let begun = match &kind {
            Kind::Reasoning(_) => self.frame.reasoning(&id, "", None),
            Kind::Text(_) | Kind::Refusal => message(&id, "in_progress", Vec::new()),
            Kind::Call { call_id, name, .. } => function_call(&id, "in_progress", [call_id, name, ""]),
        };
        out.push_str(&self.write("response.output_item.added", json!({"output_index": at, "item": begun})));
        let part = match &kind {
            Kind::Reasoning(_) => {
                Some(("response.reasoning_summary_part.added", "summary_index", json!({"type": "summary_text", "text": ""})))
            }
            Kind::Text(_) => Some(("response.content_part.added", "content_index", output_text("", Vec::new()))),
            Kind::Refusal => Some(("response.content_part.added", "content_index", json!({"type": "refusal", "refusal": ""}))),
            Kind::Call { .. } => None,
        };
        if let Some((event, index, part)) = part {
            out.push_str(&self.write(event, json!({"item_id": id, "output_index": at, index: 0, "part": part})));
        }
        self.items.push(Item { id, kind, text: String::new(), ended: None });
        at
    }

    fn say(&mut self, at: usize, text: &str, probabilities: Vec<Value>, out: &mut String) {
        let item = &mut self.items[at];
        item.text.push_str(text);
        let id = item.id.clone();
        let (event, fields) = match &mut item.kind {
            Kind::Reasoning(_) => ("response.reasoning_summary_text.delta", json!({"summary_index": 0})),
            Kind::Text(all) => {
                all.extend(probabilities.iter().cloned());
                ("response.output_text.delta", json!({"content_index": 0, "logprobs": probabilities}))
            }
            Kind::Refusal => ("response.refusal.delta", json!({"content_index": 0})),
            Kind::Call { .. } => ("response.function_call_arguments.delta", json!({})),
        };
        let fields = joined(json!({"item_id": id, "output_index": at, "delta": text}), fields);
        out.push_str(&self.write(event, fields));
    }

    fn call(&mut self, call: &Value, out: &mut String) {
        let text = |pointer: &str| call.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let known = self.items.iter().filter(|item| matches!(item.kind, Kind::Call { .. })).count() as u64;
        let wanted = call.get("index").and_then(Value::as_u64).unwrap_or(known);
        let same = |kind: &Kind| matches!(kind, Kind::Call { number, .. } if *number == wanted);
        let kind = || Kind::Call { number: wanted, call_id: text("/id").into(), name: text("/function/name").into() };
        let at = self.item(same, kind, out);
        let arguments = text("/function/arguments");
        if !arguments.is_empty() {
            self.say(at, arguments, Vec::new(), out);
        }
    }

    /// Ends an item that is still open.
    fn finish_item(&mut self, at: usize, out: &mut String) {
        let item = &mut self.items[at];
        if item.ended.is_some() {
            return;
        }
        let (id, text) = (item.id.clone(), item.text.clone());
        let place = json!({"item_id": id, "output_index": at});
        let (events, ended) = match &item.kind {
            Kind::Reasoning(thoughts) => {
                let part = json!({"summary_index": 0, "part": {"type": "summary_text", "text": text}});
                let thoughts = (!thoughts.is_empty()).then(|| json!(thoughts));
                let events = vec![
                    ("response.reasoning_summary_text.done", json!({"summary_index": 0, "text": text})),
                    ("response.reasoning_summary_part.done", part),
                ];
                (events, self.frame.reasoning(&id, &text, thoughts.as_ref()))
            }
            Kind::Text(probabilities) => {
                let part = output_text(&text, probabilities.clone());
                let events = vec![
                    ("response.output_text.done", json!({"content_index": 0, "text": text, "logprobs": probabilities})),
                    ("response.content_part.done", json!({"content_index": 0, "part": part})),
                ];
                (events, message(&id, "completed", vec![part]))
            }
            Kind::Refusal => {
                let part = json!({"type": "refusal", "refusal": text});
                let events = vec![
                    ("response.refusal.done", json!({"content_index": 0, "refusal": text})),
                    ("response.content_part.done", json!({"content_index": 0, "part": part})),
                ];
                (events, message(&id, "completed", vec![part]))
            }
            Kind::Call { call_id, name, .. } => {
                let events = vec![("response.function_call_arguments.done", json!({"arguments": text, "name": name}))];
                (events, function_call(&id, "completed", [call_id, name, &text]))
            }
        };
        item.ended = Some(ended.clone());
        for (event, fields) in events {
            out.push_str(&self.write(event, joined(place.clone(), fields)));
        }
        out.push_str(&self.write("response.output_item.done", json!({"output_index": at, "item": ended})));
    }
}

impl Encode for Events {
    fn piece(&mut self, piece: Piece) -> String {
        piece.chunk.map(|chunk| self.chunk(chunk)).unwrap_or_default()
    }

    fn end(&mut self, stream: &AnswerStream) -> String {
        let mut out = self.start(&stream.model);
        if self.items.iter().all(|item| matches!(item.kind, Kind::Reasoning(_))) {
            self.begin(Kind::Text(Vec::new()), &mut out);
        }
        for at in 0..self.items.len() {
            self.finish_item(at, &mut out);
        }
        let output = self.items.iter().filter_map(|item| item.ended.clone()).collect();
        let response = self.frame.ended(&self.model, self.finish.as_deref().unwrap_or("stop"), output, stream.usage());
        let event = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        out.push_str(&self.write(event, json!({"response": response})));
        out
    }

    fn failed(&mut self, failure: &Failure) -> String {
        let error = failure.to_json()["error"].take();
        let mut out = self.write("error", json!({"code": error["code"], "message": error["message"], "param": error["param"]}));
        let output = self.items.iter().filter_map(|item| item.ended.clone()).collect();
        let mut response = self.frame.object("failed", &self.model, output);
        let code = if failure.code().name == "rate_limit_exceeded" { "rate_limit_exceeded" } else { "server_error" };
        response.insert("error".into(), json!({"code": code, "message": error["message"]}));
        out.push_str(&self.write("response.failed", json!({"response": response})));
        out
    }
}

fn joined(mut fields: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), more) {
        fields.extend(more);
    }
    fields
}
