//! Choosing the next token: greedy at temperature 0, otherwise temperature, min-p (Nguyen et al. 2024, arXiv 2407.01082), top-k and
//! nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751), in this order, with a seeded generator per request, so that a seed gives
//! the same text whatever else is in the batch.

use super::penalties::{Penalties, Repeats};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The nucleus is looked for among so many of the likeliest tokens first, then among eight times as many.
const FIRST_LOOK: usize = 64;

/// Decoding parameters of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Leave out tokens less likely than this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// What makes tokens less or more likely.
    pub penalties: Penalties,
    /// Seed; `None` takes a random one.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, penalties: Penalties::default(), seed: None }
    }
}

/// Tokens that may come next: one bit each, 32 in a word, the lowest first. Tokens beyond the last word may not.
pub type Mask<'a> = &'a [u32];

/// A request's sampler.
pub struct Sampler {
    sampling: Sampling,
    repeats: Repeats,
    generator: StdRng,
    /// Logits as penalties changed them.
    changed: Vec<f32>,
}

impl Sampler {
    /// A sampler for a reply to a prompt, seeded.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let generator = StdRng::seed_from_u64(sampling.seed.unwrap_or_else(rand::random));
        let repeats = Repeats::new(sampling.penalties.clone(), prompt);
        Sampler { sampling, repeats, generator, changed: Vec::new() }
    }

    /// The next token of a row of logits (vocabulary), one of those that the mask allows. NaN logits count as impossible.
    pub fn next(&mut self, logits: &[f32], mask: Option<Mask<'_>>) -> u32 {
        let mut changed = std::mem::take(&mut self.changed);
        let token = if self.repeats.is_neutral() {
            self.choose(logits, mask)
        } else {
            changed.clear();
            changed.extend_from_slice(logits);
            self.repeats.apply(&mut changed);
            self.choose(&changed, mask)
        };
        self.changed = changed;
        self.repeats.note(token);
        token
    }

    fn choose(&mut self, logits: &[f32], mask: Option<Mask<'_>>) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        if temperature <= 0.0 {
            return greedy(logits, mask);
        }
        let mut candidates: Vec<(u32, f32)> = allowed(logits, mask).filter(|(_, x)| x.is_finite()).collect();
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, (_, x)| max.max(*x));
        if candidates.is_empty() {
            return greedy(logits, mask);
        }
        for (_, x) in &mut candidates {
            *x = ((*x - max) / temperature).exp();
        }
        if min_p > 0.0 {
            // The likeliest token's share of its own probability is 1.
            candidates.retain(|(_, p)| *p >= min_p);
        }
        if top_k > 0 && candidates.len() > top_k {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(likelier);
        }
        if top_p < 1.0 {
            keep_nucleus(&mut candidates, top_p);
        }
        let total: f64 = candidates.iter().map(|(_, p)| f64::from(*p)).sum();
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

/// Descending probability, then ascending id.
fn likelier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the likeliest candidates whose weights reach the share `top_p` of all. Sorting a whole vocabulary for each token would cost
/// more than it brings: the nucleus is mostly small.
fn keep_nucleus(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    let enough = candidates.iter().map(|(_, p)| f64::from(*p)).sum::<f64>() * f64::from(top_p);
    let mut look = FIRST_LOOK;
    loop {
        let is_all = look >= candidates.len();
        if !is_all {
            candidates.select_nth_unstable_by(look - 1, likelier);
        }
        let looked = look.min(candidates.len());
        candidates[..looked].sort_unstable_by(likelier);
        let mut kept = 0.0;
        let before = |p: &f32| {
            let before = kept;
            kept += f64::from(*p);
            before
        };
        let count = candidates[..looked].iter().map(|(_, p)| p).map(before).take_while(|before| *before < enough).count();
        if is_all || kept >= enough {
            candidates.truncate(count.max(1));
            return;
        }
        look *= 8;
    }
}

/// Ids and logits of the tokens that a mask allows.
fn allowed<'a>(logits: &'a [f32], mask: Option<Mask<'a>>) -> Box<dyn Iterator<Item = (u32, f32)> + 'a> {
    let Some(mask) = mask else { return Box::new(logits.iter().enumerate().map(|(id, x)| (id as u32, *x))) };
    let words = mask.iter().enumerate().filter(|(_, word)| **word != 0);
    let ids = words.flat_map(|(at, word)| (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit));
    Box::new(ids.filter_map(|id| logits.get(id).map(|x| (id as u32, *x))))
}

