//! Standard errors of numbers that are no means (macro F1, corpus BLEU), from what they are without one case.

/// Standard error of a statistic of `n` cases by the jackknife. Each item is the statistic without one case, and for how many cases it
/// is that. 0 for fewer than two cases.
///
/// Source: Efron & Stein, "The Jackknife Estimate of Variance", Ann. Statist. 9 (1981): SE² = (n − 1)/n · Σ (θ₍ᵢ₎ − θ̄)².
pub fn jackknife_error(without_one: impl Iterator<Item = (f64, usize)> + Clone) -> f64 {
    let (sum, n) = without_one.clone().fold((0.0, 0usize), |(sum, n), (value, count)| (sum + value * count as f64, n + count));
    if n < 2 {
        return 0.0;
    }
    let mean = sum / n as f64;
    let squares: f64 = without_one.map(|(value, count)| (value - mean).powi(2) * count as f64).sum();
    ((n as f64 - 1.0) / n as f64 * squares).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::intervals::summarise;
    use super::*;

    #[test]
    fn of_a_mean_it_is_the_standard_error() {
        let values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.5];
        let total: f64 = values.iter().sum();
        let without = values.iter().map(|value| ((total - value) / 5.0, 1));
        assert!((jackknife_error(without) - summarise(&values).standard_error).abs() < 1e-15);
        // Equal cases are counted, not repeated.
        let counted = [(1.0, 3usize), (0.0, 2), (0.5, 1)].map(|(value, count)| ((total - value) / 5.0, count));
        assert!((jackknife_error(counted.into_iter()) - summarise(&values).standard_error).abs() < 1e-15);
        assert_eq!(jackknife_error([(0.5, 1)].into_iter()), 0.0);
    }
}
