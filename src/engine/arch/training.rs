//! The forward pass that trains: the same network as [`serving`](super::serving) over candle tensors in f32, with hand-written backward
//! passes. Adapters are what is trained over frozen weights, or the weights themselves, where they are variables. All blocks together are
//! one operation, the [stack](crate::engine::nn::stack), where plain pairs are trained over them;
//! [`Training::hidden_by_operations`] is the same network one operation at a time, for everything else.

use super::checkpoint::Names;
use super::{Batch, DecoderConfig};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::kernel::rows::Gate;
use crate::engine::kernel::tiles::Weight;
use crate::engine::nn::adapted::adapted;
use crate::engine::nn::add::add;
use crate::engine::nn::attention::{Scores, TrainAttention};
use crate::engine::nn::block::{Block, LINEARS};
use crate::engine::nn::dora::row_norms;
use crate::engine::nn::gated::Gated;
use crate::engine::nn::heads::Sight;
use crate::engine::nn::linear::Linear;
use crate::engine::nn::norm::RmsNorm;
use crate::engine::nn::rope::Rope;
use crate::engine::nn::stack::Stack;
use crate::engine::nn::trained;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// The network.
#[derive(Clone)]
pub struct Training {
    pub(super) embed_tokens: Table,
    pub(super) lm_head: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    ropes: Ropes,
    /// All blocks as one operation; none where their weights are trained.
    stack: Option<Arc<Stack>>,
}

/// The embeddings, (vocabulary, hidden).
#[derive(Clone)]
pub enum Table {
    /// In f32; a variable where they are trained.
    Exact(Tensor),
    /// As serving packs them.
    Packed(Arc<Weight>),
}

/// Rotary tables.
#[derive(Clone)]
pub struct Ropes {
    full: Arc<Rope>,
    /// Of layers that slide.
    sliding: Arc<Rope>,
}

/// One transformer block.
#[derive(Clone)]
pub struct Layer {
    pub(super) input_layernorm: Norm,
    /// q, k, v, o, gate, up and down.
    pub(super) projections: [Projection; LINEARS],
    /// Norms of the heads of q and k.
    pub(super) head_norms: Option<[Norm; 2]>,
    /// On what attention adds.
    pub(super) attention_output_norm: Option<Norm>,
    /// `post_attention_layernorm` of checkpoints whose outputs have no norms.
    pub(super) feed_forward_norm: Norm,
    /// On what the feed-forward part adds.
    pub(super) feed_forward_output_norm: Option<Norm>,
}

/// A norm and its weight.
#[derive(Clone)]
pub struct Norm {
    /// As folders have it; a variable where it is trained.
    pub(super) weight: Tensor,
    /// What is added to it.
    offset: f32,
    epsilon: f32,
    op: RmsNorm,
}

/// A linear layer and its path in the checkpoint.
#[derive(Clone)]
pub struct Projection {
    pub(super) path: String,
    pub(super) linear: Linear,
    /// (out); a variable where it is trained.
    pub(super) bias: Option<Tensor>,
}

/// A tensor of the network under its name in a checkpoint.
pub(super) struct Held {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    /// Heads whose rows it has, of q and k.
    pub(super) heads: Option<usize>,
    /// Whether it is the weight of a norm.
    pub(super) is_norm: bool,
}

impl Ropes {
    /// Tables for so many positions.
    pub(super) fn new(config: &DecoderConfig, positions: usize) -> Self {
        let width = config.heads.width;
        let full = Arc::new(Rope::new(positions, &config.rotary.periods(width)));
        let sliding = config.sliding.as_ref().filter(|sliding| sliding.rotary != config.rotary);
        let sliding = sliding.map_or_else(|| full.clone(), |sliding| Arc::new(Rope::new(positions, &sliding.rotary.periods(width))));
        Ropes { full, sliding }
    }

    /// What the attention of a layer sees.
    fn sight(&self, config: &DecoderConfig, layer: usize) -> Sight {
        let window = config.window(layer);
        let rope = if window == usize::MAX { &self.full } else { &self.sliding };
        Sight { scores: Scores { heads: config.heads, scale: config.attention_scale, window }, rope: rope.clone() }
    }
}

