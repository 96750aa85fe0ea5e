//! Means with their standard error, and 95 % intervals for rates and means.

use super::distributions::{Z_975, t_quantile};
use serde::{Deserialize, Deserializer, Serialize};

/// A two-sided interval, `[low, high]` on the wire.
pub type Interval = [f64; 2];

/// Reads an interval. JSON has no word for an end that nothing is known of: such a one is written `null`.
pub(super) fn open_ended<'de, D: Deserializer<'de>>(from: D) -> Result<Interval, D::Error> {
    let [low, high] = <[Option<f64>; 2]>::deserialize(from)?;
    Ok([low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY)])
}

/// A mean, how sure it is, and from how many values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean, 0 without values.
    pub mean: f64,
    /// Sample standard deviation over √n; 0 with fewer than two values.
    pub standard_error: f64,
    /// 95 % interval: Wilson when every value is 0 or 1, Student's t otherwise.
    #[serde(deserialize_with = "open_ended")]
    pub ci95: Interval,
}

/// Mean, standard error and 95 % interval of some values.
///
/// Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2; for 0/1 values the interval is Wilson's because CLT
/// intervals are too narrow under a few hundred cases (Bowyer et al., arXiv 2503.01747).
pub fn summarise(values: &[f64]) -> Summary {
    let (mean, standard_error) = mean_and_error(values);
    let is_binary = values.iter().all(|x| *x == 0.0 || *x == 1.0);
    let ci95 = match (values.len(), is_binary) {
        (0, _) => [0.0, 0.0],
        (n, true) => wilson(values.iter().filter(|x| **x == 1.0).count(), n),
        _ => t_interval(values),
    };
    Summary { n: values.len(), mean, standard_error, ci95 }
}

/// Mean and its standard error s/√n with s² = Σ(x − x̄)²/(n − 1).
pub(super) fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt() / n.sqrt())
}

/// 95 % interval of a mean by Student's t with n − 1 degrees of freedom; the mean itself for fewer than two values.
///
/// Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2.
pub fn t_interval(values: &[f64]) -> Interval {
    let (mean, error) = mean_and_error(values);
    if values.len() < 2 {
        return [mean, mean];
    }
    let reach = t_quantile(0.975, values.len() as f64 - 1.0) * error;
    [mean - reach, mean + reach]
}

/// 95 % score interval of a rate; `[0, 1]` without trials.
///
/// Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
pub fn wilson(successes: usize, trials: usize) -> Interval {
    if trials == 0 {
        return [0.0, 1.0];
    }
    wilson_of_share(successes as f64 / trials as f64, trials as f64)
}

/// [`wilson`] for a share `p` of `n` trials, which may be an effective number.
pub(super) fn wilson_of_share(p: f64, n: f64) -> Interval {
    let z = Z_975;
    let z2 = z * z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let reach = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(centre - reach).max(0.0), (centre + reach).min(1.0)]
}

/// The q-quantile (q in [0, 1]) with linear interpolation between order statistics; 0 without values.
///
/// Source: Hyndman & Fan (1996), type 7, the default of R and NumPy.
pub fn percentile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn wilson_gives_the_published_intervals() {
        // Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I, method 3.
        for (r, n, low, high) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)] {
            let [found_low, found_high] = wilson(r, n);
            close(found_low, low, 5e-5);
            close(found_high, high, 5e-5);
        }
    }

    #[test]
    fn summary_of_small_samples_is_the_closed_form() {
        let summary = summarise(&[1.0, 2.0, 3.0, 4.0]);
        close(summary.mean, 2.5, 1e-12);
        close(summary.standard_error, (5.0f64 / 3.0).sqrt() / 2.0, 1e-12);
        // t(0.975, 3) = 3.182446 (NIST table: 3.182).
        close(summary.ci95[1] - 2.5, 3.182_446 * summary.standard_error, 1e-5);
        assert_eq!(summarise(&[1.0, 0.0, 1.0]).ci95, wilson(2, 3));
        assert_eq!(summarise(&[]).n, 0);
        // A Bernoulli sample: s²/n = p(1 − p)/(n − 1).
        close(summarise(&[1.0, 0.0, 1.0, 1.0]).standard_error, (0.75f64 * 0.25 / 3.0).sqrt(), 1e-12);
    }

    #[test]
    fn percentiles_interpolate_like_numpy() {
        let values = [4.0, 1.0, 3.0, 2.0];
        close(percentile(&values, 0.5), 2.5, 1e-12);
        close(percentile(&values, 0.95), 3.85, 1e-12);
        assert_eq!((percentile(&values, 0.0), percentile(&values, 1.0), percentile(&[], 0.5)), (1.0, 4.0, 0.0));
    }
}
