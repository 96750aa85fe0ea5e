//! From stored outcomes to metrics: mean, standard error and 95 % interval of each score over the cases that have an answer.

use crate::stats::{Summary, percentile, summarise};
use crate::store::runs::CaseRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the cases of one target add up to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Cases with an answer; what the metrics are over.
    pub n: usize,
    /// By metric.
    pub metrics: BTreeMap<String, Summary>,
    /// Cases that ended in an error: neither right nor wrong.
    pub errors: usize,
    /// Tokens read and written.
    pub tokens: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Latency of the cases with an answer.
    pub latency_ms: Latency,
}

/// Latency percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// Totals of one target's cases.
pub fn totals(cases: &[&CaseRecord], metrics: &[String]) -> Totals {
    let scored: Vec<&&CaseRecord> = cases.iter().filter(|case| case.error.is_none()).collect();
    let values = |metric: &String| scored.iter().filter_map(|case| case.scores[metric].as_f64()).collect::<Vec<_>>();
    let latency: Vec<f64> = scored.iter().map(|case| case.latency_ms).collect();
    let (input_tokens, output_tokens) =
        (cases.iter().map(|case| case.input_tokens).sum(), cases.iter().map(|case| case.output_tokens).sum());
    Totals {
        n: scored.len(),
        metrics: metrics.iter().map(|metric| (metric.clone(), summarise(&values(metric)))).collect(),
        errors: cases.len() - scored.len(),
        tokens: input_tokens + output_tokens,
        input_tokens,
        output_tokens,
        latency_ms: Latency { p50: percentile(&latency, 0.5), p95: percentile(&latency, 0.95) },
    }
}