impl Training {
    /// From its parts.
    ///
    /// # Errors
    /// When a bias cannot be read.
    pub(super) fn new(
        config: &DecoderConfig,
        (embed_tokens, lm_head): (Table, Linear),
        layers: Vec<Layer>,
        norm: Norm,
        ropes: Ropes,
    ) -> candle_core::Result<Self> {
        let is_frozen = !matches!(&embed_tokens, Table::Exact(tensor) if tensor.is_variable());
        let blocks = || layers.iter().enumerate().map(|(index, layer)| layer.block(config, ropes.sight(config, index)));
        let blocks = || blocks().collect::<candle_core::Result<_>>();
        let stack = if is_frozen { Some(Arc::new(Stack::new(blocks()?, config.heads))) } else { None };
        Ok(Training { embed_tokens, lm_head, layers, norm, ropes, stack })
    }

    /// Hidden states after the last norm, (N, hidden); a graph is built if the adapter's tensors are variables.
    pub(super) fn hidden(&self, config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        let Some(stack) = self.stack.as_ref().filter(|_| adapter.is_plain()) else {
            return self.hidden_by_operations(config, batch, adapter);
        };
        let x = self.embedded(config, batch)?;
        let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect());
        let adapted = self.layers.iter().map(|layer| layer.projections.each_ref().map(|p| adapter.lora(&p.path))).collect();
        Ok(self.norm.forward(&stack.forward(&x, &adapted, sequences)?)?)
    }

    /// As [`Training::hidden`], each operation a node of the graph.
    ///
    /// # Errors
    /// As [`Training::hidden`].
    pub fn hidden_by_operations(&self, config: &DecoderConfig, batch: &Batch, adapter: &Adapter) -> Result<Tensor, EngineError> {
        let mut x = self.embedded(config, batch)?;
        let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect::<Vec<_>>());
        for (index, layer) in self.layers.iter().enumerate() {
            let Sight { scores, rope } = self.ropes.sight(config, index);
            let attention = TrainAttention { scores, rope, sequences: sequences.clone() };
            x = add(&x, &layer.attention(&layer.input_layernorm.forward(&x)?, attention, adapter)?)?;
            x = add(&x, &layer.feed_forward(&layer.feed_forward_norm.forward(&x)?, config.gate, adapter)?)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    fn embedded(&self, config: &DecoderConfig, batch: &Batch) -> candle_core::Result<Tensor> {
        let rows = match &self.embed_tokens {
            Table::Exact(tensor) => tensor.index_select(&Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?, 0)?,
            Table::Packed(weight) => {
                let mut rows = vec![0f32; batch.tokens.len() * weight.inputs()];
                for (token, row) in batch.tokens.iter().zip(rows.chunks_exact_mut(weight.inputs())) {
                    weight.row(*token as usize, row);
                }
                Tensor::from_vec(rows, (batch.tokens.len(), weight.inputs()), &Device::Cpu)?
            }
        };
        if config.embedding_scale == 1.0 { Ok(rows) } else { rows * f64::from(config.embedding_scale) }
    }

    /// The same network with an adapter's update added to its weights.
    pub(super) fn merged(&self, config: &DecoderConfig, adapter: &Adapter) -> candle_core::Result<Self> {
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
        let (tables, ropes) = ((self.embed_tokens.clone(), self.lm_head.clone()), self.ropes.clone());
        Self::new(config, tables, layers, self.norm.clone(), ropes)
    }

    /// The frozen weight (out, in) of a module.
    pub(super) fn weight(&self, path: &str) -> Option<candle_core::Result<&Tensor>> {
        let mut projections = self.layers.iter().flat_map(|layer| &layer.projections);
        projections.find(|projection| projection.path == path).map(|projection| projection.linear.weight())
    }

    /// All tensors, by the names of a checkpoint; an output matrix that is the embeddings again is named as well.
    pub(super) fn held(&self, names: &Names, config: &DecoderConfig) -> candle_core::Result<Vec<Held>> {
        let matrix = |name: &str, tensor: &Tensor| Held { name: name.into(), tensor: tensor.clone(), heads: None, is_norm: false };
        let Table::Exact(embed_tokens) = &self.embed_tokens else {
            candle_core::bail!("the weights are quantised; load the model for Purpose::Train to read them")
        };
        let mut all = vec![matrix(names.embed_tokens, embed_tokens)];
        for (index, layer) in self.layers.iter().enumerate() {
            for (name, norm) in layer.norms(names) {
                all.push(Held { name: names.of(index, name, "weight"), tensor: norm.weight.clone(), heads: None, is_norm: true });
            }
            let heads = [Some(config.heads.queries), Some(config.heads.keys), None, None, None, None, None];
            for ((projection, name), heads) in layer.projections.iter().zip(names.linears).zip(heads) {
                let of = |kind: &str, tensor: &Tensor| Held { heads, ..matrix(&names.of(index, name, kind), tensor) };
                all.push(of("weight", projection.linear.weight()?));
                all.extend(projection.bias.as_ref().map(|bias| of("bias", bias)));
            }
        }
        all.push(Held { is_norm: true, ..matrix(names.norm, &self.norm.weight) });
        all.push(matrix(names.lm_head, self.lm_head.weight()?));
        Ok(all)
    }
}

