//! The forward pass that trains: the same network as [`serving`](super::serving) over candle tensors in f32, with hand-written backward
//! passes. Adapters are what is trained; the weights are frozen. All blocks together are one operation, the [stack](crate::engine::nn::stack);
//! [`Training::hidden_by_operations`] is the same network one operation at a time, for what the stack does not know.

use super::{Batch, DecoderConfig};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::nn::add::add;
use crate::engine::nn::attention::{Heads, TrainAttention};
use crate::engine::nn::block::Block;
use crate::engine::nn::linear::Linear;
use crate::engine::nn::norm::RmsNorm;
use crate::engine::nn::rope::Rope;
use crate::engine::nn::stack::Stack;
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
    stack: Arc<Stack>,
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
    /// From its parts.
    pub(super) fn new((embed_tokens, lm_head): (Tensor, Linear), layers: Vec<Layer>, norm: Norm, (heads, rope): (Heads, Arc<Rope>)) -> Self {
        let stack = Arc::new(Stack::new(layers.iter().map(Layer::block).collect(), heads, rope.clone()));
        Training { embed_tokens, lm_head, layers, norm, rope, stack }
    }

    /// Hidden states after the last norm, (N, hidden); a graph is built if the adapter's tensors are variables.
    pub(super) fn hidden(&self, _config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        let x = self.embedded(batch)?;
        let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect());
        let adapted = self.layers.iter().map(|layer| layer.projections.each_ref().map(|p| adapter.lora(&p.path))).collect();
        Ok(self.norm.op.forward(&self.stack.forward(&x, &adapted, sequences)?)?)
    }

    /// As [`Training::hidden`], each operation a node of the graph.
    ///
    /// # Errors
    /// As [`Training::hidden`].
    pub fn hidden_by_operations(&self, config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        let mut x = self.embedded(batch)?;
        let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect());
        let attention = TrainAttention { heads: config.heads, rope: self.rope.clone(), sequences };
        for layer in &self.layers {
            x = add(&x, &layer.attention(&layer.input_layernorm.op.forward(&x)?, &attention, adapter)?)?;
            x = add(&x, &layer.feed_forward(&layer.post_attention_layernorm.op.forward(&x)?, adapter)?)?;
        }
        Ok(self.norm.op.forward(&x)?)
    }

    fn embedded(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let ids = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        self.embed_tokens.index_select(&ids, 0)
    }

    /// The same network with an adapter's update added to its weights.
    pub(super) fn merged(&self, adapter: &Adapter) -> candle_core::Result<Self> {
        let mut layers = self.layers.clone();
        for projection in layers.iter_mut().flat_map(|layer| &mut layer.projections) {
            if let Some(lora) = adapter.lora(&projection.path) {
                let update = (lora.b.matmul(&lora.a)? * f64::from(lora.scale))?;
                projection.linear = Linear::new((projection.linear.weight()? + update)?)?;
            }
        }
        let stack = Arc::new(self.stack.with(layers.iter().map(Layer::block).collect()));
        Ok(Training { layers, stack, ..self.clone() })
    }

    /// Frozen weights by checkpoint name.
    pub(super) fn weights(&self) -> candle_core::Result<Vec<(String, Tensor)>> {
        let mut weights = vec![("model.embed_tokens.weight".to_string(), self.embed_tokens.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            weights.push((format!("{prefix}.input_layernorm.weight"), layer.input_layernorm.weight.clone()));
            weights.push((format!("{prefix}.post_attention_layernorm.weight"), layer.post_attention_layernorm.weight.clone()));
            for p in &layer.projections {
                weights.push((format!("{}.weight", p.path), p.linear.weight()?.clone()));
            }
        }
        weights.push(("model.norm.weight".into(), self.norm.weight.clone()));
        weights.push(("lm_head.weight".into(), self.lm_head.weight()?.clone()));
        Ok(weights)
    }
}

impl Layer {
    fn block(&self) -> Block {
        Block {
            input_layernorm: self.input_layernorm.op.clone(),
            post_attention_layernorm: self.post_attention_layernorm.op.clone(),
            linears: self.projections.each_ref().map(|projection| projection.linear.clone()),
        }
    }

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
        self.linear.train(x, adapter.lora(&self.path))
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
