//! From conversations to labelled tokens and packed batches. There is no padding: the examples of a batch lie behind one another, each
//! its own sequence.

use super::TuningError;
use super::conversation::Conversation;
use super::recipe::LossOn;
use crate::engine::Model;
use crate::engine::arch::Batch;
use crate::engine::chat_template::ChatMessage;
use crate::engine::nn::cross_entropy::Label;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Serialize;

/// One example as token ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// Factor on the loss of predicting each of them, one a token; 0: it carries none.
    pub weights: Vec<f32>,
}

impl Example {
    /// Renders a conversation with the model's own chat template, exactly as serving does, and its answer.
    ///
    /// # Errors
    /// [`TuningError::Example`] when the answer is empty, no token carries loss or the whole is longer than `max_length` tokens.
    pub fn new(model: &Model, conversation: &Conversation, loss_on: LossOn, max_length: usize) -> Result<Self, TuningError> {
        let wrong = |problem: String| TuningError::Example { sample: conversation.sample.clone(), problem };
        if conversation.answer.plain_text().trim().is_empty() && !conversation.answer.extra.contains_key("tool_calls") {
            return Err(wrong("the answer is empty: there is nothing to learn".into()));
        }
        let weights = conversation.weights(loss_on)?;
        let said: Vec<usize> = (0..weights.len()).filter(|index| weights[*index].is_some_and(|weight| weight > 0.0)).collect();
        if said.is_empty() {
            return Err(wrong("every weight is 0: no token carries loss".into()));
        }
        let messages = conversation.prompt.iter().chain([&conversation.answer]).map(ChatMessage::of).collect::<Result<Vec<_>, _>>();
        let messages = messages.map_err(|error| wrong(error.to_string()))?;
        let turns = model.turn_tokens(&messages, &conversation.tools, &said).map_err(|error| wrong(error.to_string()))?;
        let between = if loss_on == LossOn::All { 1.0 } else { 0.0 };
        let (mut tokens, mut factors) = (Vec::new(), Vec::new());
        for turn in turns {
            let weight = turn.said.and_then(|index| weights[index]).unwrap_or(between);
            factors.extend(std::iter::repeat_n(weight, turn.tokens.len()));
            tokens.extend(turn.tokens);
        }
        if tokens.len() > max_length {
            return Err(wrong(format!("it has {} tokens, max_length is {max_length}", tokens.len())));
        }
        Ok(Example { tokens, weights: factors })
    }

    /// Sum of the weights of the tokens that carry loss; the first one is predicted by nothing.
    pub fn weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|weight| f64::from(*weight)).sum()
    }

    /// Rows of a forward pass: the last token predicts nothing, so it needs none.
    pub fn rows(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// A packed batch and its labels: row i is labelled with token i + 1 of its sequence where that carries loss.
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
            batch.push(&example.tokens[..example.rows()], slot, 0);
            let next = example.tokens.iter().zip(&example.weights).skip(1);
            labels.extend(next.map(|(token, weight)| (*weight > 0.0).then_some(Label { token: *token, weight: *weight })));
        }
        Packed { batch, labels }
    }

    /// Sum of the labels' weights.
    pub fn weight(&self) -> f64 {
        self.labels.iter().flatten().map(|label| f64::from(label.weight)).sum()
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
    fn only_what_has_weight_is_labelled_and_sequences_stay_apart() {
        let first = Example { tokens: vec![1, 2, 3, 4], weights: vec![0.0, 0.0, 1.0, 0.5] };
        let examples = [first, Example { tokens: vec![5, 6], weights: vec![1.0, 1.0] }];
        let packed = Packed::new(&examples);
        assert_eq!(packed.batch.tokens, [1, 2, 3, 5]);
        let label = |token, weight| Some(Label { token, weight });
        assert_eq!(packed.labels, [None, label(3, 1.0), label(4, 0.5), label(6, 1.0)]);
        assert_eq!(packed.batch.segments[1].rows, 3..4);
        assert_eq!((packed.weight(), examples.iter().map(Example::weight).sum::<f64>()), (2.5, 2.5));
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch() {
        assert_eq!(epoch_order(50, 7, 1), epoch_order(50, 7, 1));
        assert_ne!(epoch_order(50, 7, 1), epoch_order(50, 7, 2));
        assert_ne!(epoch_order(50, 7, 1), epoch_order(50, 8, 1));
    }
}