impl Layer {
    /// Its part of the stack.
    fn block(&self, config: &DecoderConfig, sight: Sight) -> candle_core::Result<Block> {
        let [q, k, v, ..] = &self.projections;
        let biases = match (&q.bias, &k.bias, &v.bias) {
            (Some(q), Some(k), Some(v)) => Some([q.to_vec1()?, k.to_vec1()?, v.to_vec1()?]),
            _ => None,
        };
        let output_norms = self.attention_output_norm.as_ref().zip(self.feed_forward_output_norm.as_ref());
        Ok(Block {
            input_norm: self.input_layernorm.op.clone(),
            feed_forward_norm: self.feed_forward_norm.op.clone(),
            output_norms: output_norms.map(|(attention, feed_forward)| [attention.op.clone(), feed_forward.op.clone()]),
            head_norms: self.head_norms.as_ref().map(|norms| norms.each_ref().map(|norm| norm.op.clone())),
            linears: self.projections.each_ref().map(|projection| projection.linear.clone()),
            biases,
            gate: config.gate,
            sight,
        })
    }

    /// Its norms, by their names.
    fn norms(&self, names: &Names) -> Vec<(&'static str, &Norm)> {
        let mut norms = vec![(names.input_norm, &self.input_layernorm), (names.feed_forward_norm, &self.feed_forward_norm)];
        norms.extend(self.attention_output_norm.as_ref().map(|norm| (names.attention_output_norm, norm)));
        norms.extend(self.feed_forward_output_norm.as_ref().map(|norm| (names.feed_forward_output_norm, norm)));
        norms.extend(self.head_norms.iter().flat_map(|norms| names.head_norms.into_iter().zip(norms)));
        norms
    }

    fn attention(&self, x: &Tensor, attention: TrainAttention, adapter: &Adapter) -> candle_core::Result<Tensor> {
        let [q, k, v, o, ..] = &self.projections;
        let (mut q, mut k, v) = (q.forward(x, adapter)?, k.forward(x, adapter)?, v.forward(x, adapter)?);
        if let Some([queries, keys]) = &self.head_norms {
            (q, k) = (queries.of_heads(&q)?, keys.of_heads(&k)?);
        }
        let added = o.forward(&q.apply_op3(&k, &v, attention)?, adapter)?;
        self.attention_output_norm.as_ref().map_or(Ok(added.clone()), |norm| norm.forward(&added))
    }

    fn feed_forward(&self, x: &Tensor, gate: Gate, adapter: &Adapter) -> candle_core::Result<Tensor> {
        let [.., gated, up, down] = &self.projections;
        let (gated, up) = (gated.forward(x, adapter)?, up.forward(x, adapter)?);
        let added = down.forward(&gated.apply_op2(&up, Gated(gate))?, adapter)?;
        self.feed_forward_output_norm.as_ref().map_or(Ok(added.clone()), |norm| norm.forward(&added))
    }
}

impl Projection {
    fn forward(&self, x: &Tensor, adapter: &Adapter) -> candle_core::Result<Tensor> {
        let y = match adapter.lora(&self.path) {
            Some(lora) => adapted(&self.linear, x, lora, adapter.extras(&self.path)),
            None => self.linear.train(x, None),
        }?;
        // A bias is not scaled by DoRA.
        match &self.bias {
            Some(bias) => y.apply_op2(bias, trained::Bias),
            None => Ok(y),
        }
    }
}

