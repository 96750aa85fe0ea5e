//! Tests as samples: inline, or from CSV, YAML, JSON and JSON lines.

use super::Import;
use crate::evals::EvalError;
use serde_json::{Map, Value, json};

/// Keys of a test that are read.
const KNOWN: [&str; 6] = ["vars", "assert", "description", "threshold", "metadata", "options"];
/// Samples that one test with lists of values may become.
const MAX_COMBINATIONS: usize = 10_000;

impl Import<'_> {
    /// The samples of `tests`, with what `defaultTest` says of all.
    ///
    /// # Errors
    /// [`EvalError::Read`] and [`EvalError::Suite`] for files of tests.
    pub(super) fn samples(&mut self, tests: &Value, default: &Value) -> Result<Vec<Value>, EvalError> {
        let mut all = Vec::new();
        match tests {
            Value::Null => all.push(("tests".to_string(), json!({}))),
            Value::Array(list) => {
                for (i, test) in list.iter().enumerate() {
                    self.tests_of(&format!("tests[{i}]"), test, &mut all)?;
                }
            }
            one => self.tests_of("tests", one, &mut all)?,
        }
        if let Some(map) = default.as_object() {
            self.left.unknown("defaultTest", map, &["vars", "assert", "options", "threshold"]);
        }
        let mut samples = Vec::new();
        for (place, test) in all {
            self.sample(&place, &test, default, &mut samples);
        }
        Ok(samples)
    }

    /// One entry: a test, or a file of them.
    fn tests_of(&mut self, place: &str, test: &Value, all: &mut Vec<(String, Value)>) -> Result<(), EvalError> {
        let Some(file) = test.as_str() else {
            all.push((place.to_string(), test.clone()));
            return Ok(());
        };
        let file = file.strip_prefix("file://").unwrap_or(file);
        let Some(text) = self.text_of(place, file)? else { return Ok(()) };
        let wrong = |line: usize, problem: String| EvalError::Suite { file: self.folder.join(file).display().to_string(), line, problem };
        let ending = file.rsplit('.').next().unwrap_or_default().to_lowercase();
        let found: Vec<Value> = match ending.as_str() {
            "jsonl" => {
                let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                lines
                    .map(|(i, line)| serde_json::from_str(line).map_err(|error| wrong(i + 1, error.to_string())))
                    .collect::<Result<_, _>>()?
            }
            "yaml" | "yml" | "json" => serde_norway::from_str(&text).map_err(|error| {
                wrong(error.location().map_or(1, |at| at.line()), error.to_string().lines().next().unwrap_or_default().into())
            })?,
            "csv" => rows(&text).map_err(|(line, problem)| wrong(line, problem))?,
            _ => {
                self.left.out(place, format!("{file}: tests come from CSV, YAML, JSON and JSON lines"));
                return Ok(());
            }
        };
        all.extend(found.into_iter().enumerate().map(|(i, test)| (format!("{file}[{i}]"), test)));
        Ok(())
    }

    fn sample(&mut self, place: &str, test: &Value, default: &Value, samples: &mut Vec<Value>) {
        let Some(map) = test.as_object() else { return self.left.out(place, format!("{test} is no test")) };
        self.left.unknown(place, map, &KNOWN);
        let mut vars = default["vars"].as_object().cloned().unwrap_or_default();
        vars.extend(test["vars"].as_object().cloned().unwrap_or_default());
        for (name, _) in vars.iter().filter(|(_, value)| value.as_str().is_some_and(|text| text.starts_with("file://"))) {
            self.left.out(&format!("{place}.vars.{name}"), "the value stays the name of a file: files of values are not read");
        }
        for (n, vars) in combinations(&vars).into_iter().enumerate() {
            let made = self.scorer(place, (test, default), &vars);
            let number = samples.len() + 1;
            let mut metadata = test["metadata"].as_object().cloned().unwrap_or_default();
            if let Some(description) = test["description"].as_str() {
                metadata.insert("description".into(), description.into());
            }
            let Some(scorer) = made.scorer else {
                self.left.out(place, "no assertion of the test was carried over, and so the test was not");
                return;
            };
            metadata.insert("scorer".into(), scorer);
            self.carried.assertions += made.count;
            let id = if n == 0 { format!("t{number}") } else { format!("t{number}-{}", n + 1) };
            samples.push(json!({"id": id, "input": vars, "target": made.target, "metadata": metadata}));
        }
    }
}

/// The values of a test: where one is a list, one combination for each of its items.
fn combinations(vars: &Map<String, Value>) -> Vec<Map<String, Value>> {
    let mut all = vec![Map::new()];
    for (name, value) in vars {
        let values: Vec<Value> = match value {
            Value::Array(items) if !items.is_empty() && items.iter().all(|item| !item.is_object() && !item.is_array()) => items.clone(),
            other => vec![other.clone()],
        };
        let each = |known: &Map<String, Value>| {
            let with = |value: &Value| {
                known.iter().map(|(name, value)| (name.clone(), value.clone())).chain([(name.clone(), value.clone())]).collect()
            };
            values.iter().map(with).collect::<Vec<Map<String, Value>>>()
        };
        all = all.iter().flat_map(each).take(MAX_COMBINATIONS).collect();
    }
    all
}

/// The rows of a CSV file as tests: columns are variables, `__expected…` are assertions in promptfoo's short form.
fn rows(text: &str) -> Result<Vec<Value>, (usize, String)> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let line = |error: &csv::Error| error.position().map_or(1, |at| at.line() as usize);
    let heads = reader.headers().map_err(|error| (line(&error), error.to_string()))?.clone();
    let mut tests = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| (line(&error), error.to_string()))?;
        let (mut vars, mut asserts, mut test) = (Map::new(), Vec::new(), Map::new());
        for (head, value) in heads.iter().zip(&record) {
            match head.strip_prefix("__") {
                None => drop(vars.insert(head.to_string(), value.into())),
                Some(word) if word.starts_with("expected") && !value.trim().is_empty() => asserts.push(super::assertions::short(value)),
                Some("expected") => {}
                Some("description") => drop(test.insert("description".into(), value.into())),
                Some("threshold") => drop(value.trim().parse::<f64>().map(|threshold| test.insert("threshold".into(), threshold.into()))),
                Some(_) if value.trim().is_empty() => {}
                // What is not known is named by the reader of tests.
                Some(_) => drop(test.insert(head.to_string(), value.into())),
            }
        }
        test.insert("vars".into(), vars.into());
        test.insert("assert".into(), asserts.into());
        tests.push(Value::Object(test));
    }
    Ok(tests)
}
