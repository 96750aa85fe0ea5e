//! Where a decoder's tensors are kept: a GGUF file or a folder of safetensors, each with names of its own.

use super::family::Family;
use crate::engine::EngineError;
use crate::engine::folder::Folder;
use crate::engine::gguf::{Gguf, Order};
use crate::engine::kernel::tiles::Weight;
use candle_core::Tensor;

/// Tensors by name.
pub(super) trait Checkpoint: Sync {
    /// Names of all tensors.
    fn names(&self) -> Vec<&str>;
    /// Whether a tensor is there.
    fn has(&self, name: &str) -> bool;
    /// A tensor of that shape as f32.
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, EngineError>;
    /// A matrix (outputs, inputs), packed for serving; row i is row `order(i)` of the file. With `exact`, as f32.
    fn weight(&self, name: &str, shape: (usize, usize), order: Order<'_>, exact: bool) -> Result<Weight, EngineError>;
    /// Error about the checkpoint.
    fn problem(&self, problem: String) -> EngineError;

    /// A tensor of one dimension.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.tensor(name, &[length])?.to_vec1()?)
    }
}

impl Checkpoint for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensor_names().collect()
    }
    fn has(&self, name: &str) -> bool {
        self.has_tensor(name)
    }
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, EngineError> {
        Gguf::tensor(self, name, dims)
    }
    fn weight(&self, name: &str, shape: (usize, usize), order: Order<'_>, exact: bool) -> Result<Weight, EngineError> {
        Gguf::weight(self, name, shape, order, exact)
    }
    fn problem(&self, problem: String) -> EngineError {
        Gguf::problem(self, problem)
    }
}

impl Checkpoint for Folder {
    fn names(&self) -> Vec<&str> {
        self.tensor_names().collect()
    }
    fn has(&self, name: &str) -> bool {
        self.has_tensor(name)
    }
    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, EngineError> {
        Folder::tensor(self, name, dims)
    }
    fn weight(&self, name: &str, shape: (usize, usize), order: Order<'_>, exact: bool) -> Result<Weight, EngineError> {
        Folder::weight(self, name, shape, order, exact)
    }
    fn problem(&self, problem: String) -> EngineError {
        Folder::problem(self, problem)
    }
}

/// What tensors are called.
pub(super) struct Names {
    pub(super) embed_tokens: &'static str,
    pub(super) lm_head: &'static str,
    pub(super) norm: &'static str,
    /// Begins the names of a block; its number follows.
    block: &'static str,
    pub(super) input_norm: &'static str,
    /// On what attention adds.
    pub(super) attention_output_norm: &'static str,
    pub(super) feed_forward_norm: &'static str,
    /// On what the feed-forward part adds.
    pub(super) feed_forward_output_norm: &'static str,
    pub(super) head_norms: [&'static str; 2],
    /// q, k, v, o, gate, up and down.
    pub(super) linears: [&'static str; 7],
    /// Tensors that say nothing that is not known otherwise.
    spare: &'static [&'static str],
}

/// llama.cpp's `gguf-py/gguf/constants.py`.
pub(super) const GGUF: Names = Names {
    embed_tokens: "token_embd.weight",
    lm_head: "output.weight",
    norm: "output_norm.weight",
    block: "blk.",
    input_norm: "attn_norm",
    attention_output_norm: "post_attention_norm",
    feed_forward_norm: "ffn_norm",
    feed_forward_output_norm: "post_ffw_norm",
    head_norms: ["attn_q_norm", "attn_k_norm"],
    linears: ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    spare: &["rope_freqs.weight"],
};

/// Hugging Face transformers.
pub(super) fn folder(family: &Family) -> Names {
    let is_wrapped = family.has_output_norms;
    Names {
        embed_tokens: "model.embed_tokens.weight",
        lm_head: "lm_head.weight",
        norm: "model.norm.weight",
        block: "model.layers.",
        input_norm: "input_layernorm",
        attention_output_norm: "post_attention_layernorm",
        // Where only the input of each part has a norm, the second one is named after what is before it.
        feed_forward_norm: if is_wrapped { "pre_feedforward_layernorm" } else { "post_attention_layernorm" },
        feed_forward_output_norm: "post_feedforward_layernorm",
        head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        linears: [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ],
        spare: &["rotary_emb.inv_freq"],
    }
}

impl Names {
    /// A tensor of a block.
    pub(super) fn of(&self, layer: usize, name: &str, kind: &str) -> String {
        format!("{}.{kind}", self.module(layer, name))
    }

    /// A module of a block.
    pub(super) fn module(&self, layer: usize, name: &str) -> String {
        format!("{}{layer}.{name}", self.block)
    }

    /// Refuses tensors that would be left out of the network: it is not the one that was trained.
    pub(super) fn check_all_known(&self, file: &dyn Checkpoint, family: &Family, layers: usize) -> Result<(), EngineError> {
        let mut parts: Vec<String> = [self.input_norm, self.feed_forward_norm].into_iter().chain(self.linears).map(weight).collect();
        if family.has_output_norms {
            parts.extend([weight(self.attention_output_norm), weight(self.feed_forward_output_norm)]);
        }
        if family.has_head_norms {
            parts.extend(self.head_norms.map(weight));
        }
        if family.has_biases {
            parts.extend(self.linears[..3].iter().map(|name| format!("{name}.bias")));
        }
        let is_known = |name: &str| {
            let in_block = || {
                let (number, part) = name.strip_prefix(self.block)?.split_once('.')?;
                Some(number.parse::<usize>().ok()? < layers && parts.iter().any(|known| known == part))
            };
            [self.embed_tokens, self.lm_head, self.norm].contains(&name)
                || self.spare.iter().any(|spare| name.ends_with(spare))
                || in_block() == Some(true)
        };
        match file.names().into_iter().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(file.problem(format!("tensor {name} is none that {layers} layers of {} have", family.folder))),
        }
    }
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}
