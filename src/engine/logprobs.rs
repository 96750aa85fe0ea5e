//! Log probabilities of what was said and of what could have been said, as the model itself sees them: before temperature, penalties,
//! bias and grammar.

/// A token of the reply with its log probability (natural logarithm).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Of a token under a row of logits (vocabulary), with the `top` likeliest beside it.
    pub(super) fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let max = logits.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| f64::from(x - max).exp()).sum();
        let normaliser = f64::from(max) + sum.ln();
        let logprob = |id: u32| (f64::from(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)) - normaliser) as f32;
        let mut best: Vec<u32> = Vec::new();
        if top > 0 {
            best = (0..logits.len() as u32).filter(|id| !logits[*id as usize].is_nan()).collect();
            let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
            if best.len() > top {
                best.select_nth_unstable_by(top - 1, order);
                best.truncate(top);
            }
            best.sort_unstable_by(order);
        }
        TokenLogprob { token, logprob: logprob(token), top: best.into_iter().map(|id| (id, logprob(id))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_the_softmax_best_first() {
        let found = TokenLogprob::of(&[1.0, 2.0, f32::NAN, 0.5, -1.0], 3, 2);
        // softmax([1, 2, 0.5, -1]) = 0.2242, 0.6095, 0.1360, 0.0303.
        assert!((found.logprob.exp() - 0.1360).abs() < 1e-4, "{found:?}");
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
        assert!((found.top[0].1.exp() - 0.6095).abs() < 1e-4, "{found:?}");
    }
}
