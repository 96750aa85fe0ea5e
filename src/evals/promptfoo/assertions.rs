//! Assertions as scorers.

use super::{Import, providers::model_of};
use crate::evals::scorers;
use serde_json::{Map, Value, json};

/// What the assertions of a test become.
#[derive(Default)]
pub(super) struct Made {
    /// The scorer of the sample.
    pub(super) scorer: Option<Value>,
    /// The sample's target: what the first `equals` wants.
    pub(super) target: Value,
    /// Assertions that are in it.
    pub(super) count: usize,
}

/// Keys of an assertion that are read.
const KNOWN: [&str; 6] = ["type", "value", "threshold", "weight", "provider", "metric"];

impl Import<'_> {
    /// The scorer of a test: all of its assertions, and those of every test.
    pub(super) fn scorer(&mut self, place: &str, (test, default): (&Value, &Value), vars: &Map<String, Value>) -> Made {
        let mut made = Made::default();
        let mut parts = Vec::new();
        for (place, from) in [(place, test), ("defaultTest", default)] {
            for (i, assertion) in from["assert"].as_array().into_iter().flatten().enumerate() {
                let place = format!("{place}.assert[{i}]");
                let judge = [&assertion["provider"], &test["options"]["provider"], &default["options"]["provider"]];
                match self.spec(&place, assertion, vars, (&judge, &mut made.target)) {
                    Ok(spec) => parts.push((spec, assertion["weight"].as_f64().unwrap_or(1.0))),
                    Err(why) => self.left.out(&place, why),
                }
            }
        }
        made.count = parts.len();
        let threshold = test["threshold"].as_f64().or(default["threshold"].as_f64());
        made.scorer = match (parts.len(), threshold) {
            (0, _) => None,
            (1, None) => parts.pop().map(|(spec, _)| spec),
            (_, None) => Some(json!({"all": {"scorers": parts.into_iter().map(|(spec, _)| spec).collect::<Vec<_>>()}})),
            (_, Some(threshold)) => {
                let weighted: Vec<_> = parts.into_iter().map(|(spec, weight)| json!({"scorer": spec, "weight": weight})).collect();
                Some(json!({"threshold": {"scorer": {"weighted": {"scorers": weighted}}, "at_least": threshold}}))
            }
        };
        made
    }

    /// The scorer of an assertion.
    fn spec(
        &mut self,
        place: &str,
        assertion: &Value,
        vars: &Map<String, Value>,
        (judge, target): (&[&Value], &mut Value),
    ) -> Result<Value, String> {
        let map = assertion.as_object().ok_or_else(|| format!("{assertion} is no assertion"))?;
        let kind = assertion["type"].as_str().unwrap_or_default();
        if kind == "assert-set" {
            return self.set(place, assertion, vars, (judge, target));
        }
        self.left.unknown(place, map, &KNOWN);
        if assertion["weight"].as_f64() == Some(0.0) {
            return Err(format!("{kind} with weight 0 changes no outcome"));
        }
        let value =
            filled(&assertion["value"], vars).ok_or_else(|| format!("{kind}: the value is a template that is more than variables"))?;
        if value.as_str().is_some_and(|text| text.starts_with("file://")) {
            return Err(format!("{kind}: values from files are not read"));
        }
        let (positive, is_not) = kind.strip_prefix("not-").map_or((kind, false), |rest| (rest, true));
        let spec = if positive == "llm-rubric" {
            let named = judge.iter().find_map(|provider| model_of(provider.as_str().or_else(|| provider.get("id")?.as_str())?));
            let model = named
                .or_else(|| self.judge.clone())
                .ok_or("llm-rubric: no judge is named that can be called here; name one with --judge")?;
            let rubric = value.as_str().ok_or("llm-rubric: the rubric is no text")?;
            if !assertion["threshold"].is_null() {
                self.left.out(&format!("{place}.threshold"), "a judge says pass or fail");
            }
            json!({"llm_judge": {"model": model, "rubric": rubric, "reference": false}})
        } else {
            plain(positive, &value, &assertion["threshold"], target)?
        };
        let spec = if is_not { json!({"not": {"scorer": spec}}) } else { spec };
        // A pattern that only other engines know is better told now than at the first case.
        scorers::build(&spec).map_err(|(_, problem)| problem)?;
        Ok(spec)
    }

    fn set(
        &mut self,
        place: &str,
        set: &Value,
        vars: &Map<String, Value>,
        (judge, target): (&[&Value], &mut Value),
    ) -> Result<Value, String> {
        let mut parts = Vec::new();
        for (i, assertion) in set["assert"].as_array().into_iter().flatten().enumerate() {
            let spec = self.spec(&format!("{place}.assert[{i}]"), assertion, vars, (judge, target))?;
            parts.push(json!({"scorer": spec, "weight": assertion["weight"].as_f64().unwrap_or(1.0)}));
        }
        if parts.is_empty() {
            return Err("an empty set of assertions".into());
        }
        // Without a threshold all of them must pass.
        let at_least = set["threshold"].as_f64().unwrap_or(1.0);
        Ok(json!({"threshold": {"scorer": {"weighted": {"scorers": parts}}, "at_least": at_least}}))
    }
}

