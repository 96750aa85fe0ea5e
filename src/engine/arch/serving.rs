//! The forward pass that serves: pre-norm blocks of rotary grouped attention and a gated feed-forward part, over packed weights and plain
//! slices, for rows of (token, position, slot). What a block has beyond that, norms and biases, is there or is not: one pass for all
//! architectures.

use super::config::{DecoderConfig, Rotary};
use super::{Batch, Segment};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::kernel::append::NewRows;
use crate::engine::kernel::attend::{Attended, Queries, attend};
use crate::engine::kernel::low_rank::{self, Adapted};
use crate::engine::kernel::panel::Panels;
use crate::engine::kernel::product::{Input, Write, product, product_before};
use crate::engine::kernel::rows::{HeadNorms, add_rms_norm, gate, norm_heads, rms_norm};
use crate::engine::kernel::tiles::Weight;
use crate::engine::kv_cache::KvCache;
use crate::engine::nn::dora::row_norms;
use crate::engine::nn::linear::Lora;
use crate::engine::nn::slices::tensor;
use crate::engine::packed_adapter::PackedAdapter;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that go through the feed-forward part together, whose inner rows are the widest of all.
const FEED_ROWS: usize = 256;

/// The network.
pub struct Serving {
    embed_tokens: Arc<Weight>,
    /// The same as the embeddings where they are tied.
    lm_head: Arc<Weight>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    /// Buffers of a step, kept for the next one.
    scratch: Mutex<Scratch>,
}

/// One transformer block.
pub struct Block {
    pub(super) input_layernorm: Vec<f32>,
    /// q, k and v.
    pub(super) qkv: [Weight; 3],
    /// Their biases, side by side.
    pub(super) qkv_bias: Option<Vec<f32>>,
    /// Norms of the heads of q and k.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) o_proj: Weight,
    /// On what attention adds.
    pub(super) attention_output_norm: Option<Vec<f32>>,
    /// `post_attention_layernorm` of checkpoints whose outputs have no norms.
    pub(super) feed_forward_norm: Vec<f32>,
    /// gate and up.
    pub(super) gate_up: [Weight; 2],
    pub(super) down_proj: Weight,
    /// On what the feed-forward part adds.
    pub(super) feed_forward_output_norm: Option<Vec<f32>>,
}

/// Buffers of a step.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    /// What a part adds, before its norm.
    output: Vec<f32>,
    bytes: Panels,
    low_rank: Vec<f32>,
}

/// A step: its rows, how they are rotated, and whose adapter they go through.
struct Step<'a> {
    config: &'a DecoderConfig,
    batch: &'a Batch,
    /// Cosines, then sines, of each row.
    angles: Vec<f32>,
    /// The same in layers that slide.
    sliding_angles: Vec<f32>,
    adapters: Vec<(Range<usize>, Arc<PackedAdapter>)>,
}

impl Serving {
    /// A network of packed parts.
    pub(super) fn new(embed_tokens: Arc<Weight>, lm_head: Arc<Weight>, blocks: Vec<Block>, norm: Vec<f32>) -> Self {
        Serving { embed_tokens, lm_head, blocks, norm, scratch: Mutex::default() }
    }

    /// Hidden states after the last norm, (N, hidden).
    ///
    /// # Errors
    /// When an adapter cannot be packed.
    pub(super) fn hidden(
        &self,
        config: &DecoderConfig,
        batch: &Batch,
        cache: &mut KvCache,
        adapters: &[(Range<usize>, Arc<Adapter>)],
    ) -> Result<Vec<f32>, EngineError> {
        let mut x = vec![0f32; batch.tokens.len() * config.hidden];
        for (token, row) in batch.tokens.iter().zip(x.chunks_exact_mut(config.hidden)) {
            self.embed_tokens.row(*token as usize, row);
        }
        if config.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= config.embedding_scale);
        }
        let mut packed = Vec::new();
        for (rows, adapter) in adapters {
            packed.push((rows.clone(), adapter.packed(|| config.lora_targets())?));
        }
        let sliding_angles = config.sliding.as_ref().map_or_else(Vec::new, |sliding| angles(&sliding.rotary, config, batch));
        let step = Step { config, batch, angles: angles(&config.rotary, config, batch), sliding_angles, adapters: packed };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        for (layer, block) in self.blocks.iter().enumerate() {
            block.attention(&mut x, layer, &step, cache, &mut scratch);
            block.feed_forward(&mut x, layer, &step, &mut scratch);
        }
        let mut normed = vec![0f32; x.len()];
        rms_norm(&mut normed, &x, &self.norm, config.norm_epsilon);
        Ok(normed)
    }

    /// Length of each row of an adaptable layer's weight with a pair added, (out); `index` counts the layers of all blocks in forward order.
    ///
    /// # Errors
    /// When the pair does not fit.
    pub(super) fn row_norms(&self, index: usize, lora: &Lora) -> Result<Vec<f32>, EngineError> {
        let block = &self.blocks[index / 7];
        let [q, k, v] = &block.qkv;
        let [gate, up] = &block.gate_up;
        let weight = [q, k, v, &block.o_proj, gate, up, &block.down_proj][index % 7];
        let mut values = vec![0f32; weight.outputs() * weight.inputs()];
        values.chunks_exact_mut(weight.inputs()).enumerate().for_each(|(row, out)| weight.row(row, out));
        Ok(row_norms(&tensor(values, (weight.outputs(), weight.inputs()))?, lora)?)
    }

    /// Logits (N, vocabulary) of hidden states (N, hidden).
    pub(super) fn logits(&self, config: &DecoderConfig, hidden: &[f32]) -> Vec<f32> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut logits = vec![0f32; hidden.len() / self.lm_head.inputs() * self.lm_head.outputs()];
        product(&mut logits, input(hidden, &[&self.lm_head], &mut scratch.bytes), &[&self.lm_head], Write::Set);
        if let Some(cap) = config.logit_cap {
            logits.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        logits
    }
}

