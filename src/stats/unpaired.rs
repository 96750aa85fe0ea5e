//! Comparing two systems that did not see the same samples. Where they did, [`paired`](super::paired) sees much smaller differences.

use super::distributions::{t_cdf, t_quantile};
use super::intervals::{Interval, mean_and_error};
use serde::{Deserialize, Serialize};

/// The difference of two means, b − a.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Unpaired {
    /// Number of values of a and of b.
    pub n: [usize; 2],
    /// Mean of b minus mean of a.
    pub delta: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Its 95 % interval.
    pub ci95: Interval,
    /// Two-sided p.
    pub p: f64,
}

/// Compares the means of two independent lists of values. With fewer than two values on a side nothing is known: p is 1, and the
/// interval is the difference itself.
///
/// Source: Welch, "The Generalization of 'Student's' Problem when Several Different Population Variances are Involved", Biometrika 34
/// (1947); standard error as in Miller (arXiv 2411.00640), section 4.1.
pub fn unpaired(a: &[f64], b: &[f64]) -> Unpaired {
    let ((mean_a, error_a), (mean_b, error_b)) = (mean_and_error(a), mean_and_error(b));
    let (delta, variances) = (mean_b - mean_a, [error_a * error_a, error_b * error_b]);
    let standard_error = (variances[0] + variances[1]).sqrt();
    let n = [a.len(), b.len()];
    if n[0] < 2 || n[1] < 2 || standard_error == 0.0 {
        let p = if n[0] < 2 || n[1] < 2 || delta == 0.0 { 1.0 } else { 0.0 };
        return Unpaired { n, delta, standard_error, ci95: [delta, delta], p };
    }
    let spread: f64 = variances.iter().zip(n).map(|(variance, n)| variance * variance / (n as f64 - 1.0)).sum();
    let df = (variances[0] + variances[1]).powi(2) / spread;
    let reach = t_quantile(0.975, df) * standard_error;
    let p = (2.0 * t_cdf(-(delta / standard_error).abs(), df)).min(1.0);
    Unpaired { n, delta, standard_error, ci95: [delta - reach, delta + reach], p }
}

#[cfg(test)]
mod tests {
    use super::super::recorded::{self, close, number, numbers};
    use super::*;

    #[test]
    fn the_test_is_that_of_scipy() {
        for case in recorded::of("welch") {
            let found = unpaired(&numbers(&case["a"]), &numbers(&case["b"]));
            close(found.standard_error, number(&case["standard_error"]), 1e-12);
            close(found.p, number(&case["p"]), 1e-9);
            close(found.ci95[0], number(&case["low"]), 1e-8);
            close(found.ci95[1], number(&case["high"]), 1e-8);
        }
    }

    #[test]
    fn too_few_values_prove_nothing() {
        let one = unpaired(&[1.0], &[0.0, 1.0]);
        assert_eq!((one.p, one.ci95), (1.0, [-0.5, -0.5]));
        assert_eq!(unpaired(&[1.0, 1.0], &[0.0, 0.0]).p, 0.0);
        assert_eq!(unpaired(&[1.0, 1.0], &[1.0, 1.0]).p, 1.0);
    }
}
