//! From conversations to labelled tokens and packed batches. Prompt tokens carry no loss; there is no padding: the examples of a
//! batch lie behind one another, each its own sequence.

use super::TuningError;
use crate::engine::Model;
use crate::engine::arch::Batch;
use crate::engine::chat_template::ChatMessage;
use crate::engine::nn::cross_entropy::Label;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// One example as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; the loss begins with the token after it.
    pub prompt_length: usize,
}

impl Example {
    /// Renders a conversation with the model's own chat template, exactly as serving does, and its completion.
    ///
    /// # Errors
    /// [`TuningError::Example`] when the completion is empty or the whole is longer than `max_length` tokens.
    pub fn new(model: &Model, sample: &str, (prompt, completion): (&[ChatMessage], &str), max_length: usize) -> Result<Self, TuningError> {
        let wrong = |problem: String| TuningError::Example { sample: sample.to_string(), problem };
        if completion.trim().is_empty() {
            return Err(wrong("the completion is empty: there is nothing to learn".into()));
        }
        let (tokens, prompt_length) = model.example_tokens(prompt, completion)?;
        if tokens.len() > max_length {
            return Err(wrong(format!("it has {} tokens, max_length is {max_length}", tokens.len())));
        }
        Ok(Example { tokens, prompt_length })
    }

    /// Tokens that carry loss.
    pub fn labelled(&self) -> usize {
        self.tokens.len() - self.prompt_length
    }
}

/// A packed batch and its labels: row i is labelled with token i + 1 of its sequence where that is part of a completion.
pub struct Packed {
    /// Rows.
    pub batch: Batch,
    /// One entry a row.
    pub labels: Vec<Option<Label>>,
}

impl Packed {
    /// Packs examples behind one another.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let (mut batch, mut labels) = (Batch::default(), Vec::new());
        for (slot, example) in examples.into_iter().enumerate() {
            // The last token predicts nothing, so it needs no row.
            let rows = example.tokens.len() - 1;
            batch.push(&example.tokens[..rows], slot, 0);
            labels.extend((0..rows).map(|row| (row + 1 >= example.prompt_length).then(|| Label::once(example.tokens[row + 1]))));
        }
        Packed { batch, labels }
    }

    /// Rows with a label.
    pub fn labelled(&self) -> usize {
        self.labels.iter().flatten().count()
    }
}

/// The order of the examples in one epoch: a function of seed and epoch alone, so that a resumed run sees the same batches.
pub fn epoch_order(examples: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..examples).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch as u64)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_completions_are_labelled_and_sequences_stay_apart() {
        let examples = [Example { tokens: vec![1, 2, 3, 4], prompt_length: 2 }, Example { tokens: vec![5, 6], prompt_length: 1 }];
        let packed = Packed::new(&examples);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 5]);
        assert_eq!(packed.labels, [None, Some(Label::once(3)), Some(Label::once(4)), Some(Label::once(6))]);
        assert_eq!(packed.batch.segments[1].rows, 3..4);
        assert_eq!(packed.labelled(), examples.iter().map(Example::labelled).sum::<usize>());
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch() {
        assert_eq!(epoch_order(50, 7, 1), epoch_order(50, 7, 1));
        assert_ne!(epoch_order(50, 7, 1), epoch_order(50, 7, 2));
        assert_ne!(epoch_order(50, 7, 1), epoch_order(50, 8, 1));
    }
}
