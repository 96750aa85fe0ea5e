//! Means of values that come in groups: several questions on one text, several answers to one question.

use super::distributions::{Z_975, normal_cdf, t_quantile};
use super::intervals::{Interval, mean_and_error, open_ended, summarise, wilson_of_share};
use super::paired::{Paired, PairedTest, largest, mcnemar_exact, paired, t_test, with_zero, without_spread};
use super::tango::tango;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;

/// A mean of grouped values, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Clustered {
    /// Number of values.
    pub n: usize,
    /// Number of groups.
    pub clusters: usize,
    /// Arithmetic mean over all values.
    pub mean: f64,
    /// Its standard error, which counts that values of a group go together.
    pub standard_error: f64,
    /// 95 % interval by Student's t with one degree of freedom less than groups; without ends for fewer than two groups, which have no
    /// spread to learn from.
    #[serde(deserialize_with = "open_ended")]
    pub ci95: Interval,
}

/// Mean and clustered standard error; `groups` says of each value where it belongs. With one value a group it is the usual standard
/// error. For a paired comparison the values are the differences.
///
/// Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2.2: SE² = SE_CLT² + n⁻² Σ over pairs of one group of the
/// products of their deviations. Degrees of freedom: Cameron & Miller, J. Human Resources 50 (2015), section VI.
pub fn clustered<G: Eq + Hash>(values: &[f64], groups: &[G]) -> Clustered {
    let n = values.len().min(groups.len());
    let (mean, error) = mean_and_error(&values[..n]);
    // Of a group: the sum of deviations, whose square has all pairs, and the sum of squares, which are the pairs with itself.
    let mut sums = HashMap::<&G, (f64, f64)>::new();
    for (value, group) in values.iter().zip(groups) {
        let deviation = value - mean;
        let (sum, squares) = sums.entry(group).or_default();
        (*sum, *squares) = (*sum + deviation, *squares + deviation * deviation);
    }
    let between: f64 = sums.values().map(|(sum, squares)| sum * sum - squares).sum();
    let count = n.max(1) as f64;
    // Groups whose values go apart make the sum negative; rounding may bring it below zero.
    let standard_error = (error * error + between / (count * count)).max(0.0).sqrt();
    let clusters = sums.len();
    let reach = if clusters < 2 { f64::INFINITY } else { t_quantile(0.975, clusters as f64 - 1.0) * standard_error };
    Clustered { n, clusters, mean, standard_error, ci95: [mean - reach, mean + reach] }
}

/// As [`clustered`], for values from 0 to 1. Groups whose means happen to agree make Student's interval a point: it is at least as wide as
/// Wilson's with the effective number n/deff, where deff = (SE of groups / SE without)² and no less than 1, and is cut at 0 and 1.
///
/// Source: Kish, "Survey Sampling" (1965), section 8.2 (deff); Korn & Graubard, Survey Methodology 24 (1998): n/deff, no larger than n.
pub fn clustered_shares<G: Eq + Hash>(values: &[f64], groups: &[G]) -> Clustered {
    let found = clustered(values, groups);
    if found.clusters < 2 {
        return Clustered { ci95: [0.0, 1.0], ..found };
    }
    let plain = summarise(&values[..found.n]);
    let floor = if values.iter().all(is_binary) {
        wilson_of_share(found.mean, effective(&found, plain.standard_error))
    } else if plain.standard_error == 0.0 {
        without_spread(found.mean, 1.0, found.clusters as f64).0
    } else if found.is_a_point(plain.standard_error) {
        plain.ci95
    } else {
        found.ci95
    };
    Clustered { ci95: around(found.ci95, floor).map(|end| end.clamp(0.0, 1.0)), ..found }
}

