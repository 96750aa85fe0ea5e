//! Decoder architectures: one file each, one line in [`load`]. A file says where a checkpoint keeps its tensors; the networks that they
//! make are [`serving`] and [`training`].

pub mod llama;
pub mod serving;
pub mod training;

use super::EngineError;
use super::adapter::{Adapter, LoraTarget};
use super::gguf::Gguf;
use super::kv_cache::KvCache;
use super::nn::attention::Heads;
use super::nn::linear::Linear;
use super::nn::slices::{tensor, with_slice};
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

/// Names of the adaptable layers of a block, in forward order.
const MODULES: [&str; 7] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

impl DecoderConfig {
    /// Linear layers that adapters can be put on: the seven of each block, in forward order.
    pub fn lora_targets(&self) -> Vec<LoraTarget> {
        let (query, key) = (self.heads.query_width(), self.heads.key_width());
        let widths = [
            (self.hidden, query),
            (self.hidden, key),
            (self.hidden, key),
            (query, self.hidden),
            (self.hidden, self.inner),
            (self.hidden, self.inner),
            (self.inner, self.hidden),
        ];
        let target = |layer: usize| {
            let named = MODULES.iter().zip(widths);
            named.map(move |(module, (inputs, outputs))| LoraTarget { path: format!("model.layers.{layer}.{module}"), inputs, outputs })
        };
        (0..self.layers).flat_map(target).collect()
    }
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

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Answering: weights as the file has them, packed; activations are rounded to 8 bits where weights are quantised.
    Serve,
    /// Answering without any rounding but that of the cache: every weight as f32. For measuring what rounding costs.
    ServeExact,
    /// Training adapters, and reading weights: every weight as f32, in tensors.
    Train,
    /// Training adapters at speed: linear layers forwards as serving has them, backwards in bfloat16. As `Train` where the processor does
    /// not multiply bfloat16.
    TrainRounded,
}

/// A network, as it was loaded.
pub enum Network {
    /// Answers.
    Serving(Box<serving::Serving>),
    /// Trains.
    Training(Box<training::Training>),
}

/// A decoder-only transformer.
pub struct Decoder {
    config: DecoderConfig,
    network: Network,
}

impl Decoder {
    /// Sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Hidden states after the last norm, (N, hidden), for every row of the batch.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when the tensor library fails, [`EngineError::Unsupported`] when the model was loaded for something else.
    pub fn hidden(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor, EngineError> {
        match (&self.network, mode) {
            (Network::Training(network), Mode::Train(adapter)) => network.hidden(&self.config, batch, adapter),
            (Network::Serving(network), Mode::Infer { cache, adapters }) => {
                let hidden = network.hidden(&self.config, batch, cache, adapters)?;
                Ok(tensor(hidden, (batch.tokens.len(), self.config.hidden))?)
            }
            (Network::Training(_), Mode::Infer { .. }) => Err(wrong_purpose("training", "answer")),
            (Network::Serving(_), Mode::Train(_)) => Err(wrong_purpose("serving", "be trained")),
        }
    }

    /// Logits (N, vocabulary) of hidden states (N, hidden).
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, EngineError> {
        match &self.network {
            Network::Training(network) => Ok(network.lm_head.train(hidden, None)?),
            Network::Serving(network) => {
                Ok(tensor(with_slice(hidden, |hidden| network.logits(hidden))?, (hidden.dim(0)?, self.config.vocabulary))?)
            }
        }
    }

    /// The output matrix (vocabulary, hidden) of a model that was loaded for training.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn head(&self) -> Result<&Linear, EngineError> {
        Ok(&self.training()?.lm_head)
    }

    /// Linear layers that adapters can be put on, in a fixed order.
    pub fn lora_targets(&self) -> Vec<LoraTarget> {
        self.config.lora_targets()
    }

    /// The same decoder, loaded for training, with an adapter's update added to its weights: W + scale · B A.
    ///
    /// # Errors
    /// As [`Decoder::hidden`], and when shapes do not fit.
    pub fn merged(&self, adapter: &Adapter) -> Result<Decoder, EngineError> {
        let network = Network::Training(Box::new(self.training()?.merged(adapter)?));
        Ok(Decoder { config: self.config.clone(), network })
    }

    /// Frozen weights by checkpoint name, of a model that was loaded for training; for tests and export.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn weights(&self) -> Result<Vec<(String, Tensor)>, EngineError> {
        Ok(self.training()?.weights()?)
    }

    fn training(&self) -> Result<&training::Training, EngineError> {
        match &self.network {
            Network::Training(network) => Ok(network),
            Network::Serving(_) => Err(wrong_purpose("serving", "give its weights")),
        }
    }
}

fn wrong_purpose(loaded: &str, asked: &str) -> EngineError {
    EngineError::Unsupported(format!("a model that was loaded for {loaded} cannot {asked}"))
}

/// Loads the decoder of a model file.
///
/// # Errors
/// [`EngineError::Unsupported`] for an unknown architecture, [`EngineError::Model`] for a malformed file.
pub fn load(file: &Gguf, purpose: Purpose) -> Result<Decoder, EngineError> {
    let (config, network) = match file.text("general.architecture")? {
        "llama" => llama::load(file, purpose)?,
        other => return Err(EngineError::Unsupported(format!("architecture \"{other}\" is not supported yet (llama is)"))),
    };
    Ok(Decoder { config, network })
}
