//! The report of a run: one JSON object and one terminal table, both from stored outcomes.

use super::compare::{Difference, difference};
use super::gate::{Gate, judge};
use super::metrics::{Totals, totals};
use super::prepare::Plan;
use crate::store::runs::{CaseRecord, RunRecord};
use crate::types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::Write;

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
    /// In the order of the suite.
    pub targets: Vec<TargetReport>,
    /// What the gate said; `null` without a gate.
    pub gate: Option<Gate>,
    /// Differences between targets, later minus earlier.
    pub paired: Vec<Difference>,
    /// Seconds that this execution took.
    pub wall_seconds: f64,
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
}

impl Report {
    /// Sums up the cases of a run.
    pub fn build(run: &RunRecord, plan: &Plan, cases: &[CaseRecord], wall_seconds: f64) -> Report {
        let metrics = plan.suite.metrics();
        let of = |name: &str| cases.iter().filter(|case| case.target == name).collect::<Vec<_>>();
        let grouped: Vec<(&str, Vec<&CaseRecord>)> = plan.targets.iter().map(|target| (target.name.as_str(), of(&target.name))).collect();
        let target = |(target, (_, cases)): (&super::prepare::PlanTarget, &(&str, Vec<&CaseRecord>))| TargetReport {
            name: target.name.clone(),
            model: target.manifest.model.clone(),
            release: target.release,
            totals: totals(cases, &metrics),
        };
        let targets: Vec<TargetReport> = plan.targets.iter().zip(&grouped).map(target).collect();
        let measured: Vec<(String, Value)> = targets.iter().map(|target| (target.name.clone(), target.metrics_json())).collect();
        let mut paired = Vec::new();
        // Sub-metrics (`json_field.intent`) are in the table; comparing them all would be testing many hypotheses at once.
        for metric in plan.suite.scorers.iter().filter_map(|scorer| scorer.metrics().into_iter().next()) {
            for (i, (b, b_cases)) in grouped.iter().enumerate() {
                paired.extend(grouped[..i].iter().map(|(a, a_cases)| difference(&metric, (a, a_cases), (b, b_cases))));
            }
        }
        Report {
            suite: run.suite.clone(),
            run: run.id.clone(),
            status: run.status.clone(),
            dataset: run.dataset.clone(),
            dataset_digest: run.dataset_digest,
            split: run.split.clone(),
            gate: judge(&plan.suite.gate, &measured),
            targets,
            paired,
            wall_seconds,
        }
    }

    /// Cases that ended in an error, over all targets.
    pub fn errors(&self) -> usize {
        self.targets.iter().map(|target| target.totals.errors).sum()
    }

    /// The report for a terminal.
    pub fn table(&self) -> String {
        let samples = self.targets.first().map_or(0, |target| target.totals.n + target.totals.errors);
        let mut text = format!("{} on {} ({}), {samples} samples, {} [{}]\n", self.suite, self.dataset, self.split, self.run, self.status);
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
        table.set_header(std::iter::once("").chain(self.targets.iter().map(|target| target.name.as_str())));
        let metrics: Vec<&String> = self.targets.iter().flat_map(|target| target.totals.metrics.keys()).collect();
        let mut seen = std::collections::BTreeSet::new();
        for metric in metrics.into_iter().filter(|metric| seen.insert(metric.as_str())) {
            table.add_row(self.row(metric, |totals| {
                totals.metrics.get(metric).map_or("-".into(), |found| format!("{:.3} ± {:.3}", found.mean, found.standard_error))
            }));
        }
        table.add_row(self.row("errors", |totals| totals.errors.to_string()));
        table.add_row(self.row("tokens read / written", |totals| format!("{} / {}", totals.input_tokens, totals.output_tokens)));
        table.add_row(self.row("latency p50 / p95 ms", |totals| format!("{:.0} / {:.0}", totals.latency_ms.p50, totals.latency_ms.p95)));
        let _ = writeln!(text, "{table}");
        for difference in &self.paired {
            let _ = writeln!(text, "{}", describe(difference));
        }
        if let Some(gate) = &self.gate {
            let _ = writeln!(text, "gate {}", if gate.passed { "passed" } else { "missed" });
            for one in &gate.verdicts {
                let _ = writeln!(text, "  {} {}: {}", if one.verdict.passed { "ok  " } else { "miss" }, one.target, one.verdict.reason);
            }
        }
        text.trim_end().to_string()
    }

    fn row(&self, name: &str, cell: impl Fn(&Totals) -> String) -> Vec<String> {
        std::iter::once(name.to_string()).chain(self.targets.iter().map(|target| cell(&target.totals))).collect()
    }
}

impl TargetReport {
    /// The metrics as gates read them.
    pub fn metrics_json(&self) -> Value {
        serde_json::to_value(&self.totals.metrics).unwrap_or_default()
    }
}

/// One line for people: `prompt − base: exact_match +0.050, 95 % interval [-0.010, 0.110], p = 0.125 (4 better, 1 worse of 60)`.
pub fn describe(difference: &Difference) -> String {
    let Difference { metric, a, b, paired } = difference;
    format!(
        "{b} − {a}: {metric} {:+.3}, 95 % interval [{:.3}, {:.3}], p = {:.3} ({} better, {} worse of {})",
        paired.delta, paired.ci95[0], paired.ci95[1], paired.p, paired.wins, paired.losses, paired.n
    )
}