/// Compares `b` with `a` over samples that come in groups: the error is clustered, the test is Student's t.
///
/// Where the groups' differences happen to agree the t test would be certain of anything: 0/1 pairs have at least Tango's interval and the
/// score test with the effective number n/deff, others at least what they have without groups; p is no less than that of a sign test over
/// the groups. With fewer than two groups nothing is known: p is 1.
///
/// Source: as [`clustered`] and [`clustered_shares`].
pub fn clustered_pairs<G: Eq + Hash>(a: &[f64], b: &[f64], groups: &[G]) -> Paired {
    let plain = paired(a, b);
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let found = clustered(&differences, groups);
    let are_shares = a.iter().chain(b).all(|value| (0.0..=1.0).contains(value));
    let cut = |interval: Interval| if are_shares { interval.map(|end| end.clamp(-1.0, 1.0)) } else { interval };
    let paired = Paired { standard_error: found.standard_error, test: PairedTest::T, ..plain };
    if found.clusters < 2 {
        return Paired { ci95: cut(found.ci95), p: 1.0, ..paired };
    }
    let is_a_point = found.is_a_point(plain.standard_error);
    let t =
        if is_a_point { by_signs(&differences, groups) } else { t_test(plain.delta, found.standard_error, found.clusters as f64 - 1.0) };
    let (floor, least) = if plain.test == PairedTest::McnemarExact {
        let n = effective(&found, plain.standard_error);
        let [wins, losses] = [plain.wins, plain.losses].map(|count| count as f64 * n / plain.n as f64);
        (tango([wins, losses], n, Z_975), score_test(wins, losses))
    } else if plain.standard_error == 0.0 {
        without_spread(plain.delta, largest(a, b), found.clusters as f64)
    } else if is_a_point {
        (plain.ci95, plain.p)
    } else {
        (found.ci95, t)
    };
    let (ci95, p) = (around(found.ci95, floor), t.max(least));
    Paired { ci95: cut(if p >= 0.05 { with_zero(ci95) } else { ci95 }), p, ..paired }
}

impl Clustered {
    /// Whether the groups' means agree: then SE² is what n − 1 in place of n leaves over, the plain one's nth part, and says nothing.
    fn is_a_point(&self, plain_error: f64) -> bool {
        self.standard_error <= 1.000_001 * plain_error / (self.n as f64).sqrt() + 1e-12 * self.mean.abs()
    }
}

/// The number of independent values that know as much: n/deff, no larger than n; the groups where no value differs from another.
fn effective(found: &Clustered, plain_error: f64) -> f64 {
    if plain_error == 0.0 {
        return found.clusters as f64;
    }
    found.n as f64 / (found.standard_error / plain_error).powi(2).max(1.0)
}

/// McNemar's test without exactness: the one whose interval is Tango's.
fn score_test(wins: f64, losses: f64) -> f64 {
    if wins + losses == 0.0 { 1.0 } else { 2.0 * normal_cdf(-(wins - losses).abs() / (wins + losses).sqrt()) }
}

/// A sign test over the groups.
fn by_signs<G: Eq + Hash>(differences: &[f64], groups: &[G]) -> f64 {
    let mut sums = HashMap::<&G, f64>::new();
    for (difference, group) in differences.iter().zip(groups) {
        *sums.entry(group).or_default() += difference;
    }
    let count = |sign: f64| sums.values().filter(|sum| **sum * sign > 0.0).count();
    mcnemar_exact(count(1.0), count(-1.0))
}

fn is_binary(value: &f64) -> bool {
    *value == 0.0 || *value == 1.0
}

/// The smallest interval that holds both.
fn around(a: Interval, b: Interval) -> Interval {
    [a[0].min(b[0]), a[1].max(b[1])]
}

#[cfg(test)]
mod tests {
    use super::super::intervals::{summarise, wilson};
    use super::super::recorded::{self, close, count, number, numbers};
    use super::*;

    #[test]
    fn the_error_is_millers_formula() {
        for case in recorded::of("clustered") {
            let groups: Vec<usize> = case["groups"].as_array().expect("groups").iter().map(count).collect();
            let found = clustered(&numbers(&case["values"]), &groups);
            close(found.mean, number(&case["mean"]), 1e-12);
            close(found.standard_error, number(&case["standard_error"]), 1e-12);
            close(found.ci95[0], number(&case["low"]), 1e-9);
            close(found.ci95[1], number(&case["high"]), 1e-9);
        }
    }

