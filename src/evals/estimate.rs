//! Where the numbers of a report meet the formulas of [`stats`](crate::stats): which one is right for plain cases, repeats and groups.

use super::columns::Column;
use super::compare::PairedValues;
use crate::stats::{Paired, Power, Summary, clustered, clustered_pairs, clustered_shares, holm, paired, pass_all_k, pass_at_k, summarise};
use serde::{Deserialize, Serialize};

/// Up to so many repeats every `k` is told; beyond, the powers of two and all of them.
const EVERY_K: usize = 5;

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
    let plain = summarise(values);
    let Some(groups) = groups.filter(|_| !values.is_empty()) else { return plain };
    let are_shares = values.iter().all(|value| (0.0..=1.0).contains(value));
    let grouped = if are_shares { clustered_shares(values, groups) } else { clustered(values, groups) };
    Summary { standard_error: grouped.standard_error, ci95: grouped.ci95, ..plain }
}

/// The paired difference; clustered where the groups of the first run's samples are given, and tested by Student's t then.
pub(super) fn paired_means(values: &PairedValues, groups: Option<&Vec<u32>>) -> Paired {
    let Some(groups) = groups.filter(|_| !values.a.is_empty()) else { return paired(&values.a, &values.b) };
    let of: Vec<u32> = values.places.iter().map(|at| groups.get(*at).copied().unwrap_or(0)).collect();
    clustered_pairs(&values.a, &values.b, &of)
}

/// Passes of numbers of repeats up to those that were asked, where there are several: the mean over the samples with so many answers.
pub(super) fn passes(column: &Column, repeats: usize) -> Vec<Passes> {
    if repeats < 2 {
        return Vec::new();
    }
    let of = |k: usize| {
        let counts = column.repeats.iter().map(|sample| (sample.answered as usize, sample.passed as usize));
        let found: Vec<_> = counts.filter_map(|(n, passed)| pass_at_k(n, passed, k).zip(pass_all_k(n, passed, k))).collect();
        let n = found.len();
        let mean = |sum: f64| sum / n.max(1) as f64;
        let (any, all) = (mean(found.iter().map(|(any, _)| any).sum()), mean(found.iter().map(|(_, all)| all).sum()));
        Passes { k, any, all, n }
    };
    let wanted = (1..=repeats).filter(|k| *k <= EVERY_K || *k == repeats || k.is_power_of_two());
    wanted.map(of).filter(|passes| passes.n > 0).collect()
}

/// The smallest difference that so many pairs show, and how many pairs it takes to show one as large as this.
pub(super) fn power(paired: &Paired) -> (Option<f64>, Option<usize>) {
    if paired.n < 2 || paired.standard_error <= 0.0 {
        return (None, None);
    }
    let power = Power::default();
    let deviation = paired.standard_error * (paired.n as f64).sqrt();
    let needed = power.cases_paired(paired.delta, deviation).and_then(|cases| usize::try_from(cases).ok());
    (Some(power.detectable(paired.standard_error)), needed)
}

/// Holm's correction.
pub(super) fn corrected(p: &[f64]) -> Vec<f64> {
    holm(p)
}

#[cfg(test)]
mod tests {
    use super::super::columns::Repeats;
    use super::*;
    use crate::stats::paired::PairedTest;

    #[test]
    fn groups_of_equal_values_count_once() {
        // Four groups of three equal values: as sure as four values, not as twelve.
        let values: Vec<f64> = [1.0, 0.0, 1.0, 1.0].into_iter().flat_map(|value| [value; 3]).collect();
        let groups: Vec<u32> = (0..4).flat_map(|group| [group; 3]).collect();
        let found = summary(&values, Some(&groups));
        // Σ over groups of the squared sums of deviations: 3·(3·0.25)² + (3·0.75)² = 6.75; its root over 12, and the terms of
        // each value's own square as s² has them: (Σd²)/(11·12) − (Σd²)/144 with Σd² = 2.25.
        let squares: f64 = 2.25;
        let expected = (squares / (11.0 * 12.0) + (6.75 - squares) / 144.0).sqrt();
        assert!((found.standard_error - expected).abs() < 1e-12, "{} {expected}", found.standard_error);
        assert!(found.standard_error > 1.6 * summary(&values, None).standard_error);
        assert_eq!(found.n, 12);
    }

    #[test]
    fn a_grouped_difference_is_tested_with_its_groups() {
        let values = PairedValues { a: vec![0.0; 6], b: vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0], places: (0..6).collect() };
        let groups = vec![0, 0, 0, 1, 1, 1];
        let (plain, grouped) = (paired_means(&values, None), paired_means(&values, Some(&groups)));
        assert!(grouped.standard_error > plain.standard_error && grouped.p > plain.p);
        assert_eq!((plain.test, grouped.test, grouped.wins), (PairedTest::McnemarExact, PairedTest::T, 3));
    }

    #[test]
    fn passes_are_means_over_the_samples() {
        let sample = |answered, passed| Repeats { answered, passed, errors: 0 };
        let column = Column { repeats: vec![sample(4, 4), sample(4, 2), sample(4, 0), sample(1, 1)], ..Column::default() };
        let found = passes(&column, 4);
        // k = 2 of 4 with 2 right: 1 − C(2,2)/C(4,2) = 5/6 any, C(2,2)/C(4,2) = 1/6 all; the sample with one answer has no pair.
        let two = found[1];
        assert_eq!((two.k, two.n), (2, 3));
        assert!((two.any - (1.0 + 5.0 / 6.0) / 3.0).abs() < 1e-12 && (two.all - (1.0 + 1.0 / 6.0) / 3.0).abs() < 1e-12);
        assert_eq!(found.iter().map(|one| one.k).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(passes(&column, 1).is_empty());
    }
}
