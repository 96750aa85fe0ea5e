//! The chunks of a stream put together as the reply they make, for the log. What it says is kept up to a bound, and only where it is
//! logged; how it ended, its tokens and its choices always.

use crate::providers::{Passage, Said};
use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Content, Delta, Message};
use serde_json::{Map, Value, json};

/// Bytes of a reply that the log keeps.
pub(super) const MAX_KEPT_BYTES: usize = 4 << 20;
/// Choices of a reply: as many as may be asked for.
const MAX_CHOICES: usize = 128;
const LOGPROBS: &str = "logprobs";

/// A reply as far as it has come.
pub(super) struct Assembly {
    pub(super) reply: ChatResponse,
    /// Bytes of text that have come, kept or not.
    pub(super) heard_bytes: u64,
    /// Bytes that may still be kept.
    room: usize,
    cut: bool,
}

impl Assembly {
    /// Keeps up to `room` bytes of what is said.
    pub(super) fn new(room: usize) -> Self {
        Assembly { reply: ChatResponse::default(), heard_bytes: 0, room, cut: room == 0 }
    }

    /// Whether all that was said is kept.
    pub(super) fn is_whole(&self) -> bool {
        !self.cut
    }

    /// Whether a choice has been seen.
    pub(super) fn knows(&self, index: u32) -> bool {
        self.reply.choices.iter().any(|choice| choice.index == index) || self.reply.choices.len() >= MAX_CHOICES
    }

    /// Adds one chunk.
    pub(super) fn add(&mut self, chunk: &ChatChunk) {
        let reply = &mut self.reply;
        if reply.id.is_empty() {
            reply.id = chunk.id.clone();
            reply.object = "chat.completion".into();
            reply.created = chunk.created;
            reply.model = chunk.model.clone();
        }
        if chunk.usage.is_some() {
            reply.usage.clone_from(&chunk.usage);
        }
        let keep = self.has_room_for(weight(chunk));
        if keep {
            merge(&mut self.reply.extra, &chunk.extra);
        }
        for piece in &chunk.choices {
            self.heard_bytes += said(&piece.delta);
            let choices = &mut self.reply.choices;
            let at = choices.iter().position(|choice| choice.index == piece.index);
            if at.is_none() && choices.len() >= MAX_CHOICES {
                self.cut = true;
                continue;
            }
            let at = at.unwrap_or_else(|| {
                choices.push(Choice { index: piece.index, ..Choice::default() });
                choices.len() - 1
            });
            add_choice(&mut choices[at], piece, keep);
        }
    }

    /// Adds events that were passed on.
    pub(super) fn add_passage(&mut self, passage: &Passage) {
        let keep = self.has_room_for(passage.said.iter().map(|said| said.text.len()).sum());
        for Said { index, text, finish_reason } in &passage.said {
            self.heard_bytes += text.len() as u64;
            // None only where there were too many.
            let Some(choice) = self.reply.choices.iter_mut().find(|choice| choice.index == *index) else { continue };
            choice.finish_reason = finish_reason.clone().or_else(|| choice.finish_reason.take());
            if keep && !text.is_empty() {
                say(&mut choice.message, text);
            }
        }
    }

    /// From the first that does not fit nothing is kept: a text with a hole would be read as whole.
    fn has_room_for(&mut self, weight: usize) -> bool {
        if self.cut {
            return false;
        }
        self.cut = weight > self.room;
        self.room = self.room.saturating_sub(weight);
        if self.cut {
            self.reply.extra.insert("refit".into(), json!({"cut": format!("the log keeps {MAX_KEPT_BYTES} bytes of a streamed reply")}));
        }
        !self.cut
    }
}

/// Bytes of text in a change: content, reasoning, arguments of calls.
fn said(delta: &Delta) -> u64 {
    fn of(value: &Value) -> u64 {
        match value {
            Value::String(text) => text.len() as u64,
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(fields) => fields.values().map(of).sum(),
            _ => 0,
        }
    }
    delta.content.as_ref().map_or(0, String::len) as u64 + delta.extra.values().map(of).sum::<u64>()
}

fn weight(chunk: &ChatChunk) -> usize {
    let choice =
        |piece: &ChunkChoice| piece.delta.content.as_ref().map_or(0, String::len) + of_fields(&piece.delta.extra) + of_fields(&piece.extra);
    of_fields(&chunk.extra) + chunk.choices.iter().map(choice).sum::<usize>()
}

fn of_fields(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(name, value)| name.len() + of_value(value)).sum()
}

/// Roughly what a value takes in memory.
fn of_value(value: &Value) -> usize {
    std::mem::size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(of_value).sum(),
            Value::Object(fields) => of_fields(fields),
            _ => 0,
        }
}

fn add_choice(choice: &mut Choice, piece: &ChunkChoice, keep: bool) {
    choice.finish_reason = piece.finish_reason.clone().or_else(|| choice.finish_reason.take());
    if !keep {
        return;
    }
    let Delta { role, content, extra } = &piece.delta;
    if let Some(role) = role {
        choice.message.role = role.clone();
    }
    if let Some(text) = content {
        say(&mut choice.message, text);
    }
    append(&mut choice.message.extra, extra);
    merge(&mut choice.extra, piece.extra.iter().filter(|(name, _)| *name != LOGPROBS));
    // Each chunk has those of its own tokens.
    if let Some(Value::Object(new)) = piece.extra.get(LOGPROBS) {
        match choice.extra.get_mut(LOGPROBS) {
            Some(Value::Object(so_far)) => append(so_far, new),
            _ => drop(choice.extra.insert(LOGPROBS.into(), Value::Object(new.clone()))),
        }
    }
}

