//! A suite file, read and checked: unknown keys are refused with their line and the nearest name.

use super::EvalError;
use super::bounds::{self, Bounds};
use super::demands::{self, Demand, What};
use super::matrix::{MAX_TARGETS, Matrix};
use super::scorers::files::Kept;
use super::scorers::{self, Scale, Scorer, ScorerFiles};
use crate::datasets::{Plan as SplitPlan, split};
use crate::releases::conditions::{Bound, Condition, Measure};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

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
    /// How often each sample is asked.
    pub repeats: usize,
    /// Field of the samples by which they come in groups (`metadata.article`): errors are clustered by it.
    pub cluster: Option<String>,
    /// Whether answers that were given before are given again.
    pub cache: bool,
    /// What a run may cost and take.
    pub bounds: Bounds,
    /// What must be reached.
    pub gate: Vec<GateCondition>,
    /// What is demanded besides.
    pub demands: Vec<Demand>,
    /// Digest of the scorers as they are written, with the files that they are made of. None where a program outside of the suite scores:
    /// nobody knows whether it is the same one tomorrow, so that no gate can rely on it.
    pub scorers_digest: Option<Digest>,
    /// Files that scorers are made of.
    pub files: Kept,
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
/// How often a sample may be asked.
pub const MAX_REPEATS: usize = 1_000;

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
    #[serde(default)]
    repeats: Option<usize>,
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    cache: bool,
    #[serde(default)]
    max_cost: Option<Value>,
    #[serde(default)]
    max_time: Option<String>,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    matrix: Option<Matrix>,
    scorers: Vec<Value>,
    #[serde(default)]
    gate: Vec<Value>,
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
    #[serde(default)]
    at_least: Option<f64>,
    #[serde(default)]
    at_most: Option<f64>,
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
        Suite::parse_with(source, file, folder, ScorerFiles::below(folder))
    }

    /// As [`Suite::parse`]; `files` is where those are that scorers are made of.
    ///
    /// # Errors
    /// [`EvalError::Suite`] with the line.
    pub fn parse_with(source: &str, file: &str, folder: &Path, files: ScorerFiles) -> Result<Self, EvalError> {
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
        let (mut scorers, files) = (Vec::new(), Arc::new(files));
        for spec in &raw.scorers {
            scorers.push(scorers::build_with(spec, &files).map_err(|(name, problem)| at(&name, format!("scorers: {problem}")))?);
        }
        let (gate, demands) = gate(raw.gate).map_err(|(needle, problem)| at(&needle, problem))?;
        let bounds = bounds::read(raw.max_cost.as_ref(), raw.max_time.as_deref()).map_err(|(needle, problem)| at(&needle, problem))?;
        let mut targets = raw.targets;
        if let Some(matrix) = &raw.matrix {
            targets.extend(matrix.targets(&targets).map_err(|(needle, problem)| at(&needle, problem))?);
        }
        let suite = Suite {
            name: raw.name,
            description: raw.description,
            dataset: raw.dataset,
            splits: raw.splits.map(RawSplits::plan),
            split: raw.split,
            concurrency: raw.concurrency.unwrap_or(CONCURRENCY),
            targets,
            scorers_digest: digest_of(raw.scorers, &scorers, &files.taken()),
            files: files.taken(),
            scorers,
            repeats: raw.repeats.unwrap_or(1),
            cluster: raw.cluster,
            cache: raw.cache,
            bounds,
            gate,
            demands,
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

    /// The main metric of each scorer, where it is from 0 to 1: what is compared.
    pub fn main_metrics(&self) -> Vec<String> {
        self.mains(&[Scale::Pass, Scale::Share])
    }

    /// The main metrics that say right or wrong: what a case needs full marks in to pass. How good an answer is is no verdict; a threshold
    /// makes one of it.
    pub fn pass_metrics(&self) -> Vec<String> {
        self.mains(&[Scale::Pass])
    }

    fn mains(&self, scales: &[Scale]) -> Vec<String> {
        let main = self.scorers.iter().filter_map(|scorer| Some((scorer, scorer.metrics().into_iter().next()?)));
        main.filter(|(scorer, metric)| scales.contains(&scorer.scale(metric))).map(|(_, metric)| metric).collect()
    }

    /// What the values of a metric mean; none where no scorer reports it.
    pub fn scale(&self, metric: &str) -> Option<Scale> {
        let found = self.scorers.iter().find(|scorer| scorer.metrics().iter().any(|known| known == metric));
        found.map(|scorer| scorer.scale(metric))
    }

    /// Names of all that runs give: metrics, and what cases add up to.
    pub fn figures(&self) -> Vec<String> {
        self.scorers.iter().flat_map(|scorer| scorer.metrics().into_iter().chain(scorer.aggregates())).collect()
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
            return fault("targets", "a suite needs at least one target (`targets` or `matrix`) and one scorer".into());
        }
        if self.targets.len() > MAX_TARGETS {
            return fault("targets", format!("a suite has at most {MAX_TARGETS} targets, not {}", self.targets.len()));
        }
        if self.repeats == 0 || self.repeats > MAX_REPEATS {
            return fault("repeats", format!("repeats must be 1 to {MAX_REPEATS}"));
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
        let metrics = self.figures();
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
        if self.pass_metrics().is_empty() && self.demands.iter().any(|demand| matches!(demand.what, What::MustPass(_))) {
            let problem = "gate: must_pass: no scorer of the suite says pass or fail; put one into `threshold`";
            return fault("must_pass", problem.into());
        }
        let targets: Vec<_> = self.targets.iter().map(|target| target.name.as_str()).collect();
        let each = self.metrics();
        self.demands.iter().try_for_each(|demand| demand.check((&each, &metrics), &targets))
    }
}

impl RawSplits {
    fn plan(self) -> SplitPlan {
        SplitPlan { seed: self.seed, by: self.by, sizes: [self.train, self.validation, self.test], near: self.near, ..SplitPlan::default() }
    }
}

fn digest_of(specs: Vec<Value>, scorers: &[Box<dyn Scorer>], files: &Kept) -> Option<Digest> {
    if scorers.iter().any(|scorer| scorer.is_unpinned()) {
        return None;
    }
    let specs = Value::from(specs);
    if files.is_empty() {
        return Some(Digest::of_json(&specs));
    }
    let files: Map<_, _> = files.iter().map(|(name, bytes)| (name.clone(), json!(Digest::of(bytes)))).collect();
    Some(Digest::of_json(&json!([specs, files])))
}

/// The entries of a gate: thresholds have `at_least` or `at_most`, all others are demands.
fn gate(entries: Vec<Value>) -> Result<(Vec<GateCondition>, Vec<Demand>), (String, String)> {
    let (mut conditions, mut demands) = (Vec::new(), Vec::new());
    for entry in entries {
        let is_demand = ["not_worse_than", "must_pass"].iter().any(|key| entry.get(key).is_some());
        // The word of the entry that the problem speaks of, or any of its words: so the line is found.
        let words: Vec<String> = entry.as_object().into_iter().flatten().flat_map(|(key, value)| [key.clone(), plain(value)]).collect();
        let needle = |problem: &str| {
            let named = quoted(problem).map(str::to_string);
            let spoken = || words.iter().rev().find(|word| !word.is_empty() && problem.contains(word.as_str())).cloned();
            named.or_else(spoken).unwrap_or_else(|| "gate".into())
        };
        let wrong = |error: serde_json::Error| {
            let problem = explain(&error.to_string());
            (needle(&problem), format!("gate: {problem}"))
        };
        if is_demand {
            let raw: demands::Raw = serde_json::from_value(entry.clone()).map_err(wrong)?;
            demands.push(raw.checked().map_err(|problem| (needle(&problem), format!("gate: {problem}")))?);
        } else {
            let RawCondition { target, metric, on, at_least, at_most } = serde_json::from_value(entry.clone()).map_err(wrong)?;
            let bound = Bound::of(at_least, at_most)
                .map_err(|problem| (at_most.map_or(metric.clone(), |_| "at_most".into()), format!("gate: {metric}: {problem}")))?;
            conditions.push(GateCondition { target, condition: Condition { metric, on, bound } });
        }
    }
    Ok((conditions, demands))
}

/// A value as it stands in a suite, if it is one word.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
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
    fn a_gate_has_bounds_above_and_no_demands_on_what_no_case_has() {
        let most = GOOD.replace("on: ci_low, at_least: 0.5", "on: ci_high, at_most: 0.5");
        assert_eq!(Suite::parse(&most, "s.yaml", Path::new("")).expect("parses").gate[0].condition.to_string(), "has_x:ci_high<=0.5");
        let (line, problem) = fault(&GOOD.replace("at_least: 0.5", "at_least: 0.1, at_most: 0.5"));
        assert!(line == 12 && problem.contains("two for a range"), "{line} {problem}");
        let corpus = "  - bleu\n  - exact_match\ngate:\n  - {metric: bleu.corpus, not_worse_than: {target: a}, target: a}\n";
        let (line, problem) = fault(&GOOD.replace(&GOOD[GOOD.find("  - exact_match").expect("there")..], corpus));
        assert!(line == 12 && problem.contains("\"bleu.corpus\" has no value for each case"), "{line} {problem}");
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
