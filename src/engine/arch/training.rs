//! The forward pass that trains: the same network as [`serving`](super::serving) over candle tensors in f32, each operation with its own
//! backward pass. Adapters are what is trained; the weights are frozen.

use super::{Batch, DecoderConfig};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::nn::adapted::adapted;
use crate::engine::nn::add::add;
use crate::engine::nn::attention::TrainAttention;
use crate::engine::nn::dora::row_norms;
use crate::engine::nn::linear::Linear;
use crate::engine::nn::norm::RmsNorm;
use crate::engine::nn::rope::Rope;
use crate::engine::nn::swiglu::SwiGlu;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// The network.
#[derive(Clone)]
pub struct Training {
    pub(super) embed_tokens: Tensor,
    pub(super) lm_head: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) rope: Arc<Rope>,
}

/// One transformer block.
#[derive(Clone)]
pub struct Layer {
    pub(super) input_layernorm: Norm,
    pub(super) post_attention_layernorm: Norm,
    /// q, k, v, o, gate, up and down.
    pub(super) projections: [Projection; 7],
}

/// A norm and its weight.
#[derive(Clone)]
pub struct Norm {
    weight: Tensor,
    op: RmsNorm,
}

/// A linear layer and its path in the checkpoint.
#[derive(Clone)]
pub struct Projection {
    pub(super) path: String,
    pub(super) linear: Linear,
}

impl Training {
    /// Hidden states after the last norm, (N, hidden); a graph is built if the adapter's tensors are variables.
    pub(super) fn hidden(&self, config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        let ids = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        let mut x = self.embed_tokens.index_select(&ids, 0)?;
        let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect());
        let attention = TrainAttention { heads: config.heads, rope: self.rope.clone(), sequences };
        for layer in &self.layers {
            x = add(&x, &layer.attention(&layer.input_layernorm.op.forward(&x)?, &attention, adapter)?)?;
            x = add(&x, &layer.feed_forward(&layer.post_attention_layernorm.op.forward(&x)?, adapter)?)?;
        }
        Ok(self.norm.op.forward(&x)?)
    }

    /// The same network with an adapter's update added to its weights.
    pub(super) fn merged(&self, adapter: &Adapter) -> candle_core::Result<Self> {
        let mut merged = self.clone();
        for projection in merged.layers.iter_mut().flat_map(|layer| &mut layer.projections) {
            if let Some(lora) = adapter.lora(&projection.path) {
                let update = (lora.b.matmul(&lora.a)? * f64::from(lora.scale))?;
                let mut weight = (projection.linear.weight() + update)?;
                if let Some(m) = adapter.extras(&projection.path).magnitude {
                    let norms = row_norms(projection.linear.weight(), lora)?;
                    let gains = (m / Tensor::from_vec(norms, m.shape(), &Device::Cpu)?)?;
                    weight = weight.broadcast_mul(&gains.unsqueeze(1)?)?;
                }
                projection.linear = Linear::new(weight)?;
            }
        }
        Ok(merged)
    }

    /// The frozen weight (out, in) of a module.
    pub(super) fn weight(&self, path: &str) -> Option<&Tensor> {
        let mut projections = self.layers.iter().flat_map(|layer| &layer.projections);
        projections.find(|projection| projection.path == path).map(|projection| projection.linear.weight())
    }

    /// Frozen weights by checkpoint name.
    pub(super) fn weights(&self) -> Vec<(String, Tensor)> {
        let mut weights = vec![("model.embed_tokens.weight".to_string(), self.embed_tokens.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            weights.push((format!("{prefix}.input_layernorm.weight"), layer.input_layernorm.weight.clone()));
            weights.push((format!("{prefix}.post_attention_layernorm.weight"), layer.post_attention_layernorm.weight.clone()));
            weights.extend(layer.projections.iter().map(|p| (format!("{}.weight", p.path), p.linear.weight().clone())));
        }
        weights.push(("model.norm.weight".into(), self.norm.weight.clone()));
        weights.push(("lm_head.weight".into(), self.lm_head.weight().clone()));
        weights
    }
}

impl Layer {
    fn attention(&self, x: &Tensor, attention: &TrainAttention, adapter: &Adapter) -> candle_core::Result<Tensor> {
        let [q, k, v, o, ..] = &self.projections;
        let (q, k, v) = (q.forward(x, adapter)?, k.forward(x, adapter)?, v.forward(x, adapter)?);
        o.forward(&q.apply_op3(&k, &v, attention.clone())?, adapter)
    }

    fn feed_forward(&self, x: &Tensor, adapter: &Adapter) -> candle_core::Result<Tensor> {
        let [.., gate, up, down] = &self.projections;
        let (gate, up) = (gate.forward(x, adapter)?, up.forward(x, adapter)?);
        down.forward(&gate.apply_op2(&up, SwiGlu)?, adapter)
    }
}

impl Projection {
    fn forward(&self, x: &Tensor, adapter: &Adapter) -> candle_core::Result<Tensor> {
        match adapter.lora(&self.path) {
            Some(lora) => adapted(&self.linear, x, lora, adapter.extras(&self.path)),
            None => self.linear.train(x, None),
        }
    }
}

impl Norm {
    /// A norm of that weight.
    ///
    /// # Errors
    /// When the weight is no vector of f32.
    pub(super) fn new(weight: Tensor, epsilon: f32) -> candle_core::Result<Self> {
        Ok(Norm { op: RmsNorm::new(&weight, epsilon)?, weight })
    }
}