/// Adds to what a message says.
fn say(message: &mut Message, text: &str) {
    match &mut message.content {
        Some(Content::Text(so_far)) => so_far.push_str(text),
        other => *other = Some(Content::Text(text.to_string())),
    }
}

/// Deltas: texts grow, lists of indexed objects (tool calls) grow item by item, anything else is replaced.
fn append(into: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (name, new) in delta {
        match (into.get_mut(name), new) {
            (_, Value::Null) => {}
            (Some(Value::String(so_far)), Value::String(text)) if !matches!(name.as_str(), "id" | "type") => so_far.push_str(text),
            (Some(Value::Object(so_far)), Value::Object(new)) => append(so_far, new),
            (Some(Value::Array(so_far)), Value::Array(new)) => append_items(so_far, new),
            _ => drop(into.insert(name.clone(), new.clone())),
        }
    }
}

fn append_items(so_far: &mut Vec<Value>, new: &[Value]) {
    for item in new {
        let index = item.get("index");
        let same = so_far.iter_mut().find(|known| index.is_some() && known.get("index") == index);
        match (same, item) {
            (Some(Value::Object(known)), Value::Object(item)) => append(known, item),
            _ => so_far.push(item.clone()),
        }
    }
}

fn merge<'v>(into: &mut Map<String, Value>, new: impl IntoIterator<Item = (&'v String, &'v Value)>) {
    for (name, value) in new.into_iter().filter(|(_, value)| !value.is_null()) {
        into.insert(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_and_tool_calls_grow_together() {
        let mut assembly = Assembly::new(MAX_KEPT_BYTES);
        for delta in [
            json!({"role": "assistant", "content": "a"}),
            json!({"content": "b", "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\""}}]}),
            json!({"tool_calls": [{"index": 0, "type": "function", "function": {"arguments": ":1}"}}, {"index": 1, "id": "c2"}]}),
        ] {
            let chunk = json!({"id": "i", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
            assembly.add(&serde_json::from_value(chunk).expect("a chunk"));
        }
        let reply = assembly.reply;
        assert_eq!(reply.text(), "ab");
        let calls = &reply.choices[0].message.extra["tool_calls"];
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
        assert_eq!((&calls[0]["type"], &calls[1]["id"]), (&json!("function"), &json!("c2")));
    }

    #[test]
    fn what_passed_is_put_together_as_chunks_are() {
        let first = json!({"id": "i", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}, {"index": 2, "delta": {}}]});
        let chunks = [(0, "a", None), (2, "x", None), (0, "b\u{e9}", None), (0, "", Some("stop")), (2, "", Some("length"))];
        for room in [MAX_KEPT_BYTES, 2, 0] {
            let (mut read, mut passed) = (Assembly::new(room), Assembly::new(room));
            for assembly in [&mut read, &mut passed] {
                assembly.add(&serde_json::from_value(first.clone()).expect("a chunk"));
            }
            for (index, text, reason) in chunks {
                let chunk = json!({"id": "i", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]});
                read.add(&serde_json::from_value(chunk).expect("a chunk"));
                let said = Said { index, text: text.into(), finish_reason: reason.map(str::to_string) };
                passed.add_passage(&Passage { events: String::new(), said: vec![said] });
            }
            let said = |assembly: &Assembly| -> Vec<String> {
                assembly.reply.choices.iter().map(|choice| format!("{} {:?}", choice.message.plain_text(), choice.finish_reason)).collect()
            };
            assert_eq!(said(&read), said(&passed), "{room}");
            assert_eq!((read.heard_bytes, read.is_whole()), (passed.heard_bytes, passed.is_whole()));
            assert_eq!(read.reply.extra, passed.reply.extra);
        }
    }

    #[test]
    fn a_long_reply_is_kept_in_part_and_counted_whole() {
        for (room, kept) in [(0, ""), (1_000, "aaaa"), (3, "")] {
            let mut assembly = Assembly::new(room);
            for (delta, finish) in
                [(json!({"content": "aaaa"}), None), (json!({"content": "b".repeat(2_000)}), None), (json!({"content": "c"}), Some("stop"))]
            {
                let chunk = json!({"id": "i", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": {"completion_tokens": 7}});
                assembly.add(&serde_json::from_value(chunk).expect("a chunk"));
            }
            let Assembly { reply, .. } = assembly;
            assert_eq!(reply.text(), kept, "{room}");
            assert_eq!(reply.extra.contains_key("refit"), room > 0);
            let tokens = reply.usage.map(|usage| usage.completion_tokens);
            assert_eq!((tokens, reply.choices[0].finish_reason.as_deref()), (Some(7), Some("stop")));
        }
        let mut assembly = Assembly::new(0);
        for index in 0..1_000 {
            let chunk = json!({"id": "i", "choices": [{"index": index, "delta": {}}]});
            assembly.add(&serde_json::from_value(chunk).expect("a chunk"));
        }
        assert_eq!(assembly.reply.choices.len(), MAX_CHOICES);
    }
}
