//! Standard errors of numbers that are no means (macro F1, corpus BLEU, kappa): from what they are without one case, or, where cases come
//! in groups, from what they are of groups drawn anew.

use super::intervals::{Interval, percentile};

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

/// Draws of groups, and how many of them are looked at in all: of very many groups fewer draws are enough.
const DRAWS: usize = 2_000;
const FEWEST_DRAWS: usize = 200;
const MOST_STEPS: usize = 200_000_000;

/// How sure a statistic of grouped cases is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// Standard error.
    pub standard_error: f64,
    /// 95 % interval, by percentiles.
    pub ci95: Interval,
}

/// Standard error and interval of a statistic of cases that come in groups (repeats of a sample, questions on a text): whole groups are
/// drawn with replacement, as many as there are. `statistic` is given how often each group was drawn and says nothing where it is not
/// defined; the same seed draws the same. None for fewer than two groups, and where most draws define nothing.
///
/// Source: Field & Welsh, "Bootstrapping Clustered Data", J. R. Statist. Soc. B 69 (2007): the cluster bootstrap; percentile interval of
/// Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, whose section 5.3 has the factor √(G/(G − 1)) between the
/// bootstrap's standard error of a mean and the usual one. Numbers by SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
pub fn bootstrap_groups(groups: usize, seed: u64, mut statistic: impl FnMut(&[u32]) -> Option<f64>) -> Option<Bootstrap> {
    if groups < 2 {
        return None;
    }
    let draws = (MOST_STEPS / groups).clamp(FEWEST_DRAWS, DRAWS);
    let (mut state, mut times, mut values) = (seed, vec![0u32; groups], Vec::with_capacity(draws));
    for _ in 0..draws {
        times.fill(0);
        for _ in 0..groups {
            // The upper half of a product spreads evenly over the groups (Lemire, ACM Trans. Model. Comput. Simul. 29, 2019).
            let place = (u128::from(next(&mut state)) * groups as u128) >> 64;
            times[place as usize] += 1;
        }
        values.extend(statistic(&times));
    }
    if 2 * values.len() < draws {
        return None;
    }
    let (n, count) = (values.len() as f64, groups as f64);
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let standard_error = (variance * count / (count - 1.0)).sqrt();
    Some(Bootstrap { standard_error, ci95: [percentile(&values, 0.025), percentile(&values, 0.975)] })
}

/// The next number of SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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

    #[test]
    fn groups_drawn_anew_tell_what_the_groups_tell_of_a_mean() {
        // 40 groups of three equal values: the error of their mean is that of 40 values, s/√40, and the interval about ± 1.96 of it.
        let values: Vec<f64> = (0..40).map(|group| f64::from(group % 5)).collect();
        let mean_of = |times: &[u32]| {
            let all: u32 = times.iter().map(|count| 3 * count).sum();
            Some(times.iter().zip(&values).map(|(count, value)| f64::from(3 * count) * value).sum::<f64>() / f64::from(all))
        };
        let found = bootstrap_groups(40, 7, mean_of).expect("groups");
        let expected = summarise(&values).standard_error;
        // Of 2,000 draws the error of a standard error is 1/√4000 of it: 1.6 %.
        assert!((found.standard_error / expected - 1.0).abs() < 0.08, "{} {expected}", found.standard_error);
        assert!((found.ci95[1] - found.ci95[0] - 3.92 * expected).abs() < 0.15 * 3.92 * expected, "{found:?}");
        assert_eq!(bootstrap_groups(40, 7, mean_of), Some(found), "the same seed draws the same");
        assert_ne!(bootstrap_groups(40, 8, mean_of), Some(found));
        assert_eq!((bootstrap_groups(1, 7, |_| Some(1.0)), bootstrap_groups(9, 7, |_| None)), (None, None));
    }

    #[test]
    fn numbers_are_those_of_splitmix() {
        // The first outputs for the seed 1234567 in the reference implementation (Vigna, prng.di.unimi.it).
        let mut state = 1_234_567;
        assert_eq!([next(&mut state), next(&mut state)], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
