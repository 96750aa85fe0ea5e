//! What a scorer sees of one case, whether the answer has just come or was stored long ago.

use crate::datasets::Sample;
use crate::evals::Reply;
use serde_json::{Map, Value};

/// One case: a sample, and the answer of one target to it.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Id of the sample.
    pub sample: &'a str,
    /// The variables of the prompt.
    pub input: &'a Map<String, Value>,
    /// What the answer should be; `null` when nobody knows.
    pub target: &'a Value,
    /// What else is known about the sample.
    pub metadata: &'a Map<String, Value>,
    /// The answer.
    pub reply: &'a Reply,
    /// Name of the target that gave it; empty where answers are not compared.
    pub answered_by: &'a str,
    /// What other targets answered to the same sample, by name; empty while a run goes on, when not all of them have.
    pub others: &'a [(String, String)],
}

impl<'a> Case<'a> {
    /// An answer to a sample.
    pub fn new(sample: &'a Sample, reply: &'a Reply) -> Self {
        Case {
            sample: &sample.id,
            input: &sample.input,
            target: &sample.target,
            metadata: &sample.metadata,
            reply,
            answered_by: "",
            others: &[],
        }
    }

    /// The answer's text.
    pub fn output(&self) -> &'a str {
        &self.reply.output
    }

    /// The target as text: strings as they are, everything else as JSON.
    pub fn target_text(&self) -> String {
        text_of(self.target)
    }

    /// The target as texts any of which is right: the items of a list, or the one that it is.
    ///
    /// # Errors
    /// When nobody knows the target, or the list is empty.
    pub fn targets(&self) -> Result<Vec<String>, String> {
        match self.target {
            Value::Null => Err("the sample has no target".into()),
            Value::Array(items) if items.is_empty() => Err("the target is an empty list".into()),
            Value::Array(items) => Ok(items.iter().map(text_of).collect()),
            other => Ok(vec![text_of(other)]),
        }
    }

    /// Bytes of the answer, and of all that the target says.
    pub(super) fn lengths(&self) -> (usize, usize) {
        let of = |value: &Value| value.as_str().map_or_else(|| value.to_string().len(), str::len);
        let target = match self.target {
            Value::Array(items) => items.iter().map(of).sum(),
            other => of(other),
        };
        (self.output().len(), target)
    }

    /// A part of the sample by its JSON pointer: `/target/…`, `/input/…` or `/metadata/…`.
    pub fn part(&self, pointer: &str) -> Option<&'a Value> {
        let path = pointer.strip_prefix('/')?;
        let (root, rest) = path.split_once('/').map_or((path, None), |(root, rest)| (root, Some(rest)));
        let map = match root {
            "target" => return self.target.pointer(&pointer["/target".len()..]),
            "input" => self.input,
            "metadata" => self.metadata,
            _ => return None,
        };
        let rest = rest?;
        let end = rest.find('/').unwrap_or(rest.len());
        map.get(&rest[..end].replace("~1", "/").replace("~0", "~"))?.pointer(&rest[end..])
    }
}

/// A value as text: strings as they are, everything else as JSON.
pub(super) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Text as JSON: all of it, but for white space around it.
pub(super) fn parsed(text: &str) -> Option<Value> {
    serde_json::from_str(text.trim()).ok()
}

/// Equality of JSON values in which `1` equals `1.0` and the order of keys does not matter.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b))),
        _ => a == b,
    }
}

/// Whether everything in `wanted` is in `found`: objects may have more keys, all else is equal as [`same`] has it.
pub(super) fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
        }
        _ => same(found, wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_of_a_sample_are_found_by_pointer() {
        let sample: Sample = serde_json::from_value(json!({"id": "s", "input": {"a/b": {"c": 1}}, "target": {"x": [1, 2]},
            "metadata": {"human": "pass"}}))
        .expect("a sample");
        let reply = Reply::default();
        let case = Case::new(&sample, &reply);
        assert_eq!(case.part("/target/x/1"), Some(&json!(2)));
        assert_eq!(case.part("/target"), Some(&sample.target));
        assert_eq!(case.part("/metadata/human"), Some(&json!("pass")));
        assert_eq!(case.part("/input/a~1b/c"), Some(&json!(1)));
        for nothing in ["", "human", "/metadata", "/input", "/output/x", "/target/y", "/metadata/human/x"] {
            assert_eq!(case.part(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_part_is_held_by_the_whole() {
        assert!(holds(&json!({"a": {"b": 1.0, "c": 2}, "d": 3}), &json!({"a": {"b": 1}})));
        assert!(!holds(&json!({"a": [1, 2, 3]}), &json!({"a": [1, 2]})) && !holds(&json!({}), &json!({"a": null})));
    }
}
