//! Decoder architectures: a [`family`] each, in one file, with one word in its list. [`config`] reads sizes, [`checkpoint`] knows where
//! files keep their tensors, [`loader`] makes the networks of them: [`serving`] and [`training`].

mod checkpoint;
pub mod config;
pub mod family;
pub mod gemma3;
pub mod llama;
mod loader;
pub mod mistral;
pub mod qwen2;
pub mod qwen3;
pub mod serving;
pub mod training;

pub use config::DecoderConfig;

use self::family::{FAMILIES, Family, known};
use self::loader::Loader;
pub use self::loader::{interleaved, unpermuted};
use super::EngineError;
use super::adapter::{Adapter, LoraTarget};
use super::folder::Folder;
use super::gguf::Gguf;
use super::kv_cache::KvCache;
use super::nn::dora::row_norms;
use super::nn::linear::{Linear, Lora};
use super::nn::slices::{tensor, with_slice};
use candle_core::{Tensor, Var};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

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
    /// Training adapters at speed: linear layers forwards as serving has them, backwards in 8 bits and bfloat16. As `Train` where the processor does
    /// not multiply bfloat16.
    TrainRounded,
    /// Training adapters in little memory: weights as serving packs them, dequantised layer by layer on the way back.
    TrainQuantised,
    /// Training the weights themselves: every one a variable in f32.
    TrainWeights,
}

impl Purpose {
    /// Whether it is training.
    fn trains(self) -> bool {
        !matches!(self, Purpose::Serve | Purpose::ServeExact)
    }
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
    family: &'static Family,
    network: Network,
}

