//! From a configuration to a suite with its dataset and prompts, all of them as texts: nothing is written here.

use super::cases::Tests;
use super::prompts::Found;
use super::providers::Model;
use super::{Leaving, Left, files, prompts, providers};
use crate::evals::matrix::MAX_TARGETS;
use crate::evals::variants::{free, slug};
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;

/// What to make of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Name of the suite.
    pub name: String,
    /// Model that grades where an assertion names none.
    pub judge: Option<String>,
}

/// A suite, to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Files by name: the suite first, then its dataset and prompts.
    pub files: Vec<(String, String)>,
    /// Targets of the suite.
    pub targets: usize,
    /// Samples of its dataset.
    pub samples: usize,
    /// What did not carry over.
    pub left: Vec<Left>,
}

/// What is read of a configuration.
const KEYS: [&str; 10] =
    ["$schema", "description", "prompts", "providers", "targets", "tests", "defaultTest", "evaluateOptions", "tags", "metadata"];

/// What is read of `defaultTest`.
const DEFAULTS: [&str; 5] = ["vars", "assert", "threshold", "metadata", "options"];

/// Reads a configuration file.
///
/// # Errors
/// [`Code::INVALID_FILE`] with the line of what is no YAML; [`Code::INVALID_VALUE`] where nothing is left to measure.
pub fn import(file: &Path, wish: &Wish) -> Result<Imported, Failure> {
    let shown = file.display().to_string();
    let folder = file.parent().unwrap_or(Path::new(""));
    let config = files::value(&files::text(Path::new(""), &shown)?, &shown)?;
    let Value::Object(fields) = &config else {
        return Err(Failure::new(
            Code::INVALID_FILE,
            format!("{shown}: expected the keys of a promptfooconfig.yaml: prompts, providers, tests"),
        ));
    };
    let mut left = Leaving::default();
    for name in fields.keys().filter(|name| !KEYS.contains(&name.as_str())) {
        left.add(name.clone(), "is not carried over");
    }
    let models = providers::read(fields.get("providers").or(fields.get("targets")).unwrap_or(&Value::Null), &mut left);
    let prompts = prompts::read(fields.get("prompts").unwrap_or(&Value::Null), folder, &mut left)?;
    let defaults = defaults(fields.get("defaultTest"), folder, &mut left)?;
    let judge = judge(&defaults, wish, &mut left);
    let tests = Tests { folder, defaults: &defaults, judge: judge.as_deref() };
    let samples = tests.read(fields.get("tests").unwrap_or(&Value::Null), &mut left)?;
    for (what, is_empty) in [("providers", models.is_empty()), ("prompts", prompts.is_empty()), ("tests", samples.is_empty())] {
        if is_empty {
            let lost: Vec<String> =
                left.0.iter().filter(|left| left.place.starts_with(what)).map(|left| format!("{}: {}", left.place, left.why)).collect();
            let why = if lost.is_empty() { "there are none".to_string() } else { lost.join("; ") };
            return Err(Failure::new(Code::INVALID_VALUE, format!("{shown}: none of its {what} carries over: {why}")));
        }
    }
    let named = named(&prompts, &wish.name);
    let (targets, too_many) = targets(&models, &named);
    if too_many {
        left.add("providers", format!("of more than {MAX_TARGETS} combinations with prompts the first are kept"));
    }
    let mut files = vec![
        (format!("{}.yaml", wish.name), suite(fields, wish, &targets, &mut left)),
        (format!("{}.jsonl", wish.name), samples.iter().map(|sample| format!("{sample}\n")).collect()),
    ];
    files.extend(named.into_iter().map(|(name, prompt)| (format!("{name}.prompt"), source(&prompt, &samples))));
    Ok(Imported { files, targets: targets.len(), samples: samples.len(), left: left.0 })
}

/// `defaultTest`, which may stand in a file of its own.
fn defaults(given: Option<&Value>, folder: &Path, left: &mut Leaving) -> Result<Value, Failure> {
    let value = match given.and_then(Value::as_str) {
        None => given.cloned().unwrap_or_default(),
        Some(text) => match files::reference(text).filter(|file| [".yaml", ".yml", ".json"].iter().any(|ending| file.ends_with(ending))) {
            Some(file) => files::value(&files::text(folder, file)?, file)?,
            None => {
                left.add("defaultTest", format!("{text:?} is no map, and no YAML or JSON file"));
                Value::Null
            }
        },
    };
    for name in value.as_object().into_iter().flat_map(Map::keys).filter(|name| !DEFAULTS.contains(&name.as_str())) {
        left.add(format!("defaultTest.{name}"), "is not carried over");
    }
    Ok(value)
}

