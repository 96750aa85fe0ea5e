//! A suite file, read and checked: unknown keys are refused with their line and the nearest name.

use super::EvalError;
use super::scorers::{self, Scorer};
use crate::datasets::{Plan as SplitPlan, split};
use crate::releases::conditions::{Condition, Measure};
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::Path;

/// A suite, as the program uses it.
pub struct Suite {
    /// Name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// A file below the suite's folder, or a stored dataset (`name`, `name@2`, `sha256:…`).
    pub dataset: String,
    /// How a dataset that was never split is split.
    pub splits: Option<SplitPlan>,
    /// Split that is measured; all samples without one.
    pub split: Option<String>,
    /// Cases asked at the same time.
    pub concurrency: usize,
    /// What is measured.
    pub targets: Vec<Target>,
    /// How answers are scored.
    pub scorers: Vec<Box<dyn Scorer>>,
    /// What must be reached.
    pub gate: Vec<GateCondition>,
    /// The file's text; its digest names the suite's version.
    pub source: String,
    /// Folder that the suite's paths start from.
    pub folder: std::path::PathBuf,
}

/// One thing to measure.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name in reports.
    pub name: String,
    /// `provider/model`.
    pub model: String,
    /// Adapter of a local model: name, name@version or digest.
    #[serde(default)]
    pub adapter: Option<String>,
    /// A `.prompt` file below the suite's folder, or a reference into the library.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Decoding parameters; they win over the prompt's `config`.
    #[serde(default)]
    pub parameters: Map<String, Value>,
}

/// A condition, for one target or for every one.
#[derive(Debug, Clone, PartialEq)]
pub struct GateCondition {
    /// Target that must meet it; every one when absent.
    pub target: Option<String>,
    /// Metric, measure and bound.
    pub condition: Condition,
}

