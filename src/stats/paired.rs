//! Comparing two systems on the same samples.

use super::distributions::{ln_gamma, t_cdf, t_quantile};
use super::intervals::{Interval, mean_and_error, t_interval};
use serde::{Deserialize, Serialize};

/// The mean of the differences b − a over the same samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Number of samples that both have.
    pub n: usize,
    /// Mean of b − a.
    pub delta: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Its 95 % interval, by Student's t.
    pub ci95: Interval,
    /// Two-sided p: exact McNemar when all values are 0 or 1, Student's t otherwise.
    pub p: f64,
    /// Which test gave `p`: `mcnemar_exact` or `t`.
    pub test: PairedTest,
    /// Samples where b is better.
    pub wins: usize,
    /// Samples where a is better.
    pub losses: usize,
}

/// The test behind a p-value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairedTest {
    /// Exact McNemar.
    McnemarExact,
    /// Paired t.
    T,
}

impl Paired {
    /// The interval of the mean difference at another level than 95 %, by Student's t; the difference itself for fewer than two samples.
    ///
    /// For `m` comparisons with one thing, the level 1 − 0.05/m keeps the chance of any wrong one at 5 % (Bonferroni; Dunn, JASA 56, 1961).
    pub fn interval(&self, level: f64) -> Interval {
        if self.n < 2 {
            return [self.delta, self.delta];
        }
        let reach = t_quantile(1.0 - (1.0 - level) / 2.0, self.n as f64 - 1.0) * self.standard_error;
        [self.delta - reach, self.delta + reach]
    }
}

/// Compares `b` with `a`, value by value; both slices have the same length and order.
///
/// Source: Miller (arXiv 2411.00640), section 4: the standard error of the mean difference over paired questions.
pub fn paired(a: &[f64], b: &[f64]) -> Paired {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let (delta, standard_error) = mean_and_error(&differences);
    let wins = differences.iter().filter(|d| **d > 0.0).count();
    let losses = differences.iter().filter(|d| **d < 0.0).count();
    let is_binary = a.iter().chain(b).all(|x| *x == 0.0 || *x == 1.0);
    let (p, test) = match is_binary {
        true => (mcnemar_exact(wins, losses), PairedTest::McnemarExact),
        false => (t_test(delta, standard_error, differences.len()), PairedTest::T),
    };
    Paired { n: differences.len(), delta, standard_error, ci95: t_interval(&differences), p, test, wins, losses }
}

fn t_test(delta: f64, standard_error: f64, n: usize) -> f64 {
    if n < 2 || (delta == 0.0 && standard_error == 0.0) {
        return 1.0;
    }
    if standard_error == 0.0 {
        return 0.0;
    }
    (2.0 * (1.0 - t_cdf((delta / standard_error).abs(), n as f64 - 1.0))).min(1.0)
}

/// Two-sided exact McNemar test: the binomial probability, with rate ½, of discordant counts at least as uneven as these.
///
/// Source: McNemar, Psychometrika 12 (1947); exact form as in Fagerland et al., BMC Med. Res. Methodol. 13:91 (2013).
pub fn mcnemar_exact(wins: usize, losses: usize) -> f64 {
    let n = (wins + losses) as f64;
    if n == 0.0 {
        return 1.0;
    }
    let choose = |k: f64| ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0) - n * std::f64::consts::LN_2;
    let tail: f64 = (0..=wins.min(losses)).map(|k| choose(k as f64).exp()).sum();
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn mcnemar_is_the_binomial_tail() {
        close(mcnemar_exact(1, 7), 2.0 * 9.0 / 256.0, 1e-12); // (1 + 8) / 2⁸, twice; Fagerland et al., table 1: 0.0703
        close(mcnemar_exact(5, 5), 1.0, 1e-12);
        assert_eq!(mcnemar_exact(0, 0), 1.0);
    }

    #[test]
    fn paired_t_is_student_s_sleep_data() {
        // Student, "The Probable Error of a Mean", Biometrika 6 (1908): R's t.test(extra ~ group, paired) gives t = 4.0621, df = 9,
        // p = 0.002833, interval 0.7001 to 2.4599, mean difference 1.58.
        let a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let found = paired(&a, &b);
        close(found.delta, 1.58, 1e-12);
        close(found.delta / found.standard_error, 4.0621, 5e-5);
        close(found.p, 0.002_833, 5e-7);
        close(found.ci95[0], 0.7001, 5e-5);
        close(found.ci95[1], 2.4599, 5e-5);
        assert_eq!((found.wins, found.losses, found.test), (9, 0, PairedTest::T));
        assert_eq!(found.interval(0.95), found.ci95);
        // t(0.995, 9) = 3.249836 (NIST table: 3.250).
        close(found.interval(0.99)[0], 1.58 - 3.249_836 * found.standard_error, 1e-5);
    }

    #[test]
    fn binary_pairs_use_mcnemar_and_match_the_closed_form() {
        // 8 discordant of 20: delta = (7 − 1)/20, variance of differences = (8 − 6²/20)/19.
        let a: Vec<f64> = (0..20).map(|i| f64::from(u8::from(i == 0))).collect();
        let b: Vec<f64> = (0..20).map(|i| f64::from(u8::from((1..8).contains(&i)))).collect();
        let found = paired(&a, &b);
        close(found.delta, 0.3, 1e-12);
        close(found.standard_error, ((8.0f64 - 36.0 / 20.0) / 19.0 / 20.0).sqrt(), 1e-12);
        close(found.p, 0.070_312_5, 1e-9);
        assert_eq!(found.test, PairedTest::McnemarExact);
    }
}
