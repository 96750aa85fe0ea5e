//! Assertions of a test as scorers, which a sample carries in `metadata.checks`.

use super::{Leaving, files, filled, providers};
use crate::evals::scorers;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What assertions are read with.
pub(super) struct Reading<'a> {
    pub(super) vars: &'a Map<String, Value>,
    pub(super) folder: &'a Path,
    /// Model that grades where an assertion names none.
    pub(super) judge: Option<&'a str>,
}

/// A scorer, with its weight.
pub(super) type Check = (Value, f64);

/// What carries over of an assertion, beside `type`.
const KEYS: [&str; 6] = ["type", "value", "threshold", "weight", "metric", "provider"];
/// Kinds that a model grades, which `provider` names.
const GRADED: [&str; 2] = ["llm-rubric", "model-graded-closedqa"];

/// The scorers of a list of assertions.
pub(super) fn read(asserts: &Value, place: &str, reading: &Reading<'_>, left: &mut Leaving) -> Vec<Check> {
    let list = asserts.as_array().cloned().unwrap_or_default();
    let mut checks = Vec::new();
    for (i, assert) in list.iter().enumerate() {
        let place = format!("{place}[{i}]");
        match check(assert, &place, reading, left) {
            Ok((scorer, weight)) if weight > 0.0 => match scorers::build(&scorer) {
                Ok(_) => checks.push((scorer, weight)),
                Err((_, problem)) => left.add(place, problem),
            },
            Ok(_) => left.add(place, "has weight 0: it counts for nothing"),
            Err(why) => left.add(place, why),
        }
    }
    checks
}

/// One scorer of several: all must hold; with a threshold, their weighted mean must reach it.
pub(super) fn together(checks: Vec<Check>, threshold: Option<f64>) -> Option<Value> {
    match (checks.as_slice(), threshold) {
        ([], _) => None,
        (_, None) => Some(checks.into_iter().map(|(scorer, _)| scorer).collect()),
        (_, Some(threshold)) => {
            let parts: Vec<Value> = checks.iter().map(|(scorer, weight)| json!({"scorer": scorer, "weight": weight})).collect();
            Some(json!({"threshold": {"scorer": {"weighted": parts}, "at_least": threshold}}))
        }
    }
}

fn check(assert: &Value, place: &str, reading: &Reading<'_>, left: &mut Leaving) -> Result<Check, String> {
    let fields = assert.as_object().ok_or("is no assertion")?;
    let kind = fields.get("type").and_then(Value::as_str).ok_or("has no type")?;
    let weight = fields.get("weight").map_or(Some(1.0), Value::as_f64).ok_or("weight is no number")?;
    let said = "checks of a sample are one metric, `checks`";
    if kind == "assert-set" {
        for name in fields.keys().filter(|name| !["type", "assert", "threshold", "weight"].contains(&name.as_str())) {
            left.add(format!("{place}.{name}"), if name == "metric" { said } else { "is not known" });
        }
        let checks = self::read(fields.get("assert").unwrap_or(&Value::Null), &format!("{place}.assert"), reading, left);
        let set = together(checks, fields.get("threshold").and_then(Value::as_f64)).ok_or("nothing of the set carries over")?;
        return Ok((if set.is_array() { json!({"all": set}) } else { set }, weight));
    }
    if fields.contains_key("transform") {
        return Err("transform: code of a configuration does not run here".into());
    }
    for name in fields.keys().filter(|name| !KEYS.contains(&name.as_str())) {
        left.add(format!("{place}.{name}"), "is not known");
    }
    if fields.contains_key("metric") {
        left.add(format!("{place}.metric"), said);
    }
    let (kind, is_negated) = kind.strip_prefix("not-").map_or((kind, false), |kind| (kind, true));
    if fields.contains_key("provider") && !GRADED.contains(&kind) {
        left.add(format!("{place}.provider"), "is not carried over: `similar` takes local/all-minilm-l6-v2");
    }
    if kind == "equals" && fields.get("value").and_then(Value::as_str).is_some_and(|text| text.trim() != text) {
        left.add(place, "white space around a text does not count here");
    }
    let value = valued(fields.get("value").unwrap_or(&Value::Null), reading)?;
    let number = |usual: Option<f64>| fields.get("threshold").and_then(Value::as_f64).or(usual);
    let scorer = scorer(kind, &value, &number, (fields, reading))?;
    Ok((if is_negated { json!({"not": scorer}) } else { scorer }, weight))
}

