//! OpenAI's fine-tuning records: `{"messages": […], "tools": […]}`. The last message is the target where the assistant says it.

use super::{Draft, Shape, answer, as_message, as_messages, messages, take_id, take_rest};
use crate::datasets::Sample;
use crate::datasets::sample::ASKED;
use serde_json::{Map, Value};

pub(super) struct Chat;

impl Shape for Chat {
    fn name(&self) -> &'static str {
        "openai-chat"
    }

    fn fits(&self, fields: &Map<String, Value>) -> bool {
        fields.contains_key("messages")
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        let id = take_id(&mut fields)?;
        let mut said = messages(fields.shift_remove("messages").as_ref(), "messages")?;
        let is_answered = said.len() > 1 && said.last().is_some_and(|last| last["role"] == "assistant");
        let target = if is_answered { said.pop().map(answer) } else { None };
        let mut input = Map::from_iter([("messages".to_string(), Value::from(said))]);
        for name in ASKED {
            input.extend(fields.shift_remove(name).filter(|value| !value.is_null()).map(|value| (name.to_string(), value)));
        }
        Ok(Draft { id, input, target: target.unwrap_or(Value::Null), metadata: take_rest(fields) })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        let mut said = as_messages(sample)?;
        if !sample.target.is_null() {
            said.push(as_message(&sample.target));
        }
        let mut fields = Map::from_iter([("messages".to_string(), Value::from(said))]);
        for name in ASKED {
            fields.extend(sample.input.get(name).map(|value| (name.to_string(), value.clone())));
        }
        Ok(fields.into())
    }
}
