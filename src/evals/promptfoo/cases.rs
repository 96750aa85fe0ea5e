//! Tests of a configuration as samples: variables become the input, assertions the sample's own checks.

use super::asserts::{self, Reading};
use super::{Leaving, files};
use crate::types::Failure;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Samples that one test may become, by lists among its variables.
const MAX_COMBINATIONS: usize = 10_000;
/// What is read of a test.
const KEYS: [&str; 6] = ["description", "vars", "assert", "threshold", "metadata", "options"];

/// What tests are read with.
pub(super) struct Tests<'a> {
    pub(super) folder: &'a Path,
    pub(super) defaults: &'a Value,
    pub(super) judge: Option<&'a str>,
}

impl Tests<'_> {
    /// The samples of `tests`, as JSON.
    pub(super) fn read(&self, tests: &Value, left: &mut Leaving) -> Result<Vec<Value>, Failure> {
        let mut samples = Vec::new();
        let list = match tests {
            Value::Array(list) => list.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        for (i, test) in list.iter().enumerate() {
            let place = format!("tests[{i}]");
            match test.as_str() {
                None => self.test(test, &place, &mut samples, left)?,
                Some(text) => match files::reference(text).unwrap_or(text) {
                    file if file.ends_with(".csv") || file.ends_with(".jsonl") => {
                        for (j, row) in files::rows(&files::text(self.folder, file)?, file)?.iter().enumerate() {
                            let place = format!("{file}[{j}]");
                            match file.ends_with(".csv") {
                                true => self.test(&of_row(row, &place, left), &place, &mut samples, left)?,
                                false => self.test(row, &place, &mut samples, left)?,
                            }
                        }
                    }
                    file if [".yaml", ".yml", ".json"].iter().any(|ending| file.ends_with(ending)) => {
                        let value = files::value(&files::text(self.folder, file)?, file)?;
                        for (j, test) in value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]).iter().enumerate() {
                            self.test(test, &format!("{file}[{j}]"), &mut samples, left)?;
                        }
                    }
                    other => left.add(place, format!("{other}: tests are read from YAML, JSON, JSONL and CSV files")),
                },
            }
        }
        Ok(samples)
    }

    fn test(&self, test: &Value, place: &str, samples: &mut Vec<Value>, left: &mut Leaving) -> Result<(), Failure> {
        let Some(fields) = test.as_object() else {
            left.add(place, "is no test");
            return Ok(());
        };
        for name in fields.keys().filter(|name| !KEYS.contains(&name.as_str())) {
            left.add(format!("{place}.{name}"), "is not carried over");
        }
        for name in fields.get("options").and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            left.add(format!("{place}.options.{name}"), "is not carried over");
        }
        let mut vars = self.defaults["vars"].as_object().cloned().unwrap_or_default();
        vars.extend(self.vars(fields.get("vars"), place, left)?);
        for vars in combinations(&vars, place, left) {
            let reading = Reading { vars: &vars, folder: self.folder, judge: self.judge };
            let mut checks = asserts::read(&self.defaults["assert"], "defaultTest.assert", &reading, left);
            checks.extend(asserts::read(fields.get("assert").unwrap_or(&Value::Null), &format!("{place}.assert"), &reading, left));
            let threshold = fields.get("threshold").or(self.defaults.get("threshold")).and_then(Value::as_f64);
            let mut metadata = self.defaults["metadata"].as_object().cloned().unwrap_or_default();
            metadata.extend(fields.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default());
            metadata
                .extend(fields.get("description").filter(|text| text.is_string()).map(|text| ("description".to_string(), text.clone())));
            metadata.extend(asserts::together(checks, threshold).map(|checks| ("checks".to_string(), checks)));
            let id = format!("test-{:04}", samples.len() + 1);
            samples.push(json!({"id": id, "input": vars, "target": null, "metadata": metadata}));
        }
        Ok(())
    }

    /// A test's variables; those that name a file have its text.
    fn vars(&self, vars: Option<&Value>, place: &str, left: &mut Leaving) -> Result<Map<String, Value>, Failure> {
        let given = match vars {
            Some(Value::Object(vars)) => vars.clone(),
            Some(Value::String(text)) if files::reference(text).is_some_and(|file| file.ends_with(".yaml") || file.ends_with(".json")) => {
                let file = files::reference(text).unwrap_or_default();
                files::value(&files::text(self.folder, file)?, file)?.as_object().cloned().unwrap_or_default()
            }
            Some(Value::Null) | None => Map::new(),
            Some(_) => {
                left.add(format!("{place}.vars"), "is no map of variables");
                Map::new()
            }
        };
        let mut vars = Map::new();
        for (name, value) in given {
            let file = value.as_str().and_then(files::reference);
            match file {
                Some(file) if [".txt", ".md", ".json", ".yaml", ".yml", ".html", ".csv"].iter().any(|ending| file.ends_with(ending)) => {
                    vars.insert(name, files::text(self.folder, file)?.into());
                }
                Some(file) => left.add(format!("{place}.vars.{name}"), format!("{file}: code and pictures of files are not carried over")),
                None => drop(vars.insert(name, value)),
            }
        }
        Ok(vars)
    }
}

