//! Chat chunks written as the events of a streamed response. Items begin in the order in which they are first heard of, calls once
//! their name is known; reasoning ends when something else begins, messages and calls at the end of the stream.

use super::reply::{self, Frame, call_id, cut, function_call, logprobs, message, output_text};
use super::seal;
use crate::gateway::openai::names::Names;
use crate::gateway::sse::{Encode, event};
use crate::inference::AnswerStream;
use crate::providers::Piece;
use crate::types::Failure;
use crate::types::chat::{ChatChunk, ChunkChoice};
use crate::types::ids::new_id;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What has been written of a stream so far.
pub(super) struct Events {
    frame: Frame,
    names: Names,
    sequence: u64,
    started: bool,
    model: String,
    items: Vec<Item>,
    /// Calls whose name is not known yet, by their number.
    nameless: BTreeMap<u64, Call>,
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
    /// With what is signed.
    Reasoning(Vec<Value>),
    /// With its probabilities.
    Text(Vec<Value>),
    Refusal,
    Call {
        number: u64,
        call: Call,
    },
}

#[derive(Default)]
struct Call {
    id: String,
    name: String,
    /// Arguments that came before the name.
    early: String,
    /// What the provider adds to it.
    extra: Option<Value>,
}

const REASONING: fn(&Kind) -> bool = |kind| matches!(kind, Kind::Reasoning(_));

