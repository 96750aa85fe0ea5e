//! From stored outcomes to metrics: mean, standard error and 95 % interval of each score over the samples that have an answer. Repeats of
//! a sample are averaged first; errors are clustered where samples come in groups.

use super::columns::{Column, Columns};
use super::estimate::{Passes, passes, summary};
use crate::stats::{Summary, percentile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the cases of one target add up to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Cases with an answer; what the metrics are over.
    pub n: usize,
    /// By metric.
    pub metrics: BTreeMap<String, Summary>,
    /// Cases of which a scorer says pass or fail.
    #[serde(default)]
    pub judged: usize,
    /// Those of them with full marks in all that counts.
    #[serde(default)]
    pub passed: usize,
    /// Cases that ended in an error: neither right nor wrong.
    pub errors: usize,
    /// Cases whose answer was given before: no call was made, and their latency is not counted.
    #[serde(default)]
    pub cached: usize,
    /// Tokens read and written.
    pub tokens: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// What the calls cost, as far as it is known.
    #[serde(default)]
    pub cost_micro_usd: i64,
    /// Calls of which nobody knows what they cost.
    #[serde(default)]
    pub unpriced: usize,
    /// What the scorers' own calls cost (judges, vectors), as far as it is known.
    #[serde(default)]
    pub scoring_cost_micro_usd: i64,
    /// Cases of which nobody knows what scoring them cost.
    #[serde(default)]
    pub scoring_unpriced: usize,
    /// Latency of the calls with an answer.
    pub latency_ms: Latency,
    /// Of several repeats: whether any, and whether all of `k` have full marks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<Passes>,
}

/// Latency percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// Totals of one target; `repeats` as the suite asks for.
pub fn totals(columns: &Columns, column: &Column, metrics: &[String], repeats: usize) -> Totals {
    let of = |metric: &String| {
        let (values, groups) = column.means(metric, &columns.groups);
        (metric.clone(), summary(&values, columns.is_grouped.then_some(groups.as_slice())))
    };
    Totals {
        n: column.answered,
        metrics: metrics.iter().map(of).collect(),
        judged: column.repeats.iter().map(|sample| sample.judged as usize).sum(),
        passed: column.repeats.iter().map(|sample| sample.passed as usize).sum(),
        errors: column.errors,
        cached: column.cached,
        tokens: column.input_tokens + column.output_tokens,
        input_tokens: column.input_tokens,
        output_tokens: column.output_tokens,
        cost_micro_usd: column.cost_micro_usd,
        unpriced: column.unpriced,
        scoring_cost_micro_usd: column.scoring_cost_micro_usd,
        scoring_unpriced: column.scoring_unpriced,
        latency_ms: Latency { p50: percentile(&column.latency_ms, 0.5), p95: percentile(&column.latency_ms, 0.95) },
        passes: passes(column, repeats, columns.is_grouped.then_some(columns.groups.as_slice())),
    }
}
