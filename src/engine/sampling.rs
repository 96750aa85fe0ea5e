//! Choosing the next token: greedy at temperature 0, otherwise temperature, top-k and nucleus sampling (Holtzman et al. 2020,
//! arXiv 1904.09751) with a seeded generator per request, so that a seed gives the same text whatever else is in the batch.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Decoding parameters of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Seed; `None` takes a random one.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: None }
    }
}

/// A request's sampler.
pub struct Sampler {
    sampling: Sampling,
    generator: StdRng,
}

impl Sampler {
    /// A sampler, seeded.
    pub fn new(sampling: Sampling) -> Self {
        let generator = StdRng::seed_from_u64(sampling.seed.unwrap_or_else(rand::random));
        Sampler { sampling, generator }
    }

    /// The next token of a row of logits (vocabulary). NaN logits count as impossible.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return greedy(logits);
        }
        let mut candidates: Vec<(u32, f32)> =
            logits.iter().enumerate().filter(|(_, x)| x.is_finite()).map(|(id, x)| (id as u32, x / self.sampling.temperature)).collect();
        if candidates.is_empty() {
            return greedy(logits);
        }
        if self.sampling.top_k > 0 || self.sampling.top_p < 1.0 {
            candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            if self.sampling.top_k > 0 {
                candidates.truncate(self.sampling.top_k);
            }
        }
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, (_, x)| max.max(*x));
        for (_, x) in &mut candidates {
            *x = (*x - max).exp();
        }
        let mut total: f64 = candidates.iter().map(|(_, p)| f64::from(*p)).sum();
        if self.sampling.top_p < 1.0 {
            let mut kept = 0.0;
            let enough = total * f64::from(self.sampling.top_p);
            let count = candidates
                .iter()
                .take_while(|(_, p)| {
                    let before = kept;
                    kept += f64::from(*p);
                    before < enough
                })
                .count();
            candidates.truncate(count.max(1));
            total = candidates.iter().map(|(_, p)| f64::from(*p)).sum();
        }
        let mut left = self.generator.random::<f64>() * total;
        for (id, p) in &candidates {
            left -= f64::from(*p);
            if left <= 0.0 {
                return *id;
            }
        }
        candidates.last().map_or(0, |(id, _)| *id)
    }
}

fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().filter(|(_, x)| !x.is_nan()).max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(id, _)| id as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(sampling: Sampling, draws: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..draws).map(|_| sampler.next(&[1.0, 2.0, 0.5, -1.0])).collect()
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_a_seed_repeats() {
        assert_eq!(sampled(Sampling { temperature: 0.0, ..Sampling::default() }, 3), [1, 1, 1]);
        let seeded = || sampled(Sampling { seed: Some(7), ..Sampling::default() }, 50);
        assert_eq!(seeded(), seeded());
        assert!(seeded().iter().any(|id| *id != 1));
    }

    #[test]
    fn nucleus_and_top_k_leave_out_the_tail() {
        // Probabilities of [1, 2, 0.5, -1]: 0.225, 0.612, 0.136, 0.030.
        let top_p = sampled(Sampling { top_p: 0.7, seed: Some(1), ..Sampling::default() }, 300);
        assert!(top_p.iter().all(|id| [0, 1].contains(id)) && top_p.contains(&0));
        assert!(sampled(Sampling { top_k: 1, seed: Some(1), ..Sampling::default() }, 50).iter().all(|id| *id == 1));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let draws = sampled(Sampling { seed: Some(3), ..Sampling::default() }, 20_000);
        let share = draws.iter().filter(|id| **id == 1).count() as f64 / 20_000.0;
        // softmax([1, 2, 0.5, -1])[1] = 0.6086; five standard errors of a proportion at n = 20,000 are 0.017.
        assert!((share - 0.6086).abs() < 0.0175, "{share}");
    }

    #[test]
    fn not_a_number_is_never_chosen() {
        assert_eq!(greedy(&[f32::NAN, 1.0]), 1);
        assert_eq!(Sampler::new(Sampling::default()).next(&[f32::NAN, f32::NAN]), 0);
    }
}
