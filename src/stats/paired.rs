//! Comparing two systems on the same samples.

use super::distributions::{Z_975, ln_gamma, normal_cdf, normal_quantile, t_cdf, t_quantile};
use super::intervals::{Interval, mean_and_error, open_ended, t_interval};
use super::tango::tango;
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
    /// Its 95 % interval: Tango's score interval when all values are 0 or 1, Student's t otherwise. It holds 0 wherever `p` is 0.05 or more.
    #[serde(deserialize_with = "open_ended")]
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
    /// The interval of the mean difference at another level than 95 %, by the rule of `ci95`.
    ///
    /// For `m` comparisons with one thing, the level 1 − 0.05/m keeps the chance of any wrong one at 5 % (Bonferroni; Dunn, JASA 56, 1961).
    pub fn interval(&self, level: f64) -> Interval {
        let beyond = 1.0 - level;
        let interval = match self.test {
            PairedTest::McnemarExact => {
                let z = normal_quantile(1.0 - beyond / 2.0);
                tango([self.wins as f64, self.losses as f64], self.n as f64, z)
            }
            PairedTest::T if self.n < 2 || self.standard_error == 0.0 => self.ci95,
            PairedTest::T => {
                let reach = t_quantile(1.0 - beyond / 2.0, self.n as f64 - 1.0) * self.standard_error;
                [self.delta - reach, self.delta + reach]
            }
        };
        if self.p >= beyond { with_zero(interval) } else { interval }
    }
}

/// Compares `b` with `a`, value by value; both slices have the same length and order.
///
/// An interval by Student's t has no width where all differences are equal, as with two ties: then [`without_spread`] stands in.
///
/// Source: Miller (arXiv 2411.00640), section 4: the standard error of the mean difference over paired questions.
pub fn paired(a: &[f64], b: &[f64]) -> Paired {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let (delta, standard_error) = mean_and_error(&differences);
    let n = differences.len();
    let wins = differences.iter().filter(|d| **d > 0.0).count();
    let losses = differences.iter().filter(|d| **d < 0.0).count();
    let is_binary = a.iter().chain(b).all(|x| *x == 0.0 || *x == 1.0);
    let (ci95, p, test) = if is_binary {
        let interval = tango([wins as f64, losses as f64], n as f64, Z_975);
        (interval, mcnemar_exact(wins, losses), PairedTest::McnemarExact)
    } else if standard_error <= f64::EPSILON * delta.abs() {
        let (interval, p) = without_spread(delta, largest(a, b), n as f64);
        (interval, p.max(mcnemar_exact(wins, losses)), PairedTest::T)
    } else {
        (t_interval(&differences), t_test(delta, standard_error, n as f64 - 1.0), PairedTest::T)
    };
    // The exact test is the more careful one: the interval does not leave out a 0 that it does not rule out.
    let ci95 = if p >= 0.05 { with_zero(ci95) } else { ci95 };
    Paired { n, delta, standard_error, ci95, p, test, wins, losses }
}

/// Interval and two-sided p of `n` equal differences of values that are no larger than `largest`: what was not seen may be as far away
/// as that, and happens no more often than the score interval of no event in n allows, z²/(n + z²).
///
/// Source: Tango's interval without discordant pairs, in closed form, scaled.
pub(super) fn without_spread(delta: f64, largest: f64, n: f64) -> (Interval, f64) {
    let z2 = Z_975 * Z_975;
    let reach = largest * z2 / (n + z2);
    let room = largest - delta.abs();
    let p = if room > 0.0 { 2.0 * normal_cdf(-(n * delta.abs() / room).sqrt()) } else { 0.0 };
    ([delta - reach, delta + reach], p.min(1.0))
}

/// How far two values of a metric may be apart: 1 for shares, the largest value that was seen for others.
pub(super) fn largest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().chain(b).fold(1.0, |most, value| most.max(value.abs()))
}

/// The interval, and 0 where it does not hold it.
pub(super) fn with_zero([low, high]: Interval) -> Interval {
    [low.min(0.0), high.max(0.0)]
}

/// Two-sided p of Student's t with so many degrees of freedom; the standard error is not 0.
pub(super) fn t_test(delta: f64, standard_error: f64, df: f64) -> f64 {
    (2.0 * t_cdf(-(delta / standard_error).abs(), df)).min(1.0)
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

    #[test]
    fn ties_of_two_samples_are_not_certain() {
        // Without discordant pairs Tango's interval is ± z²/(n + z²): 3.8415/5.8415.
        close(paired(&[1.0, 0.0], &[1.0, 0.0]).ci95[0], -0.657_62, 1e-5);
        close(paired(&[0.5, 0.2], &[0.5, 0.2]).ci95[0], -0.657_62, 1e-5);
        // It takes 35 ties to be sure of a tenth, and a thousand of less than half a hundredth.
        assert!(paired(&[1.0; 34], &[1.0; 34]).ci95[0] < -0.1 && paired(&[1.0; 35], &[1.0; 35]).ci95[0] > -0.1);
        close(paired(&[0.5; 1000], &[0.5; 1000]).ci95[1], 0.003_827, 1e-6);
        let seconds = paired(&[900.0, 900.0], &[900.0, 900.0]);
        assert!(seconds.ci95[0] < -500.0 && seconds.p == 1.0);
    }

    #[test]
    fn interval_and_p_say_the_same() {
        let four = paired(&[0.0; 4], &[1.0; 4]);
        close(four.p, 0.125, 1e-12);
        assert!(four.ci95[0] <= 0.0 && four.ci95[1] >= four.delta, "{:?}", four.ci95);
        for (n, wins, losses) in (1..60).flat_map(|n| (0..=n).flat_map(move |w| (0..=n - w).map(move |l| (n, w, l)))) {
            let a: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i < losses))).collect();
            let b: Vec<f64> = (0..n).map(|i| f64::from(u8::from((losses..losses + wins).contains(&i)))).collect();
            let found = paired(&a, &b);
            let holds_zero = found.ci95[0] <= 0.0 && 0.0 <= found.ci95[1];
            assert_eq!(holds_zero, found.p >= 0.05, "{n} {wins} {losses}: {found:?}");
        }
        for (step, n) in [(0.1, 5), (0.1, 40), (0.9, 4), (0.9, 8), (2.0, 4), (2.0, 9)] {
            let found = paired(&vec![0.05; n], &vec![0.05 + step; n]);
            assert_eq!(found.ci95[0] <= 0.0, found.p >= 0.05, "{step} {n}: {found:?}");
            assert!(found.p > 0.0, "{step} {n}");
        }
    }

    #[test]
    fn far_tails_are_small_and_not_zero() {
        // t = 40 with 30 degrees of freedom: 1 − t_cdf is 0 in floating point.
        let p = t_test(40.0, 1.0, 30.0);
        assert!(p > 0.0 && p < 1e-20, "{p}");
    }
}