/// The value with the test's variables filled in, or the text of the file that it names.
fn valued(value: &Value, reading: &Reading<'_>) -> Result<Value, String> {
    let unfit = || "its value is a template that needs more than the test's variables".to_string();
    match value {
        Value::String(text) => match files::reference(text) {
            Some(file) if [".txt", ".md", ".json", ".yaml", ".yml"].iter().any(|ending| file.ends_with(ending)) => {
                let text = files::text(reading.folder, file).map_err(|failure| failure.to_string())?;
                match file.ends_with(".txt") || file.ends_with(".md") {
                    true => Ok(text.into()),
                    false => files::value(&text, file).map_err(|failure| failure.to_string()),
                }
            }
            Some(file) => Err(format!("{file}: code of a configuration does not run here")),
            None => filled(text, reading.vars).map(Value::from).ok_or_else(unfit),
        },
        Value::Array(list) => list.iter().map(|item| valued(item, reading)).collect(),
        other => Ok(other.clone()),
    }
}

type Number<'n> = dyn Fn(Option<f64>) -> Option<f64> + 'n;

fn scorer(kind: &str, value: &Value, number: &Number<'_>, (fields, reading): (&Map<String, Value>, &Reading<'_>)) -> Result<Value, String> {
    let against = |scorer: Value| json!({"against": {"target": value, "scorer": scorer}});
    let at_least = |scorer: Value, usual: f64| json!({"threshold": {"scorer": against(scorer), "at_least": number(Some(usual))}});
    let list = || match value {
        Value::Array(_) => value.clone(),
        Value::String(text) => text.split(',').map(|part| Value::from(part.trim())).collect(),
        other => json!([other]),
    };
    let (plain, folded) = (
        |scorer: &str, key: &str, value: Value| json!({scorer: {key: value}}),
        |key: &str, value: Value| json!({"includes": {key: value, "ignore_case": true}}),
    );
    Ok(match kind {
        "equals" if value.is_string() => against(json!("exact_match")),
        "equals" => against(json!({"exact_match": {"json": true}})),
        "contains" => plain("includes", "value", value.clone()),
        "icontains" => folded("value", value.clone()),
        "contains-any" => plain("includes", "any", list()),
        "contains-all" => plain("includes", "all", list()),
        "icontains-any" => folded("any", list()),
        "icontains-all" => folded("all", list()),
        "starts-with" => plain("starts_with", "value", value.clone()),
        "ends-with" => plain("ends_with", "value", value.clone()),
        "regex" => plain("regex", "pattern", value.clone()),
        "is-json" if value.is_null() => json!("json_schema"),
        "is-json" => {
            let schema = value.as_str().map_or(Ok(value.clone()), serde_norway::from_str).map_err(|error| error.to_string())?;
            plain("json_schema", "schema", schema)
        }
        "levenshtein" => {
            let edits = number(None).ok_or("threshold is missing")?;
            json!({"against": {"target": value, "scorer":
                {"threshold": {"scorer": "edit_distance", "metric": "edit_distance.edits", "at_most": edits}}}})
        }
        "rouge-n" => at_least(json!({"rouge": {"kinds": ["rouge1"]}}), 0.75),
        "bleu" => at_least(json!("bleu"), 0.5),
        "similar" => at_least(json!("similarity"), 0.75),
        "latency" => plain("latency", "max_ms", json!(number(None).ok_or("threshold is missing")?)),
        "cost" => plain("cost", "max_usd", json!(number(None).ok_or("threshold is missing")?)),
        "is-refusal" => json!("refusal"),
        "llm-rubric" | "model-graded-closedqa" => judge(value, number(None), (fields, reading))?,
        "javascript" | "python" | "ruby" | "webhook" => {
            return Err(format!("{kind}: code of a configuration does not run here; the scorer `command` runs a program that you allow"));
        }
        other => return Err(format!("{other} has no counterpart among the scorers")),
    })
}

