//! What makes tokens less or more likely than the model thinks: penalties on what was said already, and a caller's bias.

use std::collections::{HashMap, HashSet};

/// How strongly repetition is held back. The neutral values change nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Penalties {
    /// Divides positive logits of tokens of prompt and reply, multiplies negative ones (Keskar et al. 2019, arXiv 1909.05858); 1 is neutral.
    pub repetition: f32,
    /// Subtracted once from tokens of the reply (OpenAI API reference); 0 is neutral.
    pub presence: f32,
    /// Subtracted from tokens of the reply for each time that they occur in it (OpenAI API reference); 0 is neutral.
    pub frequency: f32,
    /// Added to the logits of single tokens: token id, bias.
    pub bias: Vec<(u32, f32)>,
}

impl Default for Penalties {
    fn default() -> Self {
        Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, bias: Vec::new() }
    }
}

impl Penalties {
    /// Whether nothing changes.
    pub fn is_neutral(&self) -> bool {
        *self == Penalties::default()
    }
}

/// Penalties and the tokens that they fall on.
#[derive(Debug)]
pub(super) struct Repeats {
    penalties: Penalties,
    prompt: HashSet<u32>,
    /// How often each token occurs in the reply.
    said: HashMap<u32, u32>,
}

impl Repeats {
    pub(super) fn new(penalties: Penalties, prompt: &[u32]) -> Self {
        let prompt = if penalties.repetition == 1.0 { HashSet::new() } else { prompt.iter().copied().collect() };
        Repeats { penalties, prompt, said: HashMap::new() }
    }

    pub(super) fn is_neutral(&self) -> bool {
        self.penalties.is_neutral()
    }

    /// A token of the reply.
    pub(super) fn note(&mut self, token: u32) {
        if !self.is_neutral() {
            *self.said.entry(token).or_default() += 1;
        }
    }

    /// Changes logits (vocabulary).
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let Penalties { repetition, presence, frequency, bias } = &self.penalties;
        if *repetition != 1.0 {
            let unsaid = self.prompt.iter().filter(|token| !self.said.contains_key(*token));
            for token in self.said.keys().chain(unsaid) {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                }
            }
        }
        for (token, times) in &self.said {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= presence + frequency * *times as f32;
            }
        }
        for (token, bias) in bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_follow_their_formulas() {
        let penalties = Penalties { repetition: 2.0, presence: 0.5, frequency: 0.25, bias: vec![(3, -100.0), (9, 1.0)] };
        let mut repeats = Repeats::new(penalties, &[0, 1]);
        repeats.note(1);
        repeats.note(1);
        repeats.note(2);
        let mut logits = [4.0, -1.0, 3.0, 7.0];
        repeats.apply(&mut logits);
        // 4/2; −1·2 − 0.5 − 0.25·2; 3/2 − 0.5 − 0.25; 7 − 100. A token outside the vocabulary is nobody's.
        assert_eq!(logits, [2.0, -3.0, 0.75, -93.0]);
    }

    #[test]
    fn neutral_penalties_change_nothing() {
        let mut repeats = Repeats::new(Penalties::default(), &[0]);
        repeats.note(0);
        let mut logits = [1.0];
        repeats.apply(&mut logits);
        assert!(repeats.is_neutral() && logits == [1.0]);
    }
}
