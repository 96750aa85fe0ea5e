//! How well a trained adapter predicts answers that it did not learn from.

use super::{Conversation, Example, LossOn, TuningError, base};
use crate::engine::Purpose;
use crate::engine::arch::Mode;
use crate::engine::nn::cross_entropy;
use crate::models::Files;
use crate::tuning::example::Packed;
use serde::{Deserialize, Serialize};

/// Examples of one forward pass.
const BATCH: usize = 8;

/// Numbers of a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Examples.
    pub examples: usize,
    /// Tokens that carry loss.
    pub tokens: usize,
    /// Mean cross-entropy of them, nats.
    pub loss: f64,
    /// Share of them that were the likeliest.
    pub token_accuracy: f64,
}

/// Measures an adapter (`adapter_config.json`, `adapter_model.safetensors`) on conversations.
///
/// # Errors
/// [`TuningError::Example`] naming the sample that is too long or empty; what the engine says.
pub fn measure(
    files: &Files,
    (config, weights): (&[u8], &[u8]),
    conversations: &[Conversation],
    max_length: usize,
) -> Result<Measured, TuningError> {
    let model = base::load(files, Purpose::Train)?;
    let adapter = model.adapter(config, weights)?.detached();
    let max_length = max_length.min(model.decoder.config().context);
    let example = |conversation: &Conversation| -> Result<Example, TuningError> {
        Example::new(&model, conversation, LossOn::Completion, max_length)
    };
    let examples = conversations.iter().map(example).collect::<Result<Vec<_>, _>>()?;
    let (mut sum, mut tokens, mut right) = (0.0, 0, 0);
    for part in examples.chunks(BATCH) {
        let packed = Packed::new(part);
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(&adapter))?;
        for row in cross_entropy::evaluate(&hidden, model.decoder.head()?, &packed.labels)? {
            sum += row.loss;
            tokens += 1;
            right += usize::from(row.is_hit);
        }
    }
    let of = tokens.max(1) as f64;
    Ok(Measured { examples: examples.len(), tokens, loss: sum / of, token_accuracy: right as f64 / of })
}
