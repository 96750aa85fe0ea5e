//! The registry of shapes: what the fields of a record mean. A shape reads records as samples and writes samples as records; a file each,
//! a word here. Which one a file has is seen on its first record.

mod chat;
mod completion;
mod mapped;
mod plain;
mod preference;
mod sample;

pub use mapped::Mapping;

use super::Sample;
use crate::types::Digest;
use crate::types::ids::is_safe_name;
use serde_json::{Map, Value, json};

/// Where a preference keeps the answer that was not preferred.
pub const REJECTED: &str = "rejected";

/// A record that was read: a sample that may not have a name yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Name, where the record gives one.
    pub id: Option<String>,
    /// Variables.
    pub input: Map<String, Value>,
    /// What the answer should be; `null` when nobody knows.
    pub target: Value,
    /// Anything else.
    pub metadata: Map<String, Value>,
}

impl Draft {
    /// The sample; without a name of its own it is called by its content.
    pub fn named(self) -> Sample {
        let Draft { id, input, target, metadata } = self;
        let id = id.unwrap_or_else(|| Digest::of_json(&json!({"input": input, "target": target})).hex()[..16].to_string());
        Sample { id, input, target, metadata }
    }
}

/// What the fields of a record mean.
pub trait Shape: Send + Sync {
    /// Name for `--shape`, `--format` of exports, and lineage.
    fn name(&self) -> &'static str;

    /// Whether a record looks like it.
    fn fits(&self, fields: &Map<String, Value>) -> bool;

    /// Reads a record.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    fn read(&self, fields: Map<String, Value>) -> Result<Draft, String>;

    /// Writes a sample as a record.
    ///
    /// # Errors
    /// Why the sample cannot be written so.
    fn write(&self, sample: &Sample) -> Result<Value, String>;
}

/// In the order in which they are tried: what says more about itself comes first.
const SHAPES: &[&dyn Shape] = &[&sample::Own, &preference::Preference, &chat::Chat, &completion::Completion, &plain::Plain];

/// The names of all shapes.
pub fn names() -> Vec<&'static str> {
    SHAPES.iter().map(|shape| shape.name()).collect()
}

/// The shape of that name.
pub fn named(name: &str) -> Option<&'static dyn Shape> {
    SHAPES.iter().find(|shape| shape.name() == name).copied()
}

/// The shape that a file's first record has.
///
/// # Errors
/// That it has none, naming its fields.
pub fn of(fields: &Map<String, Value>) -> Result<&'static dyn Shape, String> {
    if let Some(shape) = SHAPES.iter().find(|shape| shape.fits(fields)) {
        return Ok(*shape);
    }
    // What is nearly ours is told as such.
    if fields.contains_key("target") || fields.keys().any(|key| key.starts_with("input")) {
        return Ok(&sample::Own);
    }
    let has: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
    Err(format!("its fields ({}) have no shape that is known; say what they mean with --input and --target", has.join(", ")))
}

/// Takes the name out of a record, where it has one.
fn take_id(fields: &mut Map<String, Value>) -> Result<Option<String>, String> {
    match fields.shift_remove("id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if is_safe_name(&id) => Ok(Some(id)),
        Some(Value::Number(id)) if id.is_u64() => Ok(Some(id.to_string())),
        Some(other) => Err(format!("field \"id\" must be 1 to 128 letters, digits and . _ : @ / -, not {other}")),
    }
}

/// Takes the metadata out of a record, and what else is left in it.
fn take_rest(mut fields: Map<String, Value>) -> Map<String, Value> {
    let mut metadata = match fields.shift_remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        None | Some(Value::Null) => Map::new(),
        Some(other) => Map::from_iter([("metadata".to_string(), other)]),
    };
    metadata.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    metadata
}

/// The messages of a list, each an object with a role.
fn messages(value: Option<&Value>, field: &str) -> Result<Vec<Value>, String> {
    let Some(value) = value else { return Err(format!("field \"{field}\" is missing")) };
    let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
        return Err(format!("field \"{field}\" must be a list of messages"));
    };
    for (at, message) in items.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str);
        let Some(role) = role else { return Err(format!("{field}[{at}].role must be a text")) };
        if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role) {
            return Err(format!("{field}[{at}].role is \"{role}\"; expected system, developer, user, assistant, tool or function"));
        }
        let has = |name: &str| message.get(name).is_some_and(|value| !value.is_null());
        if !(has("content") || has("tool_calls") || has("function_call") || has("refusal")) {
            return Err(format!("{field}[{at}] has neither content nor tool calls"));
        }
    }
    Ok(items.clone())
}

/// An answer as a target: its text where it is nothing but text, the whole message otherwise.
fn answer(message: Value) -> Value {
    let fields = message.as_object();
    let is_plain = fields.is_some_and(|fields| fields.iter().all(|(name, value)| name == "role" || name == "content" || value.is_null()));
    match message.get("content") {
        Some(Value::String(text)) if is_plain => text.clone().into(),
        _ => message,
    }
}

/// A target as the message of an assistant.
fn as_message(target: &Value) -> Value {
    match target {
        Value::Object(fields) if fields.get("role").is_some_and(|role| role == "assistant") => target.clone(),
        Value::String(text) => json!({"role": "assistant", "content": text}),
        other => json!({"role": "assistant", "content": other.to_string()}),
    }
}

