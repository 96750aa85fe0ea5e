//! Decoder architectures: one file each, one line in [`load`].

pub mod llama;

use super::EngineError;
use super::adapter::{Adapter, LoraTarget};
use super::gguf::Gguf;
use super::kv_cache::KvCache;
use super::nn::attention::Heads;
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Sizes of a decoder, from the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `general.architecture`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub inner: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// ε of the norms.
    pub norm_epsilon: f32,
}

/// One sequence's rows in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Cache slot (inference only).
    pub slot: usize,
    /// Positions in the cache before the first row (0 in training).
    pub past: usize,
}

/// Rows of one step: token ids and the sequences they belong to.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// One token id a row.
    pub tokens: Vec<u32>,
    /// Sequences, their rows contiguous and in order.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Adds a sequence's next tokens.
    pub fn push(&mut self, tokens: &[u32], slot: usize, past: usize) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { rows: start..self.tokens.len(), slot, past });
    }
}

/// What a forward pass is for.
pub enum Mode<'a> {
    /// Builds the graph for a backward pass; every row goes through the adapter, whose tensors are variables.
    Train(&'a Adapter),
    /// Reads and extends the cache; each range of rows goes through its own adapter.
    Infer {
        /// Keys and values.
        cache: &'a mut KvCache,
        /// Rows and their adapters; rows in no range go through none.
        adapters: &'a [(Range<usize>, Arc<Adapter>)],
    },
}

/// A decoder-only transformer that can serve and be fine-tuned.
pub trait Decoder: Send + Sync {
    /// Sizes.
    fn config(&self) -> &DecoderConfig;

    /// Hidden states after the last norm, (N, hidden), for every row of the batch.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when the tensor library fails.
    fn hidden(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor, EngineError>;

    /// The output matrix (vocabulary, hidden).
    fn head(&self) -> &Tensor;

    /// Logits (N, vocabulary) of hidden states (N, hidden).
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, EngineError>;

    /// Linear layers that adapters can be put on, in a fixed order.
    fn lora_targets(&self) -> Vec<LoraTarget>;

    /// The same decoder with an adapter's update added to its weights: W + scale · B A.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when shapes do not fit.
    fn merged(&self, adapter: &Adapter) -> Result<Box<dyn Decoder>, EngineError>;

    /// Frozen weights by checkpoint name, for tests and export.
    fn weights(&self) -> Vec<(String, Tensor)>;
}

/// Loads the decoder of a model file.
///
/// # Errors
/// [`EngineError::Unsupported`] for an unknown architecture, [`EngineError::Model`] for a malformed file.
pub fn load(file: &Gguf) -> Result<Box<dyn Decoder>, EngineError> {
    match file.text("general.architecture")? {
        "llama" => Ok(Box::new(llama::Llama::load(file)?)),
        other => Err(EngineError::Unsupported(format!("architecture \"{other}\" is not supported yet (llama is)"))),
    }
}
