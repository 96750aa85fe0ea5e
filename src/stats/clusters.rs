//! Means of values that come in groups: several questions on one text, several answers to one question.

use super::distributions::t_quantile;
use super::intervals::{Interval, mean_and_error};
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
    /// 95 % interval by Student's t with one degree of freedom less than groups; the mean itself for fewer than two groups.
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
    let reach = if clusters < 2 { 0.0 } else { t_quantile(0.975, clusters as f64 - 1.0) * standard_error };
    Clustered { n, clusters, mean, standard_error, ci95: [mean - reach, mean + reach] }
}

#[cfg(test)]
mod tests {
    use super::super::intervals::summarise;
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
        assert_eq!(clustered(&[1.0, 0.0], &["a", "a"]).ci95, [0.5, 0.5], "one group has no spread to learn from");
        assert_eq!(clustered::<u8>(&[], &[]).n, 0);
    }
}