/// The model that grades: the one that was asked for, else the one of `defaultTest.options`.
fn judge(defaults: &Value, wish: &Wish, left: &mut Leaving) -> Option<String> {
    let provider = &defaults["options"]["provider"];
    let id = provider.as_str().or_else(|| provider["id"].as_str());
    let theirs = id.and_then(providers::model);
    if let (Some(id), None) = (id, &theirs) {
        left.add("defaultTest.options.provider", format!("{id:?} has no counterpart here"));
    }
    for name in defaults["options"].as_object().into_iter().flat_map(Map::keys).filter(|name| *name != "provider") {
        left.add(format!("defaultTest.options.{name}"), "is not carried over");
    }
    wish.judge.clone().or(theirs)
}

/// Each prompt with a name of its own.
fn named(prompts: &[Found], suite: &str) -> Vec<(String, Found)> {
    let mut taken = HashSet::new();
    let name = |label: &str| match slug(label).trim_matches(['-', '.', '_']) {
        "" => "prompt".to_string(),
        plain => plain.to_string(),
    };
    prompts.iter().map(|prompt| (free(&slug(&format!("{suite}-{}", name(&prompt.label))), &mut taken), prompt.clone())).collect()
}

fn targets(models: &[Model], prompts: &[(String, Found)]) -> (Vec<Value>, bool) {
    let mut taken = HashSet::new();
    let mut targets = Vec::new();
    for (file, prompt) in prompts {
        for model in models {
            let short = model.label.clone().unwrap_or_else(|| model.model.split('/').next_back().unwrap_or_default().to_string());
            let wanted = if prompts.len() > 1 { format!("{}-{short}", prompt.label) } else { short };
            let wanted = slug(&wanted).trim_start_matches(['-', '.', '_']).to_string();
            let name = free(if wanted.is_empty() { "target" } else { &wanted }, &mut taken);
            let mut target = json!({"name": name, "model": model.model, "prompt": format!("{file}.prompt")});
            if !model.parameters.is_empty() {
                target["parameters"] = Value::Object(model.parameters.clone());
            }
            targets.push(target);
        }
    }
    let too_many = targets.len() > MAX_TARGETS;
    targets.truncate(MAX_TARGETS);
    (targets, too_many)
}

fn suite(fields: &Map<String, Value>, wish: &Wish, targets: &[Value], left: &mut Leaving) -> String {
    let mut suite = json!({"name": wish.name});
    if let Some(description) = fields.get("description").filter(|text| text.is_string()) {
        suite["description"] = description.clone();
    }
    suite["dataset"] = format!("{}.jsonl", wish.name).into();
    for (name, value) in fields.get("evaluateOptions").and_then(Value::as_object).into_iter().flatten() {
        match name.as_str() {
            "maxConcurrency" if value.as_u64().is_some_and(|n| (1..=1024).contains(&n)) => suite["concurrency"] = value.clone(),
            "repeat" if value.as_u64().is_some_and(|n| (1..=1000).contains(&n)) => suite["repeats"] = value.clone(),
            "cache" if value.is_boolean() => suite["cache"] = value.clone(),
            _ => left.add(format!("evaluateOptions.{name}"), "is not carried over"),
        }
    }
    suite["targets"] = targets.into();
    suite["scorers"] = json!(["checks"]);
    // There, one assertion that fails is enough for the exit code.
    suite["gate"] = json!([{"metric": "checks", "at_least": 1.0}]);
    serde_norway::to_string(&suite).unwrap_or_default()
}

/// A prompt's file. Variables that a sample may leave out are empty there, as promptfoo has them.
fn source(prompt: &Found, samples: &[Value]) -> String {
    let lacking: Map<String, Value> = prompt
        .variables
        .iter()
        .filter(|name| samples.iter().any(|sample| sample["input"].get(name.as_str()).is_none()))
        .map(|name| (name.clone(), "".into()))
        .collect();
    let mut front = json!({"description": prompt.label});
    if !lacking.is_empty() {
        front["input"] = json!({"default": lacking});
    }
    format!("---\n{}---\n{}\n", serde_norway::to_string(&front).unwrap_or_default(), prompt.body.trim_end())
}
