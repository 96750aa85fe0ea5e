//! Where the numbers of a report meet the formulas of [`stats`](crate::stats): which one is right for plain cases, repeats and groups.

use super::columns::Column;
use super::compare::PairedValues;
use crate::stats::{
    Interval, Paired, Power, Summary, clustered, clustered_pairs, clustered_shares, holm, paired, pass_all_k, pass_at_k, summarise,
};
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
    /// Its standard error.
    #[serde(default)]
    pub any_standard_error: f64,
    /// Its 95 % interval.
    #[serde(default = "everything")]
    pub any_ci95: Interval,
    /// All have full marks (pass^k).
    pub all: f64,
    /// Its standard error.
    #[serde(default)]
    pub all_standard_error: f64,
    /// Its 95 % interval.
    #[serde(default = "everything")]
    pub all_ci95: Interval,
    /// Samples with so many answers.
    pub n: usize,
}

/// What is known of a share in reports from before it was told.
fn everything() -> Interval {
    [0.0, 1.0]
}

/// Mean, standard error and interval of the samples' values; clustered where groups are given.
pub(super) fn summary(values: &[f64], groups: Option<&[u32]>) -> Summary {
    let plain = summarise(values);
    let Some(groups) = groups.filter(|_| !values.is_empty()) else { return plain };
    let are_shares = values.iter().all(|value| (0.0..=1.0).contains(value));
    let grouped = if are_shares { clustered_shares(values, groups) } else { clustered(values, groups) };
    Summary { standard_error: grouped.standard_error, ci95: grouped.ci95, ..plain }
}

/// The paired difference; clustered where the groups of the pairs are given, and tested by Student's t then.
pub(super) fn paired_means(values: &PairedValues, groups: Option<&[u32]>) -> Paired {
    match groups.filter(|_| !values.a.is_empty()) {
        None => paired(&values.a, &values.b),
        Some(groups) => clustered_pairs(&values.a, &values.b, groups),
    }
}

/// Passes of numbers of repeats up to those that were asked, where there are several: the mean over the samples with so many answers, with
/// its standard error and interval, clustered where the samples come in groups.
///
/// Each sample's own number is estimated without bias from its repeats ([`pass_at_k`], [`pass_all_k`]), and samples are independent of each
/// other: so the error of their mean is that of any mean of questions, in which what the repeats leave open is counted already.
///
/// Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), sections 2 and 3.1.
pub(super) fn passes(column: &Column, repeats: usize, groups: Option<&[u32]>) -> Vec<Passes> {
    if repeats < 2 {
        return Vec::new();
    }
    let of = |k: usize| {
        let (mut any, mut all, mut of_groups) = (Vec::new(), Vec::new(), Vec::new());
        for (at, sample) in column.repeats.iter().enumerate() {
            let (n, passed) = (sample.judged as usize, sample.passed as usize);
            let Some((one, every)) = pass_at_k(n, passed, k).zip(pass_all_k(n, passed, k)) else { continue };
            any.push(one);
            all.push(every);
            of_groups.push(groups.and_then(|groups| groups.get(at)).copied().unwrap_or(0));
        }
        let told = |values: &[f64]| share(values, groups.is_some().then_some(of_groups.as_slice()));
        let (one, every) = (told(&any), told(&all));
        Passes {
            k,
            any: one.mean,
            any_standard_error: one.standard_error,
            any_ci95: one.ci95,
            all: every.mean,
            all_standard_error: every.standard_error,
            all_ci95: every.ci95,
            n: any.len(),
        }
    };
    let wanted = (1..=repeats).filter(|k| *k <= EVERY_K || *k == repeats || k.is_power_of_two());
    wanted.map(of).filter(|passes| passes.n > 0).collect()
}

/// As [`summary`], of values from 0 to 1. Shares that are all the same are not certain: the interval is [`clustered_shares`]', each value a
/// group of its own where there are none.
fn share(values: &[f64], groups: Option<&[u32]>) -> Summary {
    if groups.is_none() && values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        return summarise(values);
    }
    let own: Vec<u32> = (0..u32::try_from(values.len()).unwrap_or(u32::MAX)).collect();
    summary(values, Some(groups.unwrap_or(&own)))
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
        let values = PairedValues { a: vec![0.0; 6], b: vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ..PairedValues::default() };
        let groups = [0, 0, 0, 1, 1, 1];
        let (plain, grouped) = (paired_means(&values, None), paired_means(&values, Some(&groups)));
        assert!(grouped.standard_error > plain.standard_error && grouped.p > plain.p);
        assert_eq!((plain.test, grouped.test, grouped.wins), (PairedTest::McnemarExact, PairedTest::T, 3));
    }

    #[test]
    fn passes_are_means_over_the_samples() {
        let sample = |answered, passed| Repeats { answered, judged: answered, passed, errors: 0 };
        let column = Column { repeats: vec![sample(4, 4), sample(4, 2), sample(4, 0), sample(1, 1)], ..Column::default() };
        let found = passes(&column, 4, None);
        // k = 2 of 4 with 2 right: 1 − C(2,2)/C(4,2) = 5/6 any, C(2,2)/C(4,2) = 1/6 all; the sample with one answer has no pair.
        let two = found[1];
        assert_eq!((two.k, two.n), (2, 3));
        assert!((two.any - (1.0 + 5.0 / 6.0) / 3.0).abs() < 1e-12 && (two.all - (1.0 + 1.0 / 6.0) / 3.0).abs() < 1e-12);
        assert_eq!(found.iter().map(|one| one.k).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(passes(&column, 1, None).is_empty());
    }

    #[test]
    fn passes_are_as_sure_as_means_of_the_samples_are() {
        let sample = |passed| Repeats { answered: 4, judged: 4, passed, errors: 0 };
        let column = Column { repeats: [4, 2, 0, 1].map(sample).to_vec(), ..Column::default() };
        // pass@2 of each sample: 1, 5/6, 0, 1/2. Their mean, s/√4 and t(0.975, 3) = 3.182446 (NIST table), cut at 0 and 1.
        let two = passes(&column, 4, None)[1];
        assert!((two.any - 0.583_333_333_333).abs() < 1e-9 && (two.any_standard_error - 0.220_479_275_922).abs() < 1e-9, "{two:?}");
        assert_eq!(two.any_ci95, [0.0, 1.0]);
        let one = passes(&column, 4, None)[0];
        // pass@1: 1, 1/2, 0, 1/4: mean 7/16, s² = 0.182292.
        assert!((one.any_standard_error - (0.182_291_666_667f64 / 4.0).sqrt()).abs() < 1e-9, "{one:?}");
        assert_eq!((one.any, one.any_ci95), (one.all, one.all_ci95));
        // Two groups of two, by the sum over pairs of one group.
        let grouped = passes(&column, 4, Some(&[0, 0, 1, 1]))[1];
        assert!((grouped.any_standard_error - 0.260_208_249_933).abs() < 1e-9, "{grouped:?}");
        // All of four: 1, 0, 0, 0 is a rate, and its interval Wilson's; that none fails does not make it certain.
        let four = passes(&column, 4, None)[3];
        assert_eq!(four.all_ci95, crate::stats::wilson(1, 4));
        let sure = Column { repeats: vec![sample(4); 10], ..Column::default() };
        assert_eq!(passes(&sure, 4, None)[1].all_ci95, crate::stats::wilson(10, 10));
    }
}