/// Rows of floats, rounded as well where a weight asks for it.
fn input<'a>(x: &'a [f32], weights: &[&Weight], bytes: &'a mut Panels) -> Input<'a> {
    if weights.iter().any(|weight| weight.takes_bytes()) {
        bytes.fill(x, weights[0].inputs());
    }
    Input { floats: x, bytes }
}

/// The first `length` elements of a buffer that grows and keeps its memory.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

fn angles(rotary: &Rotary, config: &DecoderConfig, batch: &Batch) -> Vec<f32> {
    let periods = rotary.periods(config.heads.width);
    let mut angles = Vec::with_capacity(batch.tokens.len() * config.heads.width);
    for segment in &batch.segments {
        for position in segment.past..segment.past + segment.rows.len() {
            angles.extend(periods.iter().map(|period| (position as f32 / period).cos()));
            angles.extend(periods.iter().map(|period| (position as f32 / period).sin()));
        }
    }
    angles
}

/// What a part of a block adds to the residual stream: its last linear layer, with adapters' updates, and a norm where there is one.
struct Output<'a> {
    weight: &'a Weight,
    norm: Option<&'a [f32]>,
    step: &'a Step<'a>,
    /// Layer, and group of linear layers.
    part: (usize, usize),
}

impl Output<'_> {
    /// Adds it to `x`, the given rows of the step; `from` is the input of the linear layer.
    fn add_to(
        &self,
        x: &mut [f32],
        from: &[f32],
        rows: Range<usize>,
        output: &mut Vec<f32>,
        (bytes, low_rank): (&mut Panels, &mut Vec<f32>),
    ) {
        let (weights, width) = ([self.weight], self.weight.outputs());
        let updates = self.step.updates(self.part.0, self.part.1, rows.clone());
        let (from_bytes, next) = (input(from, &weights, bytes), low_rank::addresses(&updates));
        // A row is summed in one order, whichever adapters the other rows of the step have: x, the frozen part, the update.
        if self.norm.is_none() && !self.step.is_scaled(self.part) {
            product_before(x, from_bytes, &weights, Write::Add, &next);
            low_rank::add(x, width, from, &updates, low_rank);
            return;
        }
        // Apart from x, which is neither normed nor scaled.
        let output = sized(output, x.len());
        product_before(output, from_bytes, &weights, Write::Set, &next);
        self.step.scale(output, width, self.part, rows);
        match self.norm {
            Some(norm) => {
                low_rank::add(output, width, from, &updates, low_rank);
                add_rms_norm(x, output, norm, self.step.config.norm_epsilon);
            }
            None => {
                x.iter_mut().zip(output).for_each(|(x, y)| *x += *y);
                low_rank::add(x, width, from, &updates, low_rank);
            }
        }
    }
}