fn judge(rubric: &Value, threshold: Option<f64>, (fields, reading): (&Map<String, Value>, &Reading<'_>)) -> Result<Value, String> {
    let named = fields.get("provider").and_then(|provider| provider.as_str().or_else(|| provider["id"].as_str()));
    let model = match named {
        Some(id) => providers::model(id).ok_or_else(|| format!("its provider {id:?} has no counterpart here"))?,
        None => reading.judge.map(String::from).ok_or("names no model that grades: give one with --judge PROVIDER/MODEL")?,
    };
    let rubric = rubric.as_str().map_or_else(|| rubric.to_string(), String::from);
    match threshold {
        None => Ok(json!({"llm_judge": {"model": model, "rubric": rubric}})),
        // Graded from 0 to 1 there; eleven steps are as many as a model tells apart.
        Some(least) => {
            Ok(json!({"threshold": {"scorer": {"llm_judge": {"model": model, "rubric": rubric, "scale": [0, 10]}}, "at_least": least}}))
        }
    }
}

/// The assertion of a cell of a table (`__expected`): `contains: x`, `similar(0.8): x`, `not-contains: x`, or the text that is expected.
pub(super) fn of_cell(cell: &str) -> Option<Value> {
    let cell = cell.trim();
    if cell.is_empty() {
        return None;
    }
    let (head, value) = cell.split_once(':').map_or((cell, ""), |(head, value)| (head.trim(), value.trim()));
    let (kind, threshold) = match head.split_once('(').and_then(|(kind, rest)| Some((kind, rest.strip_suffix(')')?.parse::<f64>().ok()?))) {
        Some((kind, threshold)) => (kind, Some(threshold)),
        None => (head, None),
    };
    let kind = match kind {
        "grade" => "llm-rubric",
        "fn" | "eval" => "javascript",
        other => other,
    };
    let is_kind = CELL_KINDS.contains(&kind.strip_prefix("not-").unwrap_or(kind));
    if !is_kind {
        return Some(json!({"type": "equals", "value": cell}));
    }
    let mut assert = json!({"type": kind});
    if !value.is_empty() {
        assert["value"] = value.into();
    }
    if let Some(threshold) = threshold.or_else(|| ["latency", "cost"].contains(&kind).then(|| value.parse().ok()).flatten()) {
        assert["threshold"] = threshold.into();
    }
    Some(assert)
}

const CELL_KINDS: [&str; 24] = [
    "equals",
    "contains",
    "icontains",
    "contains-any",
    "contains-all",
    "icontains-any",
    "icontains-all",
    "starts-with",
    "ends-with",
    "regex",
    "is-json",
    "levenshtein",
    "rouge-n",
    "bleu",
    "similar",
    "latency",
    "cost",
    "is-refusal",
    "llm-rubric",
    "model-graded-closedqa",
    "javascript",
    "python",
    "contains-json",
    "webhook",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(asserts: Value) -> (Vec<Check>, Vec<String>) {
        let (vars, mut left) = (Map::from_iter([("name".to_string(), json!("Ada"))]), Leaving::default());
        let reading = Reading { vars: &vars, folder: Path::new(""), judge: Some("openai/gpt-4o") };
        let checks = read(&asserts, "assert", &reading, &mut left);
        (checks, left.0.into_iter().map(|left| left.place).collect())
    }

    #[test]
    fn assertions_become_scorers_that_can_be_built() {
        let (found, left) = checks(json!([
            {"type": "equals", "value": "Hi {{name}}"}, {"type": "equals", "value": {"a": 1}}, {"type": "not-contains-any", "value": "a, b"},
            {"type": "icontains", "value": "x"}, {"type": "is-json", "value": {"type": "object"}}, {"type": "similar", "value": "x", "threshold": 0.8},
            {"type": "levenshtein", "value": "x", "threshold": 3}, {"type": "llm-rubric", "value": "kind"}, {"type": "cost", "threshold": 0.01, "weight": 2},
            {"type": "rouge-n", "value": "x"}, {"type": "not-is-refusal"}, {"type": "llm-rubric", "value": "kind", "threshold": 0.7},
        ]));
        assert_eq!((found.len(), left), (12, vec![]));
        assert_eq!(found[0].0, json!({"against": {"target": "Hi Ada", "scorer": "exact_match"}}));
        assert_eq!(found[2].0, json!({"not": {"includes": {"any": ["a", "b"]}}}));
        assert_eq!(found[8].1, 2.0);
    }

    #[test]
    fn what_does_not_carry_over_is_named() {
        let (found, left) = checks(json!([
            {"type": "javascript", "value": "1"}, {"type": "regex", "value": "(?=x)"}, {"type": "contains", "value": "{{ gone }}"},
            {"type": "is-sql"}, {"type": "contains", "value": "x", "transform": "output.x"}, {"type": "contains", "value": "x", "metric": "m"},
            {"type": "assert-set", "threshold": 0.5, "metric": "m", "assert": [{"type": "contains", "value": "x"}, {"type": "python", "value": "1"}]},
            {"type": "similar", "value": "x", "provider": "openai:embedding:y", "config": {}},
        ]));
        assert_eq!(
            left,
            [
                "assert[0]",
                "assert[1]",
                "assert[2]",
                "assert[3]",
                "assert[4]",
                "assert[5].metric",
                "assert[6].metric",
                "assert[6].assert[1]",
                "assert[7].config",
                "assert[7].provider"
            ]
        );
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn cells_of_tables_are_assertions() {
        assert_eq!(of_cell("contains: a: b"), Some(json!({"type": "contains", "value": "a: b"})));
        assert_eq!(of_cell("similar(0.8): x"), Some(json!({"type": "similar", "value": "x", "threshold": 0.8})));
        assert_eq!(of_cell("Note: this"), Some(json!({"type": "equals", "value": "Note: this"})));
        assert_eq!(of_cell("fn:output.length"), Some(json!({"type": "javascript", "value": "output.length"})));
        assert_eq!(of_cell("is-json"), Some(json!({"type": "is-json"})));
        assert_eq!(of_cell(" "), None);
    }
}