impl Events {
    pub(super) fn new(frame: Frame, names: Names) -> Self {
        let model = frame.asked_model.clone();
        Events { frame, names, sequence: 0, started: false, model, items: Vec::new(), nameless: BTreeMap::new(), finish: None }
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
        if !model.is_empty() {
            self.model = model.to_string();
        }
        let response = self.frame.object("in_progress", &self.model, Vec::new());
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
            let at = self.item(REASONING, || Kind::Reasoning(Vec::new()), out);
            self.say(at, thought, Vec::new(), out);
        }
        self.sign(seal::of_message(&delta.extra), out);
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
            Kind::Reasoning(_) => reply::reasoning(&id, "", &[]),
            Kind::Text(_) | Kind::Refusal => message(&id, "in_progress", Vec::new()),
            Kind::Call { call, .. } => function_call(&id, "in_progress", [&call.id, &call.name, ""]),
        };
        out.push_str(&self.write("response.output_item.added", json!({"output_index": at, "item": begun})));
        let part = match &kind {
            Kind::Text(_) => Some(output_text("", Vec::new())),
            Kind::Refusal => Some(json!({"type": "refusal", "refusal": ""})),
            // A summary begins with its first word: thoughts may come without.
            Kind::Reasoning(_) | Kind::Call { .. } => None,
        };
        if let Some(part) = part {
            let fields = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part});
            out.push_str(&self.write("response.content_part.added", fields));
        }
        self.items.push(Item { id, kind, text: String::new(), ended: None });
        at
    }

    /// Keeps what is signed, for the reasoning item.
    fn sign(&mut self, signed: Vec<Value>, out: &mut String) {
        if signed.is_empty() {
            return;
        }
        let at = self.item(REASONING, || Kind::Reasoning(Vec::new()), out);
        if let Kind::Reasoning(so_far) = &mut self.items[at].kind {
            so_far.extend(signed);
        }
    }

    fn say(&mut self, at: usize, text: &str, probabilities: Vec<Value>, out: &mut String) {
        let item = &mut self.items[at];
        let id = item.id.clone();
        let first = item.text.is_empty() && REASONING(&item.kind);
        item.text.push_str(text);
        let (event, fields) = match &mut item.kind {
            Kind::Reasoning(_) => ("response.reasoning_summary_text.delta", json!({"summary_index": 0})),
            Kind::Text(all) => {
                all.extend(probabilities.iter().cloned());
                ("response.output_text.delta", json!({"content_index": 0, "logprobs": probabilities}))
            }
            Kind::Refusal => ("response.refusal.delta", json!({"content_index": 0})),
            Kind::Call { .. } => ("response.function_call_arguments.delta", json!({})),
        };
        let place = json!({"item_id": id, "output_index": at});
        if first {
            let part = json!({"summary_index": 0, "part": {"type": "summary_text", "text": ""}});
            out.push_str(&self.write("response.reasoning_summary_part.added", joined(place.clone(), part)));
        }
        let fields = joined(place, joined(json!({"delta": text}), fields));
        out.push_str(&self.write(event, fields));
    }

    fn call(&mut self, delta: &Value, out: &mut String) {
        let text = |pointer: &str| delta.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let begun = self.items.iter().filter(|item| matches!(item.kind, Kind::Call { .. })).count();
        let wanted = delta.get("index").and_then(Value::as_u64).unwrap_or((begun + self.nameless.len()) as u64);
        let is_wanted = |item: &Item| matches!(item.kind, Kind::Call { number, .. } if number == wanted);
        let arguments = text("/function/arguments");
        if let Some(at) = self.items.iter().position(is_wanted) {
            if !arguments.is_empty() {
                self.say(at, arguments, Vec::new(), out);
            }
            if let Kind::Call { call, .. } = &self.items[at].kind {
                let late = seal::of_call(&call.id, delta);
                self.sign(late.into_iter().collect(), out);
            }
            return;
        }
        let call = self.nameless.entry(wanted).or_default();
        for (so_far, new) in [(&mut call.id, text("/id")), (&mut call.name, text("/function/name"))] {
            if !new.is_empty() {
                *so_far = new.into();
            }
        }
        call.early.push_str(arguments);
        if let Some(extra) = delta.get("extra_content") {
            call.extra = Some(extra.clone());
        }
        if !call.name.is_empty() {
            self.begin_call(wanted, out);
        }
    }

    /// Begins the item of a call, after the one that holds what is signed of it.
    fn begin_call(&mut self, number: u64, out: &mut String) {
        let Some(mut call) = self.nameless.remove(&number) else { return };
        let told = json!({"id": call.id, "extra_content": call.extra.take()});
        call.id = call_id(&told);
        self.sign(seal::of_call(&call.id, &told).into_iter().collect(), out);
        let early = std::mem::take(&mut call.early);
        let at = self.begin(Kind::Call { number, call }, out);
        if !early.is_empty() {
            self.say(at, &early, Vec::new(), out);
        }
    }

    /// Ends an item that is still open.
    fn finish_item(&mut self, at: usize, out: &mut String) {
        let is_cut = at + 1 == self.items.len() && self.finish.as_deref().and_then(cut).is_some();
        let status = if is_cut { "incomplete" } else { "completed" };
        let item = &mut self.items[at];
        if item.ended.is_some() {
            return;
        }
        let (id, text) = (item.id.clone(), item.text.clone());
        let place = json!({"item_id": id, "output_index": at});
        let (events, ended) = match &item.kind {
            Kind::Reasoning(signed) => {
                let part = json!({"summary_index": 0, "part": {"type": "summary_text", "text": text}});
                let mut events = vec![
                    ("response.reasoning_summary_text.done", json!({"summary_index": 0, "text": text})),
                    ("response.reasoning_summary_part.done", part),
                ];
                if text.is_empty() {
                    events.clear();
                }
                (events, reply::reasoning(&id, &text, signed))
            }
            Kind::Text(probabilities) => {
                let part = output_text(&text, probabilities.clone());
                let events = vec![
                    ("response.output_text.done", json!({"content_index": 0, "text": text, "logprobs": probabilities})),
                    ("response.content_part.done", json!({"content_index": 0, "part": part})),
                ];
                (events, message(&id, status, vec![part]))
            }
            Kind::Refusal => {
                let part = json!({"type": "refusal", "refusal": text});
                let events = vec![
                    ("response.refusal.done", json!({"content_index": 0, "refusal": text})),
                    ("response.content_part.done", json!({"content_index": 0, "part": part})),
                ];
                (events, message(&id, status, vec![part]))
            }
            Kind::Call { call, .. } => {
                let events = vec![("response.function_call_arguments.done", json!({"arguments": text, "name": call.name}))];
                (events, function_call(&id, status, [&call.id, &call.name, &text]))
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
        for number in self.nameless.keys().copied().collect::<Vec<_>>() {
            self.begin_call(number, &mut out);
        }
        if self.items.iter().all(|item| matches!(item.kind, Kind::Reasoning(_))) {
            self.begin(Kind::Text(Vec::new()), &mut out);
        }
        for at in 0..self.items.len() {
            self.finish_item(at, &mut out);
        }
        let output = self.items.iter().filter_map(|item| item.ended.clone()).collect();
        self.frame.rendered(stream.told.prompt.as_deref());
        let response = self.frame.ended(&self.model, self.finish.as_deref().unwrap_or("stop"), output, stream.usage());
        let event = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        out.push_str(&self.write(event, json!({"response": response})));
        out
    }

    fn failed(&mut self, failure: &Failure) -> String {
        // Clients refuse whatever comes before the beginning, and with it the reason.
        let mut out = self.start("");
        let (param, message) = self.names.words(failure);
        out.push_str(&self.write("error", json!({"code": failure.code().name, "message": message, "param": param})));
        let output = self.items.iter().filter_map(|item| item.ended.clone()).collect();
        let mut response = self.frame.object("failed", &self.model, output);
        // The few words that a response has for it.
        let code = match failure.code().kind {
            "rate_limit_error" => "rate_limit_exceeded",
            "invalid_request_error" => "invalid_prompt",
            _ => "server_error",
        };
        response.insert("error".into(), json!({"code": code, "message": message}));
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