impl Block {
    fn attention(&self, x: &mut [f32], layer: usize, step: &Step<'_>, cache: &mut KvCache, scratch: &mut Scratch) {
        let (config, rows) = (step.config, step.batch.tokens.len());
        let heads = config.heads;
        let normed = sized(&mut scratch.normed, x.len());
        rms_norm(normed, x, &self.input_layernorm, config.norm_epsilon);
        let stride = heads.query_width() + 2 * heads.key_width();
        let qkv = sized(&mut scratch.qkv, rows * stride);
        let weights = self.qkv.each_ref();
        let write = match &self.qkv_bias {
            Some(bias) if !step.is_scaled((layer, 0)) => {
                qkv.chunks_exact_mut(stride).for_each(|row| row.copy_from_slice(bias));
                Write::Add
            }
            _ => Write::Set,
        };
        let updates = step.updates(layer, 0, 0..rows);
        product_before(qkv, input(normed, &weights, &mut scratch.bytes), &weights, write, &low_rank::addresses(&updates));
        if step.is_scaled((layer, 0)) {
            step.scale(qkv, stride, (layer, 0), 0..rows);
            // A bias is not scaled.
            if let Some(bias) = &self.qkv_bias {
                qkv.chunks_exact_mut(stride).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias));
            }
        }
        low_rank::add(qkv, stride, normed, &updates, &mut scratch.low_rank);
        if let Some([queries, keys]) = &self.head_norms {
            let parts = [(heads.queries, queries.as_slice()), (heads.keys, keys.as_slice())];
            norm_heads(qkv, HeadNorms { stride, parts, epsilon: config.norm_epsilon });
        }
        let window = config.window(layer);
        let angles = if window == usize::MAX { &step.angles } else { &step.sliding_angles };

        for segment in &step.batch.segments {
            let rows = &qkv[segment.rows.start * stride..segment.rows.end * stride];
            let angles = &angles[segment.rows.start * heads.width..segment.rows.end * heads.width];
            cache.append(segment.slot, layer, NewRows { rows, stride, angles, past: segment.past });
        }
        let attended = sized(&mut scratch.attended, rows * heads.query_width());
        let queries = Queries { rows: qkv, stride, angles, scale: config.attention_scale };
        let sequence = |segment: &Segment| {
            let (keys, values) = cache.layer(segment.slot, layer);
            Attended { first: segment.rows.start, rows: segment.rows.len(), past: segment.past, window, keys, values }
        };
        attend(attended, queries, heads, &step.batch.segments.iter().map(sequence).collect::<Vec<_>>());
        let output = Output { weight: &self.o_proj, norm: self.attention_output_norm.as_deref(), step, part: (layer, 1) };
        output.add_to(x, attended, 0..rows, &mut scratch.output, (&mut scratch.bytes, &mut scratch.low_rank));
    }

    fn feed_forward(&self, x: &mut [f32], layer: usize, step: &Step<'_>, scratch: &mut Scratch) {
        let (config, inner) = (step.config, step.config.inner);
        for (i, x) in x.chunks_mut(FEED_ROWS * config.hidden).enumerate() {
            let count = x.len() / config.hidden;
            let rows = i * FEED_ROWS..i * FEED_ROWS + count;
            let normed = sized(&mut scratch.normed, x.len());
            rms_norm(normed, x, &self.feed_forward_norm, config.norm_epsilon);
            let gate_up = sized(&mut scratch.gate_up, count * 2 * inner);
            let weights = self.gate_up.each_ref();
            let updates = step.updates(layer, 2, rows.clone());
            product_before(gate_up, input(normed, &weights, &mut scratch.bytes), &weights, Write::Set, &low_rank::addresses(&updates));
            step.scale(gate_up, 2 * inner, (layer, 2), rows.clone());
            low_rank::add(gate_up, 2 * inner, normed, &updates, &mut scratch.low_rank);
            let gated = sized(&mut scratch.gated, count * inner);
            gate(gated, gate_up, inner, config.gate);
            let output = Output { weight: &self.down_proj, norm: self.feed_forward_output_norm.as_deref(), step, part: (layer, 3) };
            output.add_to(x, gated, rows, &mut scratch.output, (&mut scratch.bytes, &mut scratch.low_rank));
        }
    }
}

impl Step<'_> {
    /// Multiplies what the frozen weights of a group of layers gave, y (rows, width), with the factors of DoRA adapters on those rows.
    fn scale(&self, y: &mut [f32], width: usize, (layer, group): (usize, usize), rows: Range<usize>) {
        for (range, adapter) in &self.adapters {
            let Some(gains) = adapter.gains(layer, group) else { continue };
            for row in range.start.max(rows.start)..range.end.min(rows.end) {
                let y = &mut y[(row - rows.start) * width..][..width];
                y.iter_mut().zip(gains).for_each(|(y, gain)| *y *= gain);
            }
        }
    }

    /// Whether any row goes through a DoRA adapter of that group of layers.
    fn is_scaled(&self, (layer, group): (usize, usize)) -> bool {
        self.adapters.iter().any(|(_, adapter)| adapter.gains(layer, group).is_some())
    }

    /// The updates of one group of layers that fall on `rows`, counted from its start.
    fn updates(&self, layer: usize, group: usize, rows: Range<usize>) -> Vec<Adapted<'_>> {
        let part = |(range, adapter): &'_ (Range<usize>, Arc<PackedAdapter>)| -> Option<Range<usize>> {
            adapter.update(layer, group)?;
            let own = range.start.max(rows.start)..range.end.min(rows.end);
            (!own.is_empty()).then(|| own.start - rows.start..own.end - rows.start)
        };
        self.adapters.iter().filter_map(|item| Some((part(item)?, item.1.update(layer, group)?))).collect()
    }
}