fn greedy(logits: &[f32], mask: Option<Mask<'_>>) -> u32 {
    if mask.is_none() {
        return likeliest(logits).unwrap_or(0);
    }
    let mut best: Option<(u32, f32)> = None;
    let mut first = None;
    for (id, x) in allowed(logits, mask) {
        first = first.or(Some(id));
        if !x.is_nan() && best.is_none_or(|(_, most)| x > most) {
            best = Some((id, x));
        }
    }
    best.map(|(id, _)| id).or(first).unwrap_or(0)
}

/// The first of the largest that are numbers, in two passes that compilers turn into vector instructions.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let larger = |most: f32, x: f32| if x > most { x } else { most };
    let (lanes, rest) = logits.as_chunks::<32>();
    let mut most = [f32::NEG_INFINITY; 32];
    for lane in lanes {
        for (most, x) in most.iter_mut().zip(lane) {
            *most = larger(*most, *x);
        }
    }
    let most = most.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|x| *x == most).map(|id| id as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(sampling: Sampling, draws: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..draws).map(|_| sampler.next(&[1.0, 2.0, 0.5, -1.0], None)).collect()
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
    fn the_likeliest_is_the_first_of_the_largest_wherever_it_stands() {
        for length in [1, 31, 32, 33, 64, 100] {
            for at in 0..length {
                let mut logits: Vec<f32> = (0..length).map(|id| -(id as f32) - 1.0).collect();
                logits[at] = 0.5;
                logits[length - 1] = 0.5;
                logits[(at + 1) % length] = if length > 2 { f32::NAN } else { logits[(at + 1) % length] };
                let expected = (0..length).find(|id| logits[*id] == 0.5).expect("one is left");
                assert_eq!(likeliest(&logits), Some(expected as u32), "{at} of {length}");
            }
        }
        assert_eq!(likeliest(&[f32::NEG_INFINITY; 40]), Some(0));
        assert_eq!(likeliest(&[f32::NAN; 40]), None);
        assert_eq!(likeliest(&[f32::NAN, f32::INFINITY, f32::INFINITY]), Some(1));
    }

    #[test]
    fn not_a_number_is_never_chosen() {
        assert_eq!(greedy(&[f32::NAN, 1.0], None), 1);
        assert_eq!(Sampler::new(Sampling::default(), &[]).next(&[f32::NAN, f32::NAN], None), 0);
    }

    #[test]
    fn min_p_is_a_share_of_the_likeliest() {
        // Shares of [1, 2, 0.5, -1] in the likeliest's probability: 0.368, 1, 0.223, 0.050.
        let draws = sampled(Sampling { min_p: 0.3, seed: Some(1), ..Sampling::default() }, 300);
        assert!(draws.iter().all(|id| [0, 1].contains(id)) && draws.contains(&0));
    }

    #[test]
    fn only_what_the_mask_allows_is_chosen() {
        let mut sampler = Sampler::new(Sampling { seed: Some(1), ..Sampling::default() }, &[]);
        let draws: Vec<u32> = (0..100).map(|_| sampler.next(&[1.0, 2.0, 0.5, -1.0], Some(&[0b1101]))).collect();
        assert!(!draws.contains(&1) && [0, 2, 3].iter().all(|id| draws.contains(id)));
        assert_eq!(greedy(&[1.0, 2.0, 0.5], Some(&[0b101])), 0);
        assert_eq!(greedy(&[1.0, f32::NAN, f32::NAN], Some(&[0b110])), 1, "allowed, although impossible");
    }

    #[test]
    fn a_nucleus_is_the_same_however_it_is_looked_for() {
        // 1,000 nearly equal weights: the nucleus is beyond the first look.
        let weights: Vec<(u32, f32)> = (0..1000).map(|id| (id, 1.0 + ((id * 7919) % 1000) as f32 / 1e4)).collect();
        let mut found = weights.clone();
        keep_nucleus(&mut found, 0.5);
        let mut sorted = weights;
        sorted.sort_unstable_by(likelier);
        assert_eq!(found, sorted[..found.len()]);
        let mass = |part: &[(u32, f32)]| part.iter().map(|(_, p)| f64::from(*p)).sum::<f64>() / mass_of(&sorted);
        assert!(mass(&found) >= 0.5 && mass(&found[..found.len() - 1]) < 0.5);
    }

    fn mass_of(all: &[(u32, f32)]) -> f64 {
        all.iter().map(|(_, p)| f64::from(*p)).sum()
    }
}