impl Decoder {
    fn load(loader: &Loader<'_>, purpose: Purpose) -> Result<Self, EngineError> {
        let (network, mut config) = (loader.load(purpose)?, loader.config.clone());
        if purpose.trains() {
            config.context = config.trained_positions();
        }
        Ok(Decoder { config, family: loader.family, network })
    }

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
                Ok(tensor(with_slice(hidden, |hidden| network.logits(&self.config, hidden))?, (hidden.dim(0)?, self.config.vocabulary))?)
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
        let network = Network::Training(Box::new(self.training()?.merged(&self.config, adapter)?));
        Ok(Decoder { config: self.config.clone(), family: self.family, network })
    }

    /// Length of each row of a module's weight with a pair added, (out): what DoRA divides by. None where there is no such module.
    ///
    /// # Errors
    /// When the pair does not fit.
    pub fn row_norms(&self, path: &str, lora: &Lora) -> Result<Option<Vec<f32>>, EngineError> {
        match &self.network {
            Network::Training(network) => Ok(network.weight(path).map(|weight| row_norms(weight?, lora)).transpose()?),
            Network::Serving(network) => {
                let index = self.lora_targets().iter().position(|target| target.path == path);
                index.map(|index| network.row_norms(index, lora)).transpose()
            }
        }
    }

    /// What sets its architecture apart.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Weights by the names of Hugging Face checkpoints, of a model that was loaded for training. An output matrix that is the
    /// embeddings again is there as well.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn weights(&self) -> Result<Vec<(String, Tensor)>, EngineError> {
        let held = self.training()?.held(&checkpoint::folder(self.family), &self.config)?;
        Ok(held.into_iter().map(|held| (held.name, held.tensor)).collect())
    }

    /// Weights by the names of Hugging Face checkpoints, of a model that was loaded to have them trained; each once, in a fixed order.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn variables(&self) -> Result<Vec<(String, Var)>, EngineError> {
        let (mut seen, mut variables) = (HashSet::new(), Vec::new());
        for (name, tensor) in self.weights()? {
            // An output matrix that is the embeddings again has their name.
            if tensor.is_variable() && seen.insert(tensor.id()) {
                variables.push((name, Var::from_tensor(&tensor)?));
            }
        }
        Ok(variables)
    }

    /// The same as GGUF files have them: their names, the order of rows of q and k, and what folders leave away from norms.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn gguf_weights(&self) -> Result<Vec<(String, Tensor)>, EngineError> {
        let held = self.training()?.held(&checkpoint::GGUF, &self.config)?;
        let written = |held: training::Held| -> candle_core::Result<(String, Tensor)> {
            let tensor = match held.heads.filter(|_| self.family.as_gguf().is_interleaved) {
                Some(heads) => loader::interleaved(&held.tensor, heads)?,
                None if held.is_norm => (held.tensor + f64::from(self.family.norm_offset))?,
                None => held.tensor,
            };
            Ok((held.name, tensor))
        };
        Ok(held.into_iter().map(written).collect::<candle_core::Result<_>>()?)
    }

    /// What GGUF files call an adaptable layer, without its ending, and heads whose rows they interleave; none where there is no such layer.
    pub fn gguf_module(&self, path: &str) -> Option<(String, Option<usize>)> {
        let index = self.lora_targets().iter().position(|target| target.path == path)?;
        let heads = [Some(self.config.heads.queries), Some(self.config.heads.keys)];
        let names = checkpoint::GGUF;
        let (layer, place) = (index / names.linears.len(), index % names.linears.len());
        let heads = heads.get(place).copied().flatten().filter(|_| self.family.as_gguf().is_interleaved);
        Some((names.module(layer, names.linears[place]), heads))
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

/// Loads the decoder of a GGUF file.
///
/// # Errors
/// [`EngineError::Unsupported`] for an unknown architecture, [`EngineError::Model`] for a malformed file.
pub fn load(file: &Gguf, purpose: Purpose) -> Result<Decoder, EngineError> {
    let name = file.text("general.architecture")?;
    let family = FAMILIES.iter().find(|family| family.gguf == Some(name)).ok_or_else(|| unknown(name))?;
    let config = DecoderConfig::of_gguf(file, family)?;
    let names = checkpoint::GGUF;
    let is_interleaved = family.is_interleaved;
    Decoder::load(&Loader { file, names, family, config: &config, is_interleaved, norm_offset: 0.0, may_tie: true }, purpose)
}

/// Sizes and family of a GGUF file from its header alone, and whether output matrix and embeddings are one.
///
/// # Errors
/// [`EngineError::Unsupported`] naming what training does not compute, or an unknown architecture; as [`load`].
pub fn trainable(file: &Gguf) -> Result<(DecoderConfig, &'static Family, bool), EngineError> {
    let name = file.text("general.architecture")?;
    let family = FAMILIES.iter().find(|family| family.gguf == Some(name)).ok_or_else(|| unknown(name))?;
    let config = DecoderConfig::of_gguf(file, family)?;
    loader::check_trainable(&config)?;
    Ok((config, family, !file.has_tensor(checkpoint::GGUF.lm_head)))
}

/// As [`trainable`], of a folder.
///
/// # Errors
/// As [`trainable`].
pub fn trainable_folder(file: &Folder) -> Result<(DecoderConfig, &'static Family, bool), EngineError> {
    let name = file.config()["model_type"].as_str().unwrap_or_default();
    let family = FAMILIES.iter().find(|family| family.folder == name).ok_or_else(|| unknown(name))?;
    let config = DecoderConfig::of_folder(file, family)?;
    loader::check_trainable(&config)?;
    Ok((config, family, !file.has_tensor(checkpoint::folder(family).lm_head)))
}

/// Loads the decoder of a folder.
///
/// # Errors
/// As [`load`].
pub fn load_folder(file: &Folder, purpose: Purpose) -> Result<Decoder, EngineError> {
    let name = file.config()["model_type"].as_str().unwrap_or_default();
    let family = FAMILIES.iter().find(|family| family.folder == name).ok_or_else(|| unknown(name))?;
    let config = DecoderConfig::of_folder(file, family)?;
    let names = checkpoint::folder(family);
    let may_tie = file.config()["tie_word_embeddings"].as_bool().unwrap_or(family.ties_embeddings);
    let norm_offset = family.norm_offset;
    Decoder::load(&Loader { file, names, family, config: &config, is_interleaved: false, norm_offset, may_tie }, purpose)
}

/// Whether a folder with that `model_type` holds a decoder that is known here.
pub fn is_decoder(model_type: &str) -> bool {
    FAMILIES.iter().any(|family| family.folder == model_type)
}

fn unknown(name: &str) -> EngineError {
    EngineError::Unsupported(format!("architecture \"{name}\" is not supported yet ({} are)", known()))
}
