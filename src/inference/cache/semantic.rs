//! Questions by what they mean: their vectors, each within everything that stands around it, which must be the same to the bit. Only
//! questions are here; the replies are where all are, and a question whose reply is gone answers nothing.

use super::key::Key;
use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock};

/// The direction of a text's meaning: a vector of length 1.
#[derive(Debug, Clone)]
pub(in crate::inference) struct Direction(Vec<f32>);

impl Direction {
    /// Of a model's vector; none where it points nowhere.
    pub(in crate::inference) fn of(vector: &[f64]) -> Option<Self> {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        (length.is_finite() && length > 0.0).then(|| Direction(vector.iter().map(|x| (x / length) as f32).collect()))
    }

    /// The cosine of the angle to another; none where they are of different models.
    pub(in crate::inference) fn cosine(&self, other: &Direction) -> Option<f32> {
        const LANES: usize = 8;
        if self.0.len() != other.0.len() {
            return None;
        }
        let (mine, theirs) = (self.0.chunks_exact(LANES), other.0.chunks_exact(LANES));
        let rest: f32 = mine.remainder().iter().zip(theirs.remainder()).map(|(a, b)| a * b).sum();
        let mut sums = [0f32; LANES];
        for (a, b) in mine.zip(theirs) {
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        Some(sums.iter().sum::<f32>() + rest)
    }
}

struct Known {
    scope: Key,
    direction: Direction,
    /// Where the reply is.
    reply: Key,
}

/// Questions that were answered, the oldest first.
pub(super) struct Questions {
    known: RwLock<VecDeque<Known>>,
    max_entries: usize,
}

impl Questions {
    pub(super) fn new(max_entries: u64) -> Self {
        Questions { known: RwLock::default(), max_entries: usize::try_from(max_entries).unwrap_or(usize::MAX) }
    }

    /// Replies to questions at least this near, the nearest first.
    pub(super) fn near(&self, scope: &Key, direction: &Direction, threshold: f64) -> Vec<Key> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let within = known.iter().filter(|known| known.scope == *scope);
        let cosine = |known: &Known| known.direction.cosine(direction).map(|cosine| (cosine, known.reply));
        let mut near: Vec<_> = within.filter_map(cosine).filter(|(cosine, _)| f64::from(*cosine) >= threshold).collect();
        near.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        near.into_iter().map(|(_, reply)| reply).collect()
    }

    /// Keeps a question that was answered.
    pub(super) fn keep(&self, scope: Key, direction: Direction, reply: Key) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.reply != reply);
        known.push_back(Known { scope, direction, reply });
        while known.len() > self.max_entries {
            known.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_is_that_of_the_angle_and_takes_no_other_models_vectors() {
        let of = |vector: &[f64]| Direction::of(vector).expect("a direction");
        // cos 60° = 0.5, in the plane of the first two of nine dimensions.
        let (mut a, mut b) = (vec![0.0; 9], vec![0.0; 9]);
        (a[0], b[0], b[1]) = (3.0, 1.0, 3f64.sqrt());
        let cosine = of(&a).cosine(&of(&b)).expect("one model");
        assert!((cosine - 0.5).abs() < 1e-6, "{cosine}");
        // In the ninth, which is in no lane.
        (a[0], a[8], b[0], b[1], b[8]) = (0.0, 2.0, 0.0, 0.0, 7.0);
        assert!((of(&a).cosine(&of(&b)).expect("one model") - 1.0).abs() < 1e-6);
        assert!(of(&a).cosine(&of(&[1.0])).is_none() && Direction::of(&[0.0, 0.0]).is_none() && Direction::of(&[f64::NAN]).is_none());
    }
}
