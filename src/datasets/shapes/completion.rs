//! `{"prompt": "…", "completion": "…"}`.

use super::{Draft, Shape, as_prompt, as_text, take_id, take_rest};
use crate::datasets::Sample;
use serde_json::{Map, Value, json};

pub(super) struct Completion;

impl Shape for Completion {
    fn name(&self) -> &'static str {
        "prompt-completion"
    }

    fn fits(&self, fields: &Map<String, Value>) -> bool {
        fields.contains_key("prompt") && fields.contains_key("completion")
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        let id = take_id(&mut fields)?;
        let mut text = |name: &str| match fields.shift_remove(name) {
            Some(Value::String(text)) => Ok(Value::String(text)),
            Some(_) => Err(format!("field \"{name}\" must be a text")),
            None => Err(format!("field \"{name}\" is missing")),
        };
        let input = Map::from_iter([("prompt".to_string(), text("prompt")?)]);
        Ok(Draft { id, input, target: text("completion")?, metadata: take_rest(fields) })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        Ok(json!({"prompt": as_prompt(sample)?, "completion": as_text(sample)?}))
    }
}
