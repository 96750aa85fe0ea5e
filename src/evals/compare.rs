//! The paired difference between two targets over the samples that both answered.

use crate::stats::{Paired, paired};
use crate::store::runs::CaseRecord;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// `b` minus `a` in one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Metric.
    pub metric: String,
    /// What is compared with.
    pub a: String,
    /// What is compared.
    pub b: String,
    /// Numbers.
    #[serde(flatten)]
    pub paired: Paired,
}

/// Which samples changed their first metric, for people who want to look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// Sample.
    pub sample: String,
    /// Value under `a`.
    pub a: f64,
    /// Value under `b`.
    pub b: f64,
}

/// Compares the cases of `b` with those of `a` in a metric; samples that one of them has no answer for are left out.
pub fn difference(metric: &str, a: (&str, &[&CaseRecord]), b: (&str, &[&CaseRecord])) -> Difference {
    let pairs = pairs(metric, a.1, b.1);
    let (left, right): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(_, a, b)| (*a, *b)).unzip();
    Difference { metric: metric.into(), a: a.0.into(), b: b.0.into(), paired: paired(&left, &right) }
}

/// Samples whose value differs, losses first.
pub fn changed(metric: &str, a: &[&CaseRecord], b: &[&CaseRecord]) -> Vec<Changed> {
    let mut changed: Vec<Changed> =
        pairs(metric, a, b).into_iter().filter(|(_, a, b)| a != b).map(|(sample, a, b)| Changed { sample: sample.into(), a, b }).collect();
    changed.sort_by(|x, y| (x.b - x.a).total_cmp(&(y.b - y.a)).then(x.sample.cmp(&y.sample)));
    changed
}

fn pairs<'a>(metric: &str, a: &[&'a CaseRecord], b: &[&CaseRecord]) -> Vec<(&'a str, f64, f64)> {
    let value = |case: &CaseRecord| if case.error.is_none() { case.scores[metric].as_f64() } else { None };
    let right: HashMap<&str, f64> = b.iter().filter_map(|case| Some((case.sample.as_str(), value(case)?))).collect();
    a.iter().filter_map(|case| Some((case.sample.as_str(), value(case)?, *right.get(case.sample.as_str())?))).collect()
}