/// The input as messages: those that it has, or its text as the user's.
fn as_messages(sample: &Sample) -> Result<Vec<Value>, String> {
    if let Some(Value::Array(messages)) = sample.input.get("messages") {
        return Ok(messages.clone());
    }
    Ok(vec![json!({"role": "user", "content": as_prompt(sample)?})])
}

/// The input as one text.
fn as_prompt(sample: &Sample) -> Result<String, String> {
    let only = || if sample.input.len() == 1 { sample.input.values().next() } else { None };
    match sample.input.get("prompt").or_else(only) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => {
            let has: Vec<&str> = sample.input.keys().map(String::as_str).collect();
            Err(format!("sample {} has the variables {}, not one text; export it as jsonl or csv", sample.id, has.join(", ")))
        }
    }
}

/// A target as one text.
fn as_text(sample: &Sample) -> Result<String, String> {
    match &sample.target {
        Value::Null => Err(format!("sample {} has no target", sample.id)),
        Value::String(text) => Ok(text.clone()),
        other => Ok(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(record: Value) -> Result<(&'static str, Draft), String> {
        let Value::Object(fields) = record else { panic!("an object") };
        let shape = of(&fields)?;
        Ok((shape.name(), shape.read(fields)?))
    }

    fn drafted(record: Value) -> (&'static str, Value, Value, Value) {
        let (name, draft) = read(record).expect("a draft");
        (name, json!(draft.input), draft.target, json!(draft.metadata))
    }

    #[test]
    fn shapes_are_seen_by_their_fields() {
        let user = json!({"role": "user", "content": "q"});
        let said = |text: &str| json!({"role": "assistant", "content": text});
        for (record, name, input, target, metadata) in [
            (json!({"input": {"m": "x"}, "target": 1}), "jsonl", json!({"m": "x"}), json!(1), json!({})),
            (json!({"messages": [user, said("a")]}), "openai-chat", json!({"messages": [user]}), json!("a"), json!({})),
            (json!({"messages": [user], "tools": []}), "openai-chat", json!({"messages": [user], "tools": []}), Value::Null, json!({})),
            (json!({"prompt": "p", "completion": "c", "n": 1}), "prompt-completion", json!({"prompt": "p"}), json!("c"), json!({"n": 1})),
            (json!({"prompt": "p", "chosen": "a", "rejected": "b"}), "dpo", json!({"prompt": "p"}), json!("a"), json!({"rejected": "b"})),
            (
                json!({"input": {"messages": [user]}, "preferred_output": [said("a")], "non_preferred_output": [said("b")]}),
                "dpo",
                json!({"messages": [user]}),
                json!("a"),
                json!({"rejected": "b"}),
            ),
            (
                json!({"chosen": [user, said("a")], "rejected": [user, said("b")]}),
                "dpo",
                json!({"messages": [user]}),
                json!("a"),
                json!({"rejected": "b"}),
            ),
            (json!({"input": "x", "target": "y"}), "input-target", json!({"input": "x"}), json!("y"), json!({})),
            (json!({"text": "x", "category": "c"}), "input-target", json!({"text": "x"}), json!("c"), json!({})),
            (
                json!({"instruction": "do", "input": "", "output": "done"}),
                "input-target",
                json!({"instruction": "do", "input": ""}),
                json!("done"),
                json!({}),
            ),
        ] {
            assert_eq!(drafted(record), (name, input, target, metadata));
        }
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        for (record, part) in [
            (json!({"messages": []}), "\"messages\" must be a list"),
            (json!({"messages": [{"role": "usr", "content": "x"}]}), "messages[0].role is \"usr\""),
            (json!({"messages": [{"role": "user"}]}), "messages[0] has neither content"),
            (json!({"prompt": 1, "completion": "c"}), "\"prompt\" must be a text"),
            (json!({"a": 1, "b": 2}), "(a, b) have no shape"),
            (json!({"inputs": {}}), "did you mean \"input\""),
            (json!({"prompt": "p", "chosen": "a"}), "\"rejected\" is missing"),
            (
                json!({"prompt": "p", "chosen": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": "c"}),
                "\"chosen\" has 2 messages",
            ),
        ] {
            let told = read(record).expect_err(part);
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn every_shape_reads_what_it_writes() {
        let user = json!({"role": "user", "content": "q"});
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function"}]});
        for (name, record) in [
            ("jsonl", json!({"id": "a", "input": {"m": "x"}, "target": {"k": 1}, "metadata": {"s": 1}})),
            ("openai-chat", json!({"messages": [user, {"role": "assistant", "content": "a"}]})),
            ("openai-chat", json!({"messages": [user, call]})),
            ("prompt-completion", json!({"prompt": "p", "completion": "c"})),
            ("dpo", json!({"prompt": "p", "chosen": "a", "rejected": "b"})),
        ] {
            let shape = named(name).expect("a shape");
            let Value::Object(fields) = record.clone() else { panic!("an object") };
            let draft = shape.read(fields).expect("reads");
            let Value::Object(written) = shape.write(&draft.clone().named()).expect("writes") else { panic!("an object") };
            assert_eq!(Draft { id: draft.id.clone(), ..shape.read(written).expect("reads again") }, draft);
        }
    }
}
