//! The registry of scorers: a file each, a word here. A scorer looks at one answer and gives a value from 0 to 1 per metric.

mod exact_match;
mod includes;
mod json_field;
mod json_schema;
mod regex;

use crate::types::error::did_you_mean;
use serde_json::{Map, Value};

/// What a scorer sees of one case.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The model's answer.
    pub output: &'a str,
    /// The sample's target.
    pub target: &'a Value,
}

/// Looks at one answer.
pub trait Scorer: Send + Sync {
    /// Names of the metrics, the main one first; the same for every case.
    fn metrics(&self) -> Vec<String>;

    /// A value from 0 to 1 for each metric, in the order of [`Scorer::metrics`].
    fn score(&self, case: Case<'_>) -> Vec<f64>;
}

/// Makes a scorer from its options; `name` is what its main metric is called.
type Build = fn(name: String, options: Options) -> Result<Box<dyn Scorer>, String>;

const SCORERS: &[(&str, Build)] = &[
    ("exact_match", exact_match::build),
    ("includes", includes::build),
    ("regex", regex::build),
    ("json_schema", json_schema::build),
    ("json_field", json_field::build),
];

/// A scorer from its place in a suite: `exact_match` or `exact_match: {json: true}`. The error carries the word to look for.
///
/// # Errors
/// The scorer's name or option at fault, and what is wrong.
pub fn build(spec: &Value) -> Result<Box<dyn Scorer>, (String, String)> {
    let (word, options) = match spec {
        Value::String(word) => (word.clone(), Map::new()),
        Value::Object(map) if map.len() == 1 => match map.iter().next() {
            Some((word, Value::Object(options))) => (word.clone(), options.clone()),
            Some((word, Value::Null)) => (word.clone(), Map::new()),
            Some((word, _)) => return Err((word.clone(), format!("the options of {word} must be a map"))),
            None => return Err(("scorers".into(), "empty".into())),
        },
        other => return Err(("scorers".into(), format!("expected a scorer's name or `name: {{options}}`, not {other}"))),
    };
    let Some((_, build)) = SCORERS.iter().find(|(known, _)| *known == word) else {
        let known: Vec<&str> = SCORERS.iter().map(|(known, _)| *known).collect();
        let nearest = did_you_mean(&word, known.iter().copied());
        return Err((word.clone(), format!("there is no scorer \"{word}\"{nearest} (scorers: {})", known.join(", "))));
    };
    let mut options = Options { given: options, asked: vec!["name"] };
    let name = options.text("name").map_err(|problem| (word.clone(), format!("{word}: {problem}")))?;
    build(name.unwrap_or_else(|| word.clone()), options).map_err(|problem| (word.clone(), format!("{word}: {problem}")))
}

/// Options of a scorer; what is left after reading is unknown.
pub struct Options {
    given: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Options {
    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.given.shift_remove(key)
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key} must be a text, not {other}")),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, String> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(format!("{key} must be true or false, not {other}")),
        }
    }

    /// Refuses what no one asked for.
    fn finish(self) -> Result<(), String> {
        match self.given.keys().next() {
            Some(unknown) => Err(format!(
                "unknown option \"{unknown}\"{} (options: {})",
                did_you_mean(unknown, self.asked.iter().copied()),
                self.asked.join(", ")
            )),
            None => Ok(()),
        }
    }
}

/// The answer as JSON: the whole text, but for white space around it.
fn parsed(output: &str) -> Option<Value> {
    serde_json::from_str(output.trim()).ok()
}

/// Equality of JSON values in which `1` equals `1.0` and the order of keys does not matter.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b))),
        _ => a == b,
    }
}

/// A target as text: strings as they are, everything else as JSON.
fn target_text(target: &Value) -> String {
    target.as_str().map_or_else(|| target.to_string(), String::from)
}

fn value(passed: bool) -> f64 {
    f64::from(u8::from(passed))
}

