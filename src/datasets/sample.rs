//! One sample: what goes in, what should come out, and what is known about it.

use crate::types::Digest;
use crate::types::digest::canonical_json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One sample of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unique in its dataset.
    pub id: String,
    /// Variables for a prompt.
    pub input: Map<String, Value>,
    /// What the answer should be; `null` when nobody knows.
    pub target: Value,
    /// Anything else: source, register, difficulty.
    pub metadata: Map<String, Value>,
}

impl Sample {
    /// Digest of input and target: what the sample says, whatever it is called.
    pub fn content(&self) -> Digest {
        Digest::of_json(&json!({"input": self.input, "target": self.target}))
    }

    /// One line of canonical JSON, the form in which datasets are stored and digested.
    pub fn line(&self) -> String {
        let whole = json!({"id": self.id, "input": self.input, "target": self.target, "metadata": self.metadata});
        canonical_json(&whole)
    }

    /// The texts of the input, in order, for similarity and length checks.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.input.values().for_each(|value| collect(value, &mut text));
        text
    }

    /// What similarity is judged by: of a conversation what the user says, since system prompt and tools are the same in all; of other
    /// inputs every text, number and switch.
    pub fn asked(&self) -> String {
        let Some(Value::Array(messages)) = self.input.get("messages") else {
            let mut text = String::new();
            self.input.values().for_each(|value| gather(value, true, &mut text));
            return text;
        };
        let mut text = String::new();
        for content in messages.iter().filter(|message| message["role"] == "user").filter_map(|message| message.get("content")) {
            collect(content, &mut text);
        }
        let beside = self.input.iter().filter(|(name, _)| *name != "messages" && !ASKED.contains(&name.as_str()));
        beside.for_each(|(_, value)| gather(value, true, &mut text));
        text
    }

    /// What a question is asked in: what others than the user say in a conversation, and its tools. Empty for other inputs.
    pub fn context(&self) -> Vec<&Value> {
        let Some(Value::Array(messages)) = self.input.get("messages") else { return Vec::new() };
        let others = messages.iter().filter(|message| message["role"] != "user");
        others.chain(ASKED.iter().filter_map(|name| self.input.get(*name))).collect()
    }

    /// A field of the target by name, or the whole target when it is no object.
    pub fn target_field(&self, name: &str) -> &Value {
        match &self.target {
            Value::Object(fields) => fields.get(name).unwrap_or(&Value::Null),
            whole => whole,
        }
    }

    /// A field wherever it stands: of the metadata, the input, or a target that is an object.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let found = self.metadata.get(name).or_else(|| self.input.get(name)).or_else(|| self.target.as_object()?.get(name));
        found.filter(|value| !value.is_null())
    }
}

/// What belongs to the question of a conversation besides its messages.
pub const ASKED: [&str; 4] = ["tools", "parallel_tool_calls", "functions", "response_format"];

/// The texts of a value, in order.
pub fn text_of(value: &Value) -> String {
    let mut text = String::new();
    collect(value, &mut text);
    text
}

/// Gives every text, number and name of a value, also of what is JSON inside a text, such as the arguments of a tool call.
pub fn each_text(value: &Value, take: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => match text.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str::<Value>(text)) {
            Some(Ok(nested)) => each_text(&nested, take),
            _ => take(text),
        },
        Value::Number(number) => take(&number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, take)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            take(name);
            each_text(value, take);
        }),
        _ => {}
    }
}

fn collect(value: &Value, text: &mut String) {
    gather(value, false, text);
}

/// Adds the texts of a value, with numbers and switches where they are wanted.
fn gather(value: &Value, has_numbers: bool, text: &mut String) {
    let mut add = |part: &str| {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(part);
    };
    match value {
        Value::String(part) => add(part),
        Value::Number(_) | Value::Bool(_) if has_numbers => add(&value.to_string()),
        Value::Array(items) => items.iter().for_each(|item| gather(item, has_numbers, text)),
        Value::Object(fields) => fields.values().for_each(|item| gather(item, has_numbers, text)),
        _ => {}
    }
}