/// The scorer of an assertion that asks no model.
fn plain(kind: &str, value: &Value, threshold: &Value, target: &mut Value) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let list = || match value {
        Value::Array(items) => items.iter().map(&text).collect::<Vec<_>>(),
        other => text(other).split(',').map(|part| part.trim().to_string()).collect(),
    };
    let limit = || threshold.as_f64().or(value.as_f64()).ok_or_else(|| format!("{kind} without a threshold"));
    Ok(match kind {
        "equals" if value.is_object() || value.is_array() => equal(value.clone(), true, target)?,
        "equals" => equal(text(value).into(), false, target)?,
        "contains" => json!({"includes": {"value": text(value)}}),
        "icontains" => json!({"includes": {"value": text(value), "ignore_case": true}}),
        "contains-any" => json!({"includes": {"any": list()}}),
        "icontains-any" => json!({"includes": {"any": list(), "ignore_case": true}}),
        "contains-all" => json!({"includes": {"all": list()}}),
        "icontains-all" => json!({"includes": {"all": list(), "ignore_case": true}}),
        "starts-with" => json!({"starts_with": {"value": text(value)}}),
        "regex" => json!({"regex": {"pattern": text(value)}}),
        "is-json" if value.is_null() => json!("json_schema"),
        "is-json" if value.is_object() => json!({"json_schema": {"schema": value}}),
        "latency" => json!({"latency": {"max_ms": limit()?}}),
        "cost" => json!({"cost": {"max_usd": limit()?}}),
        "is-refusal" => json!("refusal"),
        other => return Err(format!("{other} has no counterpart here")),
    })
}

/// Equality: with the sample's target, which the first one sets; another text is a pattern.
fn equal(wanted: Value, json: bool, target: &mut Value) -> Result<Value, String> {
    if target.is_null() {
        *target = wanted.clone();
    }
    match (*target == wanted, wanted.as_str()) {
        (true, _) => Ok(json!({"exact_match": {"json": json}})),
        (false, Some(text)) => Ok(json!({"regex": {"pattern": format!("(?s)^\\s*{}\\s*$", regex::escape(text))}})),
        (false, None) => Err("equals: a second JSON value that is wanted of one answer".into()),
    }
}

/// A value with the test's variables in it; none where a template is more than that.
fn filled(value: &Value, vars: &Map<String, Value>) -> Option<Value> {
    match value {
        Value::String(text) => fill(text, vars).map(Value::from),
        Value::Array(items) => items.iter().map(|item| filled(item, vars)).collect::<Option<Vec<_>>>().map(Value::from),
        other => Some(other.clone()),
    }
}

fn fill(text: &str, vars: &Map<String, Value>) -> Option<String> {
    if text.contains("{%") {
        return None;
    }
    let mut parts = text.split("{{");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (name, rest) = part.split_once("}}")?;
        let value = vars.get(name.trim())?;
        out += &value.as_str().map_or_else(|| value.to_string(), str::to_string);
        out += rest;
    }
    Some(out)
}

/// An assertion in the short form of CSV files: `contains: x`, `latency(1000)`; a text alone is what the answer equals.
pub(super) fn short(text: &str) -> Value {
    let text = text.trim();
    if let Some(rubric) = text.strip_prefix("grade:") {
        return json!({"type": "llm-rubric", "value": rubric.trim()});
    }
    let is_kind = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit());
    let (head, value) = text.split_once(':').map_or((text, None), |(head, value)| (head.trim(), Some(value.trim())));
    let (word, threshold) = match head.strip_suffix(')').and_then(|head| head.split_once('(')) {
        Some((word, number)) => (word, number.parse::<f64>().ok()),
        None => (head, None),
    };
    let is_alone = value.is_none() && (threshold.is_some() || ["is-json", "not-is-json", "is-refusal", "not-is-refusal"].contains(&word));
    if !is_kind(word) || !(value.is_some() || is_alone) || !(is_alone || is_known(word)) {
        return json!({"type": "equals", "value": text});
    }
    json!({"type": word, "value": value, "threshold": threshold})
}

/// Whether a word before a colon is an assertion's, and not the beginning of a text.
fn is_known(word: &str) -> bool {
    const WORDS: [&str; 22] = [
        "equals",
        "contains",
        "icontains",
        "contains-any",
        "icontains-any",
        "contains-all",
        "icontains-all",
        "starts-with",
        "regex",
        "is-json",
        "contains-json",
        "latency",
        "cost",
        "similar",
        "llm-rubric",
        "levenshtein",
        "javascript",
        "fn",
        "eval",
        "python",
        "rouge-n",
        "factuality",
    ];
    WORDS.contains(&word.strip_prefix("not-").unwrap_or(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_read_and_texts_stay_texts() {
        for (text, kind, value, threshold) in [
            ("contains: Paris", "contains", json!("Paris"), json!(null)),
            ("not-regex:^a", "not-regex", json!("^a"), json!(null)),
            ("latency(1000)", "latency", json!(null), json!(1000.0)),
            ("is-json", "is-json", json!(null), json!(null)),
            ("grade: is kind", "llm-rubric", json!("is kind"), json!(null)),
            ("Note: nothing", "equals", json!("Note: nothing"), json!(null)),
            ("note: nothing", "equals", json!("note: nothing"), json!(null)),
            ("Paris", "equals", json!("Paris"), json!(null)),
        ] {
            let found = short(text);
            assert_eq!((&found["type"], &found["value"], &found["threshold"]), (&json!(kind), &value, &threshold), "{text}");
        }
    }

    #[test]
    fn variables_are_filled_in_and_more_is_refused() {
        let vars = Map::from_iter([("x".to_string(), json!("Paris")), ("n".to_string(), json!(3))]);
        assert_eq!(fill("{{ x }} has {{n}}", &vars).as_deref(), Some("Paris has 3"));
        for text in ["{{ x | upper }}", "{{y}}", "{% if x %}"] {
            assert_eq!(fill(text, &vars), None, "{text}");
        }
    }
}