    #[test]
    fn groups_of_one_are_no_groups_and_copies_add_nothing() {
        let values = [1.0, 2.0, 4.0, 8.0];
        close(clustered(&values, &[0, 1, 2, 3]).standard_error, summarise(&values).standard_error, 1e-15);
        // Every value three times: as sure as with one of each, but for the n − 1 of small samples (variance σ² (n − 1)/n of groups).
        let tripled: Vec<f64> = values.iter().flat_map(|value| [*value; 3]).collect();
        let groups: Vec<usize> = (0..12).map(|i| i / 3).collect();
        let (n, variance) = (12.0, values.iter().map(|value| (value - 3.75f64).powi(2)).sum::<f64>() / 4.0);
        let expected = (variance / (n - 1.0) + variance * 2.0 / n).sqrt();
        close(clustered(&tripled, &groups).standard_error, expected, 1e-12);
        assert!(clustered(&tripled, &groups).standard_error > 1.5 * summarise(&tripled).standard_error);
        assert_eq!(clustered::<u8>(&[], &[]).n, 0);
    }

    #[test]
    fn one_group_has_no_spread_to_learn_from() {
        let one = clustered(&[1.0, 0.0], &["a", "a"]);
        assert_eq!(one.ci95, [f64::NEG_INFINITY, f64::INFINITY]);
        assert_eq!(clustered_shares(&[1.0, 1.0], &["a", "a"]).ci95, [0.0, 1.0]);
        let pairs = clustered_pairs(&[0.0; 9], &[1.0; 9], &[0; 9]);
        assert_eq!((pairs.ci95, pairs.p), ([-1.0, 1.0], 1.0));
        let json = serde_json::to_value(one).expect("JSON");
        assert_eq!(json["ci95"], serde_json::json!([null, null]));
        assert_eq!(serde_json::from_value::<Clustered>(json).map(|read| read == one).ok(), Some(true));
    }

    #[test]
    fn equal_groups_are_not_certain() {
        // Half right in each of twenty groups: Student's interval is 0.053 wide, Wilson's of forty values 0.3.
        let groups: Vec<u32> = (0..40).map(|i| i / 2).collect();
        let halves: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
        let plain = clustered(&halves, &groups).ci95;
        assert!(plain[1] - plain[0] < 0.06, "{plain:?}");
        assert_eq!(clustered_shares(&halves, &groups).ci95, wilson(20, 40));
        // Differences of 0.3 and −0.1 in each of eight groups: t with groups says p = 0.0001, without 0.07.
        let (from, to): (Vec<f64>, Vec<f64>) = (0..16).map(|i| (0.5, if i % 2 == 0 { 0.8 } else { 0.4 })).unzip();
        let mixed = clustered_pairs(&from, &to, &groups[..16]);
        assert!(mixed.p > 0.05 && mixed.ci95[0] <= 0.0, "{mixed:?}");
        let groups = [0, 0, 1, 1, 2, 2];
        // All right: as many as there are groups.
        assert_eq!(clustered_shares(&[1.0; 6], &groups).ci95, wilson(3, 3));
        let pairs = clustered_pairs(&[0.0; 6], &[1.0; 6], &groups);
        // Three groups, all better: sign test 2/2³; Tango's lower end (3 − z²)/(3 + z²) is below 0 already.
        close(pairs.p, 0.25, 1e-12);
        close(pairs.ci95[0], (3.0 - Z_975 * Z_975) / (3.0 + Z_975 * Z_975), 1e-9);
        let scored = clustered_pairs(&[0.2; 6], &[0.3; 6], &groups);
        assert!(scored.p > 0.05 && scored.ci95[0] < 0.0, "{scored:?}");
    }

    #[test]
    fn shares_stay_between_nothing_and_all() {
        let (values, groups) = ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!(clustered(&values, &groups).ci95[1] > 1.0);
        assert_eq!(clustered_shares(&values, &groups).ci95[1], 1.0);
        // Eight values of four groups that agree within are about four values; the interval holds Wilson's of them.
        let four = wilson(3, 4);
        let found = clustered_shares(&values, &groups).ci95;
        assert!(found[0] <= four[0], "{found:?} {four:?}");
    }
}
