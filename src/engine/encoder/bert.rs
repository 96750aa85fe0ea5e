//! BERT (Devlin et al. 2018, arXiv 1810.04805): embeddings of words, positions and kinds, then layers of attention to the whole text and a
//! feed-forward part, each with its residual and a norm behind it. Tensor names are those of transformers' `BertModel`.

use super::files::{Config, Weights, fault};
use crate::engine::EngineError;
use crate::engine::nn::encoder::{Dense, Heads, LayerNorm, attend_all};
use std::ops::Range;

/// The network.
pub(super) struct Bert {
    config: Config,
    /// (vocabulary, hidden)
    words: Vec<f32>,
    /// (positions, hidden), with the embedding of the one kind of text that there is.
    places: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    /// Queries, keys and values side by side.
    qkv: Dense,
    attended: Dense,
    attended_norm: LayerNorm,
    inner: Dense,
    outer: Dense,
    outer_norm: LayerNorm,
}

impl Bert {
    /// Reads the weights, with or without the prefix `bert.`.
    pub(super) fn load(config: &Config, weights: &Weights) -> Result<Self, EngineError> {
        let tensors = weights.open()?;
        let prefix = if tensors.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let hidden = config.hidden;
        let get = |name: &str, shape: &[usize]| tensors.get(&format!("{prefix}{name}"), shape);
        let norm = |name: &str| {
            // Older checkpoints call scale and shift gamma and beta.
            let old = tensors.has(&format!("{prefix}{name}.gamma"));
            let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
            let (weight, bias) = (get(&format!("{name}.{weight}"), &[hidden])?, get(&format!("{name}.{bias}"), &[hidden])?);
            Ok::<_, EngineError>(LayerNorm::new(weight, bias, config.norm_epsilon))
        };
        let dense = |names: &[String], inputs: usize, outputs: usize| {
            let (mut weight, mut bias) = (Vec::new(), Vec::new());
            for name in names {
                weight.extend(get(&format!("{name}.weight"), &[outputs, inputs])?);
                bias.extend(get(&format!("{name}.bias"), &[outputs])?);
            }
            Ok::<_, EngineError>(Dense::new(&weight, bias))
        };
        let mut places = get("embeddings.position_embeddings.weight", &[config.positions, hidden])?;
        let kinds = get("embeddings.token_type_embeddings.weight", &[config.kinds, hidden])?;
        places.chunks_exact_mut(hidden).for_each(|row| row.iter_mut().zip(&kinds).for_each(|(x, kind)| *x += kind));
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let at = |part: &str| format!("encoder.layer.{i}.{part}");
            layers.push(Layer {
                qkv: dense(&["query", "key", "value"].map(|which| at(&format!("attention.self.{which}"))), hidden, hidden)?,
                attended: dense(&[at("attention.output.dense")], hidden, hidden)?,
                attended_norm: norm(&at("attention.output.LayerNorm"))?,
                inner: dense(&[at("intermediate.dense")], hidden, config.inner)?,
                outer: dense(&[at("output.dense")], config.inner, hidden)?,
                outer_norm: norm(&at("output.LayerNorm"))?,
            });
        }
        let words = get("embeddings.word_embeddings.weight", &[config.vocabulary, hidden])?;
        if words.iter().chain(&places).any(|x| !x.is_finite()) {
            return Err(fault("model.safetensors", "the embeddings hold numbers that are not finite"));
        }
        Ok(Bert { norm: norm("embeddings.LayerNorm")?, config: config.clone(), words, places, layers })
    }

    pub(super) fn width(&self) -> usize {
        self.config.hidden
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Hidden states (rows, hidden) of texts whose token ids lie one behind the other; ids and lengths have been checked.
    pub(super) fn hidden(&self, tokens: &[u32], texts: &[Range<usize>], parallel: bool) -> Vec<f32> {
        let width = self.config.hidden;
        let mut x = Vec::with_capacity(tokens.len() * width);
        let mut places = Vec::with_capacity(tokens.len() * width);
        for text in texts {
            for id in &tokens[text.clone()] {
                x.extend_from_slice(&self.words[*id as usize * width..][..width]);
            }
            places.extend_from_slice(&self.places[..text.len() * width]);
        }
        self.norm.add(&mut x, &places);
        for layer in &self.layers {
            let qkv = layer.qkv.forward(&x, parallel);
            let attended = attend_all(&qkv, texts, Heads { count: self.config.heads, width: width / self.config.heads }, parallel);
            let mut y = layer.attended.forward(&attended, parallel);
            layer.attended_norm.add(&mut y, &x);
            let inner = layer.inner.forward_gelu(&y, parallel);
            x = layer.outer.forward(&inner, parallel);
            layer.outer_norm.add(&mut x, &y);
        }
        x
    }
}
