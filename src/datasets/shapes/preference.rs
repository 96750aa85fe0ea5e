//! Pairs of answers, one of them preferred. OpenAI's: `{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`;
//! the others': `{"prompt": …, "chosen": …, "rejected": …}`, where a conversation may stand in the place of each text, and the prompt may
//! be what both answers begin with. The preferred one is the target, the other one stands in the metadata.

use super::{Draft, REJECTED, Shape, answer, as_message, as_prompt, messages, take_id, take_rest};
use crate::datasets::Sample;
use serde_json::{Map, Value, json};

const PREFERRED: &str = "preferred_output";
const OTHER: &str = "non_preferred_output";

pub(super) struct Preference;

impl Shape for Preference {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn fits(&self, fields: &Map<String, Value>) -> bool {
        let has = |name: &str| fields.contains_key(name);
        has(PREFERRED) || has(OTHER) || has("chosen")
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        let id = take_id(&mut fields)?;
        let (input, target, rejected) = match fields.contains_key("chosen") || fields.contains_key(REJECTED) {
            true => chosen(&mut fields)?,
            false => preferred(&mut fields)?,
        };
        let mut metadata = take_rest(fields);
        metadata.insert(REJECTED.into(), rejected);
        Ok(Draft { id, input, target, metadata })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        let rejected =
            sample.metadata.get(REJECTED).ok_or_else(|| format!("sample {} has no \"{REJECTED}\" in its metadata", sample.id))?;
        if sample.input.contains_key("messages") {
            return Ok(json!({"input": sample.input, PREFERRED: [as_message(&sample.target)], OTHER: [as_message(rejected)]}));
        }
        Ok(json!({"prompt": as_prompt(sample)?, "chosen": sample.target, REJECTED: rejected}))
    }
}

type Parts = (Map<String, Value>, Value, Value);

fn preferred(fields: &mut Map<String, Value>) -> Result<Parts, String> {
    let mut input = match fields.shift_remove("input") {
        Some(Value::Object(input)) => input,
        Some(_) => return Err("field \"input\" must be an object with messages".into()),
        None => return Err("field \"input\" is missing".into()),
    };
    messages(input.get("messages"), "input.messages")?;
    input.retain(|_, value| !value.is_null());
    let mut last = |name: &str| only(messages(fields.shift_remove(name).as_ref(), name)?, &[], name);
    Ok((input, last(PREFERRED)?, last(OTHER)?))
}

/// The one answer of a list, which may repeat the question before it.
fn only(mut said: Vec<Value>, asked: &[Value], name: &str) -> Result<Value, String> {
    let last = said.pop().map(answer).unwrap_or_default();
    if said.is_empty() || said == asked {
        return Ok(last);
    }
    Err(format!("field \"{name}\" has {} messages; expected one, the answer", said.len() + 1))
}

fn chosen(fields: &mut Map<String, Value>) -> Result<Parts, String> {
    let mut part = |name: &str| fields.shift_remove(name).ok_or_else(|| format!("field \"{name}\" is missing"));
    let (chosen, rejected) = (part("chosen")?, part(REJECTED)?);
    match (part("prompt").ok(), chosen, rejected) {
        (Some(Value::String(prompt)), chosen, rejected) => {
            let text = |value: Value, name: &str| match value {
                Value::String(_) => Ok(value),
                Value::Array(_) => only(messages(Some(&value), name)?, &[json!({"role": "user", "content": prompt})], name),
                _ => Err(format!("field \"{name}\" must be a text or a list of messages")),
            };
            let input = Map::from_iter([("prompt".to_string(), prompt.clone().into())]);
            Ok((input, text(chosen, "chosen")?, text(rejected, REJECTED)?))
        }
        (Some(prompt), chosen, rejected) => {
            let asked = messages(Some(&prompt), "prompt")?;
            let (good, bad) = (messages(Some(&chosen), "chosen")?, messages(Some(&rejected), REJECTED)?);
            let (good, bad) = (only(good, &asked, "chosen")?, only(bad, &asked, REJECTED)?);
            Ok((Map::from_iter([("messages".to_string(), asked.into())]), good, bad))
        }
        (None, chosen, rejected) => {
            let (mut chosen, mut rejected) = (messages(Some(&chosen), "chosen")?, messages(Some(&rejected), REJECTED)?);
            let (good, bad) = (chosen.pop().map(answer).unwrap_or_default(), rejected.pop().map(answer).unwrap_or_default());
            if chosen != rejected || chosen.is_empty() {
                return Err("\"chosen\" and \"rejected\" must be the same conversation but for the last message".into());
            }
            Ok((Map::from_iter([("messages".to_string(), chosen.into())]), good, bad))
        }
    }
}