/// Cases asked at the same time when the suite does not say.
pub const CONCURRENCY: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default)]
    description: String,
    dataset: String,
    #[serde(default)]
    splits: Option<RawSplits>,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    concurrency: Option<usize>,
    targets: Vec<Target>,
    scorers: Vec<Value>,
    #[serde(default)]
    gate: Vec<RawCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSplits {
    #[serde(default = "default_seed")]
    seed: u64,
    #[serde(default)]
    by: Option<String>,
    train: f64,
    validation: f64,
    test: f64,
    #[serde(default = "default_near")]
    near: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCondition {
    #[serde(default)]
    target: Option<String>,
    metric: String,
    #[serde(default)]
    on: Measure,
    at_least: f64,
}

fn default_seed() -> u64 {
    SplitPlan::default().seed
}

fn default_near() -> f64 {
    split::NEAR
}

impl Suite {
    /// Reads a suite file.
    ///
    /// # Errors
    /// [`EvalError::Suite`] with the line, [`EvalError::Read`].
    pub fn open(file: &Path) -> Result<Self, EvalError> {
        let shown = file.display().to_string();
        let source = std::fs::read_to_string(file).map_err(|cause| EvalError::Read { file: shown.clone(), cause })?;
        Suite::parse(&source, &shown, file.parent().unwrap_or(Path::new("")))
    }

    /// Reads a suite from text; `file` names it in errors, `folder` is where its paths start.
    ///
    /// # Errors
    /// [`EvalError::Suite`] with the line.
    pub fn parse(source: &str, file: &str, folder: &Path) -> Result<Self, EvalError> {
        let raw: Raw = serde_norway::from_str(source).map_err(|error| {
            let line = error.location().map_or(1, |at| at.line());
            let problem = explain(&error.to_string());
            let line = quoted(&problem).and_then(|key| line_of_key(source, key, line)).unwrap_or(line);
            EvalError::Suite { file: file.to_string(), line, problem }
        })?;
        let at = |needle: &str, problem: String| {
            let line = source.lines().position(|line| line.contains(needle)).map_or(1, |i| i + 1);
            EvalError::Suite { file: file.to_string(), line, problem }
        };
        let mut scorers = Vec::new();
        for spec in &raw.scorers {
            scorers.push(scorers::build(spec).map_err(|(name, problem)| at(&name, format!("scorers: {problem}")))?);
        }
        let gate = raw.gate.iter().map(RawCondition::checked).collect();
        let suite = Suite {
            name: raw.name,
            description: raw.description,
            dataset: raw.dataset,
            splits: raw.splits.map(RawSplits::plan),
            split: raw.split,
            concurrency: raw.concurrency.unwrap_or(CONCURRENCY),
            targets: raw.targets,
            scorers,
            gate,
            source: source.to_string(),
            folder: folder.to_path_buf(),
        };
        suite.check().map_err(|(needle, problem)| at(&needle, problem))?;
        Ok(suite)
    }

    /// Names of all metrics, in the order of the scorers.
    pub fn metrics(&self) -> Vec<String> {
        self.scorers.iter().flat_map(|scorer| scorer.metrics()).collect()
    }

    /// The place of a file that the suite names.
    pub fn path(&self, file: &str) -> std::path::PathBuf {
        self.folder.join(file)
    }

    fn check(&self) -> Result<(), (String, String)> {
        let fault = |needle: &str, problem: String| Err((needle.to_string(), problem));
        if !is_slug(&self.name) {
            return fault(
                "name",
                format!("name: \"{}\" is not 1 to 64 lower-case letters, digits, dots, dashes and underscores", self.name),
            );
        }
        if self.targets.is_empty() || self.scorers.is_empty() {
            return fault("targets", "a suite needs at least one target and one scorer".into());
        }
        if self.concurrency == 0 || self.concurrency > 1024 {
            return fault("concurrency", "concurrency must be 1 to 1024".into());
        }
        let mut names = HashSet::new();
        for target in &self.targets {
            if !is_slug(&target.name) || !names.insert(target.name.as_str()) {
                return fault(&target.name, format!("targets: \"{}\" is used twice or is not a plain name", target.name));
            }
            if !target.model.contains('/') {
                let hint = did_you_mean(&target.model, ["mock/echo", "local/smollm2-135m-instruct"]);
                return fault(&target.model, format!("targets.{}.model: \"{}\" is not provider/model{hint}", target.name, target.model));
            }
        }
        let metrics = self.metrics();
        let mut seen = HashSet::new();
        if let Some(twice) = metrics.iter().find(|metric| !seen.insert(metric.as_str())) {
            return fault("scorers", format!("scorers: two report \"{twice}\"; give one of them a `name`"));
        }
        for GateCondition { target, condition } in &self.gate {
            if !metrics.contains(&condition.metric) {
                let nearest = did_you_mean(&condition.metric, metrics.iter().map(String::as_str));
                return fault(&condition.metric, format!("gate: no scorer reports \"{}\"{nearest}", condition.metric));
            }
            if let Some(target) = target.as_ref().filter(|target| !names.contains(target.as_str())) {
                return fault(target, format!("gate: there is no target \"{target}\"{}", did_you_mean(target, names.iter().copied())));
            }
        }
        Ok(())
    }
}

impl RawSplits {
    fn plan(self) -> SplitPlan {
        SplitPlan { seed: self.seed, by: self.by, sizes: [self.train, self.validation, self.test], near: self.near, ..SplitPlan::default() }
    }
}

impl RawCondition {
    fn checked(&self) -> GateCondition {
        let condition = Condition { metric: self.metric.clone(), on: self.on, at_least: self.at_least };
        GateCondition { target: self.target.clone(), condition }
    }
}

/// Serde's `unknown field` message with the nearest of the fields it lists.
fn explain(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let without_place = message.rsplit_once(" at line ").map_or(message, |(head, _)| head);
    let Some((path, rest)) = without_place.split_once("unknown field `") else { return without_place.replace('`', "\"") };
    let mut quoted = rest.split('`');
    let key = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    format!("{path}unknown key \"{key}\"{} (keys: {})", did_you_mean(key, known.iter().copied()), known.join(", "))
}

fn quoted(problem: &str) -> Option<&str> {
    problem.split_once("unknown key \"")?.1.split('"').next()
}

/// The line of a key at or after the place that the parser names, else before it: parsers point at the map, people look for the key.
fn line_of_key(source: &str, key: &str, from: usize) -> Option<usize> {
    let has_key = |line: &str| {
        let line = line.trim_start().trim_start_matches("- ");
        line.starts_with(&format!("{key}:")) || line.contains(&format!("{{{key}:")) || line.contains(&format!(", {key}:"))
    };
    let lines: Vec<usize> = source.lines().enumerate().filter(|(_, line)| has_key(line)).map(|(i, _)| i + 1).collect();
    lines.iter().find(|line| **line >= from).or(lines.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name: s\ndataset: d.jsonl\nsplit: test\nsplits: {train: 0.5, validation: 0.2, test: 0.3}\ntargets:\n  - name: a\n    model: mock/echo\n\
                        scorers:\n  - exact_match\n  - includes: {value: x, name: has_x}\ngate:\n  - {metric: has_x, on: ci_low, at_least: 0.5, target: a}\n";

    fn fault(source: &str) -> (usize, String) {
        match Suite::parse(source, "s.yaml", Path::new("")) {
            Err(EvalError::Suite { line, problem, .. }) => (line, problem),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("parsed: {source}"),
        }
    }

    #[test]
    fn a_whole_suite_is_read() {
        let suite = Suite::parse(GOOD, "s.yaml", Path::new("evals")).expect("parses");
        assert_eq!(suite.metrics(), ["exact_match", "has_x"]);
        assert_eq!(suite.gate[0].condition.to_string(), "has_x:ci_low>=0.5");
        assert_eq!((suite.concurrency, suite.path(&suite.dataset)), (CONCURRENCY, "evals/d.jsonl".into()));
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_nearest() {
        for (from, to, line, part) in [
            ("split: test", "splitt: test", 3, "unknown key \"splitt\"; did you mean \"split\"?"),
            ("    model:", "    modle:", 7, "unknown key \"modle\"; did you mean \"model\"?"),
            ("at_least: 0.5", "at_leest: 0.5", 12, "did you mean \"at_least\""),
            ("- exact_match", "- exact_mach", 9, "did you mean \"exact_match\""),
            ("{value: x", "{valu: x", 10, "did you mean \"value\""),
            ("metric: has_x", "metric: hasx", 12, "did you mean \"has_x\""),
            ("target: a}", "target: b}", 12, "no target \"b\""),
            ("mock/echo", "echo", 7, "not provider/model"),
            ("dataset: d.jsonl\n", "", 1, "missing field \"dataset\""),
            ("targets:\n", "targets: [\n", 12, ""),
        ] {
            let (found, problem) = fault(&GOOD.replace(from, to));
            assert!(problem.contains(part), "{to}: {problem}");
            assert!(found == line || part.is_empty(), "{to}: line {found}: {problem}");
        }
    }
}