impl Norm {
    /// A norm with these factors, of which folders leave `offset` away.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    pub(super) fn new(factors: Vec<f32>, offset: f32, epsilon: f32) -> candle_core::Result<Self> {
        let weight = factors.iter().map(|x| x - offset).collect::<Vec<f32>>();
        let weight = Tensor::from_vec(weight, factors.len(), &Device::Cpu)?;
        Ok(Norm { weight, offset, epsilon, op: RmsNorm::new(factors, epsilon) })
    }

    /// (N, width) → (N, width).
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if self.weight.is_variable() {
            let norm = trained::Norm { offset: self.offset, epsilon: self.epsilon };
            return x.contiguous()?.apply_op2(&self.weight, norm);
        }
        self.op.forward(x)
    }

    /// (N, heads · width) → the same, each head by itself.
    fn of_heads(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward(&x.reshape(((), self.op.width()))?)?.reshape(x.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapter::AdapterConfig;
    use crate::engine::arch::config::{Rotary, Sliding};
    use crate::engine::nn::attention::Heads;
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

    /// As those of Qwen2.
    const BIASED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

    fn vector(length: usize, seed: u64) -> Tensor {
        Tensor::from_vec(noise(length, seed), length, &Device::Cpu).expect("a vector")
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
            rotary: Rotary { base: 100.0, stretch: vec![1.0, 2.0, 4.0] },
            sliding: None,
            gate: Gate::Silu,
            embedding_scale: 1.0,
            logit_cap: None,
            norm_epsilon: 1e-5,
        }
    }

    /// As Gemma 3 has it: a window in two of three layers with other angles, another gate, another scale.
    fn sliding() -> DecoderConfig {
        let rotary = Rotary { base: 30.0, stretch: vec![1.0; 3] };
        let sliding = Some(Sliding { window: 40, layers: vec![true, false, true], rotary });
        DecoderConfig { attention_scale: 0.5, sliding, gate: Gate::GeluTanh, ..config() }
    }

    fn network(config: &DecoderConfig, linear: fn(Tensor) -> candle_core::Result<Linear>) -> Training {
        let mut seed = 1;
        let mut weight = |outputs: usize, inputs: usize| {
            seed += 1;
            matrix(outputs, inputs, seed, 1.5 / (inputs as f32).sqrt())
        };
        let wide = |width: usize, seed: u64| {
            let values: Vec<f32> = noise(width, seed).iter().map(|x| 1.0 + 0.3 * x).collect();
            Norm::new(values, 0.0, config.norm_epsilon).expect("a norm")
        };
        let norm = |seed: u64| wide(config.hidden, seed);
        let more = config.sliding.is_some();
        let mut layers = Vec::new();
        for targets in config.lora_targets().chunks(LINEARS) {
            let mut projections = targets.iter().map(|target| Projection {
                path: target.path.clone(),
                linear: linear(weight(target.outputs, target.inputs)).expect("a layer"),
                bias: BIASED.iter().any(|name| target.path.ends_with(name)).then(|| vector(target.outputs, 80)),
            });
            layers.push(Layer {
                projections: std::array::from_fn(|_| projections.next().expect("seven")),
                input_layernorm: norm(90),
                feed_forward_norm: norm(91),
                head_norms: more.then(|| [93, 94].map(|seed| wide(config.heads.width, seed))),
                attention_output_norm: more.then(|| norm(95)),
                feed_forward_output_norm: more.then(|| norm(96)),
            });
        }
        let tables = (
            Table::Exact(weight(config.vocabulary, config.hidden)),
            Linear::new(weight(config.vocabulary, config.hidden)).expect("a head"),
        );
        Training::new(config, tables, layers, norm(92), Ropes::new(config, config.context)).expect("a network")
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
    fn run(network: &Training, config: &DecoderConfig, forward: Forward) -> (Vec<f32>, Vec<Vec<f32>>) {
        let batch = batch();
        let (adapter, variables) = adapter(config);
        let hidden = forward(network, config, &batch, &adapter).expect("a forward pass");
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
        for config in [config(), sliding()] {
            let exact = network(&config, Linear::new);
            let (expected, expected_gradients) = run(&exact, &config, Training::hidden_by_operations);
            // In f32 but for the order of sums; in bfloat16 every product rounds its sides to 8 bits of mantissa, which shows most in the
            // gradients of queries, small differences of larger numbers (measured: 0.038).
            let rounded = network(&config, Linear::rounded);
            let cases: [(&Training, Forward, f64); 3] =
                [(&exact, Training::hidden, 1e-5), (&rounded, Training::hidden, 0.06), (&rounded, Training::hidden_by_operations, 0.06)];
            for (network, forward, tolerance) in cases {
                let (hidden, gradients) = run(network, &config, forward);
                assert!(distance(&hidden, &expected) < tolerance, "hidden states are off by {}", distance(&hidden, &expected));
                for (i, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
                    assert!(distance(gradient, expected) < tolerance, "gradient {i} is off by {}", distance(gradient, expected));
                }
            }
        }
    }

    #[test]
    fn steps_do_not_depend_on_threads_or_on_the_step_before() {
        for config in [config(), sliding()] {
            for linear in [Linear::new, Linear::rounded] {
                let network = network(&config, linear);
                let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let first = pool(1).install(|| run(&network, &config, Training::hidden));
                assert!(pool(3).install(|| run(&network, &config, Training::hidden)) == first, "another number of threads, another result");
            }
        }
    }
}