/// A test from a row of a table: `__expected`, `__expected2`, … are assertions, `__description` its name, every other column a variable.
fn of_row(row: &Value, place: &str, left: &mut Leaving) -> Value {
    let mut test = json!({"vars": {}, "assert": []});
    for (name, value) in row.as_object().into_iter().flatten() {
        let cell = value.as_str().unwrap_or_default();
        match name.strip_prefix("__") {
            None => drop(test["vars"].as_object_mut().map(|vars| vars.insert(name.clone(), value.clone()))),
            Some(special) if special.strip_prefix("expected").is_some_and(|rest| rest.bytes().all(|digit| digit.is_ascii_digit())) => {
                let assert = asserts::of_cell(cell);
                test["assert"].as_array_mut().into_iter().for_each(|list| list.extend(assert.clone()));
            }
            Some("description") => test["description"] = value.clone(),
            Some("threshold") => test["threshold"] = cell.parse::<f64>().map_or(Value::Null, Value::from),
            Some(special) => match special.strip_prefix("metadata:") {
                Some(key) => {
                    let list = key.strip_suffix("[]");
                    let value = list.map_or_else(|| value.clone(), |_| cell.split(',').map(|part| Value::from(part.trim())).collect());
                    test["metadata"][list.unwrap_or(key)] = value;
                }
                None => left.add(format!("{place}.{name}"), "is not carried over"),
            },
        }
    }
    test
}

/// Every combination of the variables that are lists of texts.
fn combinations(vars: &Map<String, Value>, place: &str, left: &mut Leaving) -> Vec<Map<String, Value>> {
    let mut all = vec![Map::new()];
    for (name, value) in vars {
        let choices = match value {
            Value::Array(list) if !list.is_empty() && list.iter().all(|item| item.is_string() || item.is_number()) => list.clone(),
            one => vec![one.clone()],
        };
        if all.len() * choices.len() > MAX_COMBINATIONS {
            left.add(format!("{place}.vars.{name}"), format!("more than {MAX_COMBINATIONS} combinations; the first value stands for all"));
            all.iter_mut().for_each(|vars| drop(vars.insert(name.clone(), choices[0].clone())));
            continue;
        }
        let with = |vars: &Map<String, Value>, choice: &Value| {
            let mut vars = vars.clone();
            vars.insert(name.clone(), choice.clone());
            vars
        };
        all = all.iter().flat_map(|vars| choices.iter().map(move |choice| with(vars, choice))).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_become_samples_with_checks_of_their_own() {
        let defaults = json!({"vars": {"tone": "kind"}, "assert": [{"type": "contains", "value": "{{tone}}"}]});
        let tests = Tests { folder: Path::new(""), defaults: &defaults, judge: None };
        let mut left = Leaving::default();
        let list = json!([
            {"description": "both", "vars": {"q": ["a", "b"]}, "assert": [{"type": "equals", "value": "{{q}}"}], "threshold": 0.5},
            {"vars": {"q": "c"}, "metadata": {"tags": ["core"]}, "provider": "x", "options": {"prefix": "p"}},
        ]);
        let samples = tests.read(&list, &mut left).expect("reads");
        let inputs: Vec<_> = samples.iter().map(|sample| (sample["id"].clone(), sample["input"].clone())).collect();
        assert_eq!(inputs[1], (json!("test-0002"), json!({"tone": "kind", "q": "b"})));
        assert_eq!(samples[0]["metadata"]["checks"]["threshold"]["at_least"], 0.5);
        assert_eq!(samples[2]["metadata"], json!({"tags": ["core"], "checks": [{"includes": {"value": "kind"}}]}));
        let places: Vec<_> = left.0.iter().map(|left| left.place.as_str()).collect();
        assert_eq!(places, ["tests[1].provider", "tests[1].options.prefix"]);
    }
}
