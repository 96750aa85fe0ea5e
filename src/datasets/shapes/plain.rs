//! A question and an answer under names that datasets commonly have: `input` and `target`, `text` and `label`, `instruction`, `input` and
//! `output`, and their like. The first pair of names that a record has decides; the other fields are metadata.

use super::{Draft, Shape, take_id, take_rest};
use crate::datasets::Sample;
use serde_json::{Map, Value, json};

/// Names of questions, each with what may belong to it.
const ASKED: &[&[&str]] = &[
    &["instruction", "input"],
    &["instruction", "context"],
    &["question", "context"],
    &["instruction"],
    &["question"],
    &["query"],
    &["input"],
    &["prompt"],
    &["text"],
    &["sentence"],
    &["message"],
];
/// Names of answers.
const ANSWERED: &[&str] =
    &["target", "output", "answer", "response", "expected", "ideal", "completion", "label", "category", "intent", "class"];

pub(super) struct Plain;

impl Shape for Plain {
    fn name(&self) -> &'static str {
        "input-target"
    }

    fn fits(&self, fields: &Map<String, Value>) -> bool {
        let is_text = |name: &&str| matches!(fields.get(*name), Some(Value::String(_) | Value::Null));
        asked(fields).is_some_and(|names| names.iter().all(is_text)) && answered(fields).is_some()
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        let id = take_id(&mut fields)?;
        let names = asked(&fields).ok_or_else(|| format!("none of the fields {} is there", list(ASKED.iter().map(|names| names[0]))))?;
        let answer = answered(&fields).ok_or_else(|| format!("none of the fields {} is there", list(ANSWERED.iter().copied())))?;
        let mut input = Map::new();
        for name in names {
            match fields.shift_remove(*name) {
                Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => {
                    input.insert((*name).to_string(), value);
                }
                Some(Value::Null) if input.contains_key(names[0]) => {}
                _ => return Err(format!("field \"{name}\" must be a text")),
            }
        }
        let target = fields.shift_remove(answer).unwrap_or(Value::Null);
        Ok(Draft { id, input, target, metadata: take_rest(fields) })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        let mut fields = match sample.input.len() {
            1 => Map::from_iter(sample.input.values().map(|value| ("input".to_string(), value.clone()))),
            _ => sample.input.clone(),
        };
        fields.insert("target".into(), sample.target.clone());
        Ok(json!(fields))
    }
}

fn asked(fields: &Map<String, Value>) -> Option<&'static [&'static str]> {
    ASKED.iter().find(|names| names.iter().all(|name| fields.contains_key(*name))).copied()
}

fn answered(fields: &Map<String, Value>) -> Option<&'static str> {
    ANSWERED.iter().find(|name| fields.contains_key(**name)).copied()
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    names.dedup();
    names.join(", ")
}
