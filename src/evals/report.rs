//! The report of a run: one JSON object, made from stored outcomes in one pass. How it is shown is the business of [`show`](super::show).

use super::aggregates::added;
use super::columns::Columns;
use super::compare::{Changes, Difference, Pairs, Side, changes, compared, correct};
use super::gate::{Bench, Gate, judge};
use super::metrics::{Totals, totals};
use super::prepare::Plan;
use crate::store::runs::{self, CaseRecord, RunRecord};
use crate::store::{Store, StoreError};
use crate::types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

pub use super::show::table::describe;

/// Changed samples that a report names.
const CHANGED: usize = 20;

/// A run, summed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Suite.
    pub suite: String,
    /// Run.
    pub run: String,
    /// How the run ended (`store::runs`).
    pub status: String,
    /// Dataset.
    pub dataset: String,
    /// Dataset version.
    pub dataset_digest: Digest,
    /// Split.
    pub split: String,
    /// Samples of the split, as far as they were asked for.
    #[serde(default)]
    pub samples: usize,
    /// How often each was asked.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Metrics that targets are compared in.
    #[serde(default)]
    pub main_metrics: Vec<String>,
    /// Metrics that a case has full marks in when it passes; without any nobody says pass or fail.
    #[serde(default)]
    pub pass_metrics: Vec<String>,
    /// In the order of the suite.
    pub targets: Vec<TargetReport>,
    /// What the gate said; `null` without a gate.
    pub gate: Option<Gate>,
    /// Differences between targets, later minus earlier.
    pub paired: Vec<Difference>,
    /// What changed since the run before, or between the targets of a first run.
    #[serde(default)]
    pub changes: Vec<Changes>,
    /// Seconds that this execution took.
    pub wall_seconds: f64,
    /// The run or the file whose answers were scored; none where the targets were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scored_from: Option<String>,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Name in the suite.
    pub name: String,
    /// Model.
    pub model: String,
    /// Digest of the manifest: the release that the run can prove.
    pub release: Digest,
    /// Metrics, errors, tokens, latency.
    #[serde(flatten)]
    pub totals: Totals,
    /// What scorers say of all cases together, such as a confusion matrix, by scorer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, Value>,
}

fn one() -> usize {
    1
}

impl Report {
    /// Sums up the cases of a run.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn build(store: &Store, run: &RunRecord, plan: &Plan, wall_seconds: f64) -> Result<Report, StoreError> {
        let suite = &plan.suite;
        let (metrics, main, pass) = (suite.metrics(), suite.main_metrics(), suite.pass_metrics());
        let columns = Columns::read(store, &run.id, &|case| verdict(case, &pass))?;
        let nothing = super::columns::Column::default();
        let column = |name: &str| columns.targets.get(name).unwrap_or(&nothing);
        let mut added = added(store, &run.id, plan)?;
        let mut target = |target: &super::prepare::PlanTarget| {
            let more = added.remove(&target.name).unwrap_or_default();
            let mut totals = totals(&columns, column(&target.name), &metrics, suite.repeats);
            totals.metrics.extend(more.metrics);
            let (name, model) = (target.name.clone(), target.manifest.model.clone());
            TargetReport { name, model, release: target.release, totals, details: more.details }
        };
        let targets: Vec<TargetReport> = plan.targets.iter().map(&mut target).collect();
        let measured: Vec<(String, Value)> = targets.iter().map(|target| (target.name.clone(), target.metrics_json())).collect();
        let sides: Vec<Side<'_>> =
            targets.iter().map(|target| Side { name: &target.name, columns: &columns, column: column(&target.name) }).collect();
        let pairs = Pairs::same(&columns);
        let mut paired = Vec::new();
        // Sub-metrics (`json_field.intent`) are in the table; comparing them all would be testing many hypotheses at once.
        for metric in &main {
            for (i, b) in sides.iter().enumerate() {
                paired.extend(sides[..i].iter().map(|a| compared(metric, *a, *b, &pairs)));
            }
        }
        correct(&mut paired);
        let demands = Bench { store, run, plan, columns: &columns }.demanded()?;
        let changes = changed(store, run, main.first().map_or("", String::as_str), &sides)?;
        Ok(Report {
            suite: run.suite.clone(),
            run: run.id.clone(),
            status: run.status.clone(),
            dataset: run.dataset.clone(),
            dataset_digest: run.dataset_digest,
            split: run.split.clone(),
            samples: plan.samples.len(),
            repeats: suite.repeats,
            gate: judge(&suite.gate, &measured, demands),
            changes,
            main_metrics: main,
            pass_metrics: pass,
            targets,
            paired,
            wall_seconds,
            scored_from: run.config["scored_from"].as_str().map(String::from),
        })
    }

    /// Cases that ended in an error, over all targets.
    pub fn errors(&self) -> usize {
        self.targets.iter().map(|target| target.totals.errors).sum()
    }

    /// Whether a case has full marks in all that counts; none where nobody says pass or fail.
    pub fn verdict(&self, case: &CaseRecord) -> Option<bool> {
        verdict(case, &self.pass_metrics)
    }

    /// The report for a terminal.
    pub fn table(&self) -> String {
        super::show::table::run(self)
    }
}

impl TargetReport {
    /// The metrics as gates read them.
    pub fn metrics_json(&self) -> Value {
        serde_json::to_value(&self.totals.metrics).unwrap_or_default()
    }
}

/// What the metrics that say pass or fail come to. One without a value of the case says nothing; none where none has one, or there is no
/// answer.
fn verdict(case: &CaseRecord, metrics: &[String]) -> Option<bool> {
    let values = metrics.iter().filter_map(|metric| case.scores[metric].as_f64());
    values.map(|value| value == 1.0).reduce(|all, one| all && one).filter(|_| case.error.is_none())
}

/// What changed in a metric since the newest run before this one that has the target; between the first target and the others where no
/// target was measured before.
fn changed(store: &Store, run: &RunRecord, metric: &str, sides: &[Side<'_>]) -> Result<Vec<Changes>, StoreError> {
    let mut before: BTreeMap<String, Columns> = BTreeMap::new();
    let mut found = Vec::new();
    for side in sides {
        let Some(earlier) = runs::before(store.db.as_ref(), run, side.name)? else { continue };
        if !before.contains_key(&earlier) {
            before.insert(earlier.clone(), Columns::read(store, &earlier, &|_| None)?);
        }
        let Some(columns) = before.get(&earlier) else { continue };
        let Some(column) = columns.targets.get(side.name) else { continue };
        let pairs = Pairs::between(columns, side.columns);
        found.push(changes(metric, Side { name: &earlier, columns, column }, *side, (&pairs, CHANGED)));
    }
    if found.is_empty()
        && let Some((first, others)) = sides.split_first()
    {
        let pairs = Pairs::same(first.columns);
        found.extend(others.iter().map(|other| changes(metric, *first, *other, (&pairs, CHANGED))));
    }
    Ok(found)
}
