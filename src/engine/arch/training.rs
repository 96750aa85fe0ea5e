//! The forward pass that trains: the same network as [`serving`](super::serving) over candle tensors in f32, with hand-written backward
//! passes. Adapters are what is trained; the weights are frozen. All blocks together are one operation, the [stack](crate::engine::nn::stack);
//! [`Training::hidden_by_operations`] is the same network one operation at a time, for what the stack does not know.

use super::{Batch, DecoderConfig};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::nn::adapted::adapted;
use crate::engine::nn::add::add;
use crate::engine::nn::attention::{Heads, TrainAttention};
use crate::engine::nn::block::{Block, LINEARS};
use crate::engine::nn::dora::row_norms;
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
    pub(super) projections: [Projection; LINEARS],
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
    pub(super) fn new(
        (embed_tokens, lm_head): (Tensor, Linear),
        layers: Vec<Layer>,
        norm: Norm,
        (heads, rope): (Heads, Arc<Rope>),
    ) -> Self {
        let stack = Arc::new(Stack::new(layers.iter().map(Layer::block).collect(), heads, rope.clone()));
        Training { embed_tokens, lm_head, layers, norm, rope, stack }
    }

    /// Hidden states after the last norm, (N, hidden); a graph is built if the adapter's tensors are variables.
    pub(super) fn hidden(&self, config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        if !adapter.is_plain() {
            return self.hidden_by_operations(config, batch, adapter);
        }
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
                let mut weight = (projection.linear.weight()? + update)?;
                if let Some(m) = adapter.extras(&projection.path).magnitude {
                    let norms = row_norms(projection.linear.weight()?, lora)?;
                    let gains = (m / Tensor::from_vec(norms, m.shape(), &Device::Cpu)?)?;
                    weight = weight.broadcast_mul(&gains.unsqueeze(1)?)?;
                }
                projection.linear = Linear::new(weight)?;
            }
        }
        let stack = Arc::new(self.stack.with(layers.iter().map(Layer::block).collect()));
        Ok(Training { layers, stack, ..self.clone() })
    }

    /// The frozen weight (out, in) of a module.
    pub(super) fn weight(&self, path: &str) -> Option<candle_core::Result<&Tensor>> {
        let mut projections = self.layers.iter().flat_map(|layer| &layer.projections);
        projections.find(|projection| projection.path == path).map(|projection| projection.linear.weight())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter::AdapterConfig;
    use crate::engine::arch::config::Rotary;
    use crate::engine::kernel::rows::Gate;
    use crate::engine::nn::linear::Lora;
    use candle_core::Var;
    use std::collections::HashMap;

    /// Values in (-1, 1), a fixed sequence for each seed (a linear congruential generator, Knuth's MMIX constants).
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn matrix(rows: usize, columns: usize, seed: u64, size: f32) -> Tensor {
        let values = noise(rows * columns, seed).into_iter().map(|x| x * size).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
    }

    fn config() -> DecoderConfig {
        DecoderConfig {
            architecture: "llama".into(),
            layers: 3,
            hidden: 20,
            inner: 34,
            heads: Heads { queries: 4, keys: 2, width: 6 },
            vocabulary: 11,
            context: 256,
            attention_scale: 1.0 / 6f32.sqrt(),
            rotary: Rotary { base: 100.0, stretch: Vec::new() },
            sliding: None,
            gate: Gate::Silu,
            embedding_scale: 1.0,
            logit_cap: None,
            norm_epsilon: 1e-5,
        }
    }

    fn network(config: &DecoderConfig, linear: fn(Tensor) -> candle_core::Result<Linear>) -> Training {
        let mut seed = 1;
        let mut weight = |outputs: usize, inputs: usize| {
            seed += 1;
            matrix(outputs, inputs, seed, 1.5 / (inputs as f32).sqrt())
        };
        let norm = |seed: u64| {
            let values: Vec<f32> = noise(config.hidden, seed).iter().map(|x| 1.0 + 0.3 * x).collect();
            Norm::new(Tensor::from_vec(values, config.hidden, &Device::Cpu).expect("a vector"), config.norm_epsilon).expect("a norm")
        };
        let mut layers = Vec::new();
        for targets in config.lora_targets().chunks(LINEARS) {
            let mut projections = targets.iter().map(|target| Projection {
                path: target.path.clone(),
                linear: linear(weight(target.outputs, target.inputs)).expect("a layer"),
            });
            layers.push(Layer {
                projections: std::array::from_fn(|_| projections.next().expect("seven")),
                input_layernorm: norm(90),
                post_attention_layernorm: norm(91),
            });
        }
        let tables = (weight(config.vocabulary, config.hidden), Linear::new(weight(config.vocabulary, config.hidden)).expect("a head"));
        let rope = Arc::new(Rope::new(config.context, config.heads.width, config.rotary.base));
        Training::new(tables, layers, norm(92), (config.heads, rope))
    }

    /// Pairs on all layers of the upper two blocks, but for one.
    fn adapter(config: &DecoderConfig) -> (Adapter, Vec<Var>) {
        let (mut loras, mut variables) = (HashMap::new(), Vec::new());
        for (i, target) in config.lora_targets().into_iter().enumerate().skip(LINEARS).filter(|(i, _)| *i != 2 * LINEARS + 2) {
            let half = |rows, columns, seed| Var::from_tensor(&matrix(rows, columns, seed, 0.4)).expect("a variable");
            let (a, b) = (half(3, target.inputs, 200 + i as u64), half(target.outputs, 3, 300 + i as u64));
            loras.insert(target.path, Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.7 });
            variables.extend([a, b]);
        }
        (Adapter::new(AdapterConfig::lora("tiny", 3, 2.1, &[]), loras), variables)
    }

    /// Sequences that end inside blocks of rows and tiles of the attention.
    fn batch() -> Batch {
        let mut batch = Batch::default();
        for (slot, length) in [71, 1, 5, 130].into_iter().enumerate() {
            let tokens: Vec<u32> = (0..length).map(|i| (i * 7 + slot as u32 * 3) % 11).collect();
            batch.push(&tokens, slot, 0);
        }
        batch
    }

    type Forward = fn(&Training, &DecoderConfig, &Batch, &Adapter) -> Result<Tensor, EngineError>;

    /// The hidden states, and the gradients of all variables for a loss that weighs them at random.
    fn run(network: &Training, forward: Forward) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (config, batch) = (config(), batch());
        let (adapter, variables) = adapter(&config);
        let hidden = forward(network, &config, &batch, &adapter).expect("a forward pass");
        let weights = matrix(batch.tokens.len(), config.hidden, 77, 1.0);
        let loss = (&hidden * weights).and_then(|x| x.sum_all()).expect("a loss");
        let gradients = loss.backward().expect("a backward pass");
        let values = |tensor: &Tensor| tensor.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("values");
        let of = |variable: &Var| values(gradients.get(variable.as_tensor()).expect("every variable has a gradient"));
        (values(&hidden), variables.iter().map(of).collect())
    }

    /// Distance relative to the length of `b`.
    fn distance(a: &[f32], b: &[f32]) -> f64 {
        let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        sum(&mut a.iter().zip(b).map(|(a, b)| a - b)) / sum(&mut b.iter().copied())
    }

    #[test]
    fn the_stack_is_the_operations_one_by_one() {
        let exact = network(&config(), Linear::new);
        let (expected, expected_gradients) = run(&exact, Training::hidden_by_operations);
        // In f32 but for the order of sums; in bfloat16 every product rounds its sides to 8 bits of mantissa, which shows most in the
        // gradients of queries, small differences of larger numbers (measured: 0.038).
        let rounded = network(&config(), Linear::rounded);
        let cases: [(&Training, Forward, f64); 3] =
            [(&exact, Training::hidden, 1e-5), (&rounded, Training::hidden, 0.06), (&rounded, Training::hidden_by_operations, 0.06)];
        for (network, forward, tolerance) in cases {
            let (hidden, gradients) = run(network, forward);
            assert!(distance(&hidden, &expected) < tolerance, "hidden states are off by {}", distance(&hidden, &expected));
            for (i, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
                assert!(distance(gradient, expected) < tolerance, "gradient {i} is off by {}", distance(gradient, expected));
            }
        }
    }

    #[test]
    fn steps_do_not_depend_on_threads_or_on_the_step_before() {
        for linear in [Linear::new, Linear::rounded] {
            let network = network(&config(), linear);
            let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let first = pool(1).install(|| run(&network, Training::hidden));
            assert!(pool(3).install(|| run(&network, Training::hidden)) == first, "another number of threads, another result");
        }
    }
}
