//! What sets an architecture apart from the plain decoder (pre-norm blocks of rotary grouped attention and a gated feed-forward part).
//! Each is a [`Family`] in a file of its own and one word in [`FAMILIES`]; [`config`](super::config) reads its sizes, [`loader`](super::loader)
//! its tensors.

use super::config::DecoderConfig;
use super::{gemma3, llama, mistral, qwen2, qwen3};
use crate::engine::kernel::rows::Gate;

/// All that are known.
pub const FAMILIES: [&Family; 5] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &gemma3::FAMILY];

/// An architecture.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture` of GGUF files, where they have one of their own.
    pub gguf: Option<&'static str>,
    /// `model_type` in the `config.json` of a folder.
    pub folder: &'static str,
    /// The class in Hugging Face transformers: `architectures` in `config.json`.
    pub class: &'static str,
    /// Queries, keys and values have biases.
    pub has_biases: bool,
    /// Each head of queries and keys goes through a norm.
    pub has_head_norms: bool,
    /// What attention and the feed-forward part add goes through norms, too.
    pub has_output_norms: bool,
    /// GGUF files keep the rows of q and k interleaved for the other rotary layout (llama.cpp `convert_hf_to_gguf.py`,
    /// `LlamaModel.permute`).
    pub is_interleaved: bool,
    /// What folders leave away from the weights of norms, and GGUF files do not.
    pub norm_offset: f32,
    /// The activation.
    pub gate: Gate,
    /// Embeddings are multiplied with √hidden.
    pub scales_embeddings: bool,
    /// Where a window is given: which layers see everything, every n-th; none when nothing is said.
    pub full_every: Option<usize>,
    /// Base of the rotary frequencies in layers with a window, where it is another than elsewhere and the file does not say.
    pub sliding_rope_base: Option<f32>,
    /// Output matrix and embeddings are one where nothing is said.
    pub ties_embeddings: bool,
    /// Factor on the attention's scores, where the file does not say.
    pub attention_scale: fn(&DecoderConfig) -> f32,
}

impl Family {
    /// The plain decoder under a name.
    pub const fn plain(gguf: Option<&'static str>, folder: &'static str, class: &'static str) -> Self {
        Family {
            gguf,
            folder,
            class,
            has_biases: false,
            has_head_norms: false,
            has_output_norms: false,
            is_interleaved: false,
            norm_offset: 0.0,
            gate: Gate::Silu,
            scales_embeddings: false,
            full_every: None,
            sliding_rope_base: None,
            ties_embeddings: false,
            attention_scale: |config| config.heads.scale(),
        }
    }

    /// The family whose name and layout GGUF files of this one have.
    pub fn as_gguf(&self) -> &Family {
        if self.gguf.is_some() { self } else { &llama::FAMILY }
    }
}

/// The names of all architectures, for messages.
pub fn known() -> String {
    FAMILIES.iter().map(|family| family.folder).collect::<Vec<_>>().join(", ")
}
