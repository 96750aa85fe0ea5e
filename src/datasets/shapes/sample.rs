//! Our own records: `{"id": "…", "input": {…}, "target": …, "metadata": {…}}`. Only `input` is required, and nothing else is taken.

use super::{Draft, Shape, take_id};
use crate::datasets::Sample;
use crate::types::error::did_you_mean;
use serde_json::{Map, Value, json};

const FIELDS: &[&str] = &["id", "input", "target", "metadata"];

pub(super) struct Own;

impl Shape for Own {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn fits(&self, fields: &Map<String, Value>) -> bool {
        fields.get("input").is_some_and(Value::is_object) && fields.keys().all(|key| FIELDS.contains(&key.as_str()))
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(format!("unknown field \"{unknown}\"{}", did_you_mean(unknown, FIELDS.iter().copied())));
        }
        let input = match fields.shift_remove("input") {
            Some(Value::Object(input)) if !input.is_empty() => input,
            Some(_) => return Err("field \"input\" must be an object with at least one variable, such as {\"message\": \"…\"}".into()),
            None => return Err("field \"input\" is missing".into()),
        };
        let metadata = match fields.shift_remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err("field \"metadata\" must be an object".into()),
        };
        let target = fields.shift_remove("target").unwrap_or(Value::Null);
        if let Some(number @ Value::Number(_)) = fields.get("id") {
            return Err(format!("field \"id\" must be a text, not {number}"));
        }
        let id = take_id(&mut fields)?;
        Ok(Draft { id, input, target, metadata })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        Ok(json!({"id": sample.id, "input": sample.input, "target": sample.target, "metadata": sample.metadata}))
    }
}
