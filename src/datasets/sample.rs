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

/// The texts of a value, in order.
pub fn text_of(value: &Value) -> String {
    let mut text = String::new();
    collect(value, &mut text);
    text
}

fn collect(value: &Value, text: &mut String) {
    match value {
        Value::String(part) => {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(part);
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, text)),
        Value::Object(fields) => fields.values().for_each(|item| collect(item, text)),
        _ => {}
    }
}
