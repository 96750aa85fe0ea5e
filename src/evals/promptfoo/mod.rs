//! A configuration of promptfoo as a suite: its prompts, providers, tests and assertions. What has no counterpart here is listed in
//! [`Imported::left_out`], each with its place and the reason, and never dropped in silence.
//!
//! Each test becomes a sample that brings its own scorer (`per_sample`), because promptfoo's assertions stand with the tests.

mod assertions;
mod prompts;
mod providers;
mod tests;

use super::EvalError;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a configuration becomes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// Name of the suite, and of its files.
    pub name: String,
    /// The suite, as YAML.
    pub suite: String,
    /// The samples, as JSON lines.
    pub samples: String,
    /// Prompt files: name and source.
    pub prompts: Vec<(String, String)>,
    /// Targets, samples and assertions that were carried over.
    pub carried: Carried,
    /// What was not.
    pub left_out: Vec<LeftOut>,
}

/// How much was carried over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// Prompts.
    pub prompts: usize,
    /// Models.
    pub models: usize,
    /// Samples.
    pub samples: usize,
    /// Assertions, over all samples.
    pub assertions: usize,
}

/// Something that was not carried over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Where it stands: `tests[3].assert[0]`.
    pub place: String,
    /// What it is, and why it was left out.
    pub why: String,
}

/// Notes what is left out.
#[derive(Debug, Default)]
struct Left(Vec<LeftOut>);

impl Left {
    fn out(&mut self, place: &str, why: impl Into<String>) {
        let one = LeftOut { place: place.to_string(), why: why.into() };
        if !self.0.contains(&one) {
            self.0.push(one);
        }
    }

    /// Everything in a map but what is known, each with the same reason.
    fn unknown(&mut self, place: &str, map: &Map<String, Value>, known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.out(&format!("{place}{}{key}", if place.is_empty() { "" } else { "." }), "has no counterpart here");
        }
    }
}

/// What the parts of an import share.
struct Import<'a> {
    folder: &'a Path,
    /// The model that judges, where the configuration names none that can be called.
    judge: Option<String>,
    left: Left,
    carried: Carried,
}

/// Keys of a configuration that are read.
const KNOWN: [&str; 6] = ["description", "prompts", "providers", "tests", "defaultTest", "targets"];

/// Reads a configuration. `judge` is the model for rubrics that name none.
///
/// # Errors
/// [`EvalError::Suite`] for what is no configuration, or has nothing that can be carried over; [`EvalError::Read`].
pub fn import(file: &Path, name: &str, judge: Option<String>) -> Result<Imported, EvalError> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|cause| EvalError::Read { file: shown.clone(), cause })?;
    let wrong = |line: usize, problem: String| EvalError::Suite { file: shown.clone(), line, problem };
    let config: Map<String, Value> = serde_norway::from_str(&text)
        .map_err(|error| wrong(error.location().map_or(1, |at| at.line()), error.to_string().lines().next().unwrap_or_default().into()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut import = Import { folder, judge, left: Left::default(), carried: Carried::default() };
    import.left.unknown("", &config, &KNOWN);
    let prompts = import.prompts(name, config.get("prompts").unwrap_or(&Value::Null))?;
    let models = import.models(config.get("providers").or(config.get("targets")).unwrap_or(&Value::Null));
    let samples = import.samples(config.get("tests").unwrap_or(&Value::Null), config.get("defaultTest").unwrap_or(&Value::Null))?;
    for (what, is_empty) in [("prompts", prompts.is_empty()), ("providers", models.is_empty()), ("tests", samples.is_empty())] {
        if is_empty {
            let why: Vec<String> = import
                .left
                .0
                .iter()
                .filter(|left| left.place.starts_with(what))
                .map(|left| format!("{}: {}", left.place, left.why))
                .collect();
            return Err(wrong(1, format!("no {what} that can be carried over; {}", why.join("; "))));
        }
    }
    import.carried = Carried { prompts: prompts.len(), models: models.len(), samples: samples.len(), ..import.carried };
    let description = config.get("description").and_then(Value::as_str).unwrap_or("Imported from promptfoo");
    Ok(Imported {
        name: name.to_string(),
        suite: suite(name, description, &prompts, &models),
        samples: samples.iter().map(|sample| format!("{sample}\n")).collect(),
        prompts,
        carried: import.carried,
        left_out: import.left.0,
    })
}

fn suite(name: &str, description: &str, prompts: &[(String, String)], models: &[providers::Model]) -> String {
    let mut targets = Vec::new();
    for (file, _) in prompts {
        for model in models {
            let word = if models.len() > 1 { &model.name } else { "" };
            let prompt = if prompts.len() > 1 { file.trim_end_matches(".prompt") } else { "" };
            let parts: Vec<&str> = [prompt, word].into_iter().filter(|part| !part.is_empty()).collect();
            let target = if parts.is_empty() { model.name.clone() } else { parts.join("-") };
            targets.push(json!({"name": target.chars().take(64).collect::<String>(), "model": model.model, "prompt": file, "parameters": model.parameters}));
        }
    }
    let suite = json!({
        "name": name,
        "description": description,
        "dataset": format!("{name}.jsonl"),
        "targets": targets,
        "scorers": [{"per_sample": {"name": "assertions"}}],
    });
    serde_norway::to_string(&suite).unwrap_or_default()
}