/// What a scorer's main metric says of two texts.
///
/// # Errors
/// When there is no such scorer.
pub fn of_texts(spec: &Value, found: &str, wanted: &str) -> Result<f64, String> {
    let scorer = build(spec).map_err(|(_, problem)| problem)?;
    let target = Value::from(wanted);
    let scores = scorer.score(Case { output: found, target: &target });
    scores.first().copied().ok_or_else(|| "the scorer gave no value".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn score(spec: Value, output: &str, target: Value) -> Vec<f64> {
        build(&spec).unwrap_or_else(|(_, problem)| panic!("{problem}")).score(Case { output, target: &target })
    }

    #[test]
    fn exact_match_compares_text_or_parsed_json() {
        assert_eq!(score(json!("exact_match"), " Paris\n", json!("Paris")), [1.0]);
        assert_eq!(score(json!("exact_match"), "paris", json!("Paris")), [0.0]);
        assert_eq!(score(json!({"exact_match": {"ignore_case": true}}), "paris", json!("Paris")), [1.0]);
        let by_json = json!({"exact_match": {"json": true}});
        assert_eq!(score(by_json.clone(), "{\"b\": null, \"a\": 1.0}\n", json!({"a": 1, "b": null})), [1.0]);
        for wrong in ["{\"a\":1}", "{\"a\":1,\"b\":null} and more", "```json\n{\"a\":1,\"b\":null}\n```", ""] {
            assert_eq!(score(by_json.clone(), wrong, json!({"a": 1, "b": null})), [0.0], "{wrong}");
        }
    }

    #[test]
    fn includes_and_regex_look_inside() {
        assert_eq!(score(json!("includes"), "it is Paris.", json!("Paris")), [1.0]);
        assert_eq!(score(json!({"includes": {"value": "PARIS", "ignore_case": true}}), "it is Paris.", json!(null)), [1.0]);
        assert_eq!(score(json!({"includes": {"value": ""}}), "x", json!(null)), [1.0]);
        assert_eq!(score(json!({"regex": {"pattern": "^NL-\\d{5}$"}}), "NL-12345", json!(null)), [1.0]);
        assert_eq!(score(json!({"regex": {"pattern": "^NL-\\d{5}$"}}), "NL-123456", json!(null)), [0.0]);
        assert!(build(&json!("regex")).is_err() && build(&json!({"regex": {"pattern": "("}})).is_err());
    }

    #[test]
    fn json_schema_wants_valid_json_and_then_the_schema() {
        assert_eq!(score(json!("json_schema"), "[1]", json!(null)), [1.0]);
        assert_eq!(score(json!("json_schema"), "[1", json!(null)), [0.0]);
        let typed = json!({"json_schema": {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", null]}}}}});
        assert_eq!(score(typed.clone(), "{\"a\":null}", json!(null)), [1.0]);
        assert_eq!(score(typed.clone(), "{\"a\":\"y\"}", json!(null)), [0.0]);
        assert_eq!(score(typed, "{}", json!(null)), [0.0]);
        assert!(build(&json!({"json_schema": {"schema": {"type": "objekt"}}})).is_err());
    }

    #[test]
    fn json_field_scores_each_field_and_their_mean() {
        let spec = json!({"json_field": {"fields": ["a", "/b/c"]}});
        assert_eq!(build(&spec).map(|scorer| scorer.metrics()).unwrap_or_default(), ["json_field", "json_field.a", "json_field.b.c"]);
        assert_eq!(score(spec.clone(), "{\"a\":1,\"b\":{\"c\":3}}", json!({"a": 1, "b": {"c": 2}})), [0.5, 1.0, 0.0]);
        // A field that is null in the target must be there and null: leaving it out is no answer.
        assert_eq!(score(spec.clone(), "{\"a\":null}", json!({"a": null})), [0.5, 1.0, 0.0]);
        assert_eq!(score(spec, "no json", json!({"a": null})), [0.0, 0.0, 0.0]);
    }
}
