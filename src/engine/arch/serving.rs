//! The forward pass that serves: pre-norm blocks of rotary grouped attention and a gated feed-forward part, over packed weights and plain
//! slices, for rows of (token, position, slot). What a block has beyond that, norms and biases, is there or is not: one pass for all
//! architectures.

use super::config::{DecoderConfig, Rotary};
use super::{Batch, Segment};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::kernel::append::NewRows;
use crate::engine::kernel::attend::{Attended, Queries, attend};
use crate::engine::kernel::low_rank::LowRank;
use crate::engine::kernel::panel::Panels;
use crate::engine::kernel::product::{Input, Write, product, product_adapted, shape};
use crate::engine::kernel::rows::{HeadNorms, add_rms_norm, gate, norm_heads, rms_norm};
use crate::engine::kernel::tiles::Weight;
use crate::engine::kernel::updates::{self, Updates};
use crate::engine::kv_cache::KvCache;
use crate::engine::nn::dora::row_norms;
use crate::engine::nn::linear::Lora;
use crate::engine::nn::slices::tensor;
use crate::engine::packed_adapter::{GROUPS, PackedAdapter};
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
    adapters: &'a [(Range<usize>, Arc<PackedAdapter>)],
    /// Their updates.
    adapted: &'a [(Range<usize>, &'a LowRank)],
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
        let adapted: Vec<_> = packed.iter().map(|(rows, adapter)| (rows.clone(), &adapter.updates)).collect();
        let angles = angles(&config.rotary, config, batch);
        let step = Step { config, batch, angles, sliding_angles, adapters: &packed, adapted: &adapted };
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
    /// Group of linear layers.
    group: usize,
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
        let weights = [self.weight];
        let (input, updates) = (input(from, &weights, bytes), self.step.updates(self.group, &rows));
        let Some(norm) = self.norm else {
            // In the same order, too: x, the frozen part, the update.
            if !self.step.is_scaled(self.group) {
                return product_adapted(x, input, (&weights, Write::Add), updates, low_rank);
            }
            let output = sized(output, x.len());
            product(output, input, &weights, Write::Set);
            self.step.scale(output, self.weight.outputs(), self.group, rows);
            x.iter_mut().zip(output).for_each(|(x, y)| *x += *y);
            return updates::add(x, shape(&weights), from, updates, low_rank);
        };
        // Apart from x, which is not normed.
        let output = sized(output, x.len());
        self.step.linear(output, (&weights, None), (input, rows), self.group, low_rank);
        add_rms_norm(x, output, norm, self.step.config.norm_epsilon);
    }
}

impl Block {
    fn attention(&self, x: &mut [f32], layer: usize, step: &Step<'_>, cache: &mut KvCache, scratch: &mut Scratch) {
        let (config, rows, group) = (step.config, step.batch.tokens.len(), layer * GROUPS.len());
        let heads = config.heads;
        let normed = sized(&mut scratch.normed, x.len());
        rms_norm(normed, x, &self.input_layernorm, config.norm_epsilon);
        let stride = heads.query_width() + 2 * heads.key_width();
        let qkv = sized(&mut scratch.qkv, rows * stride);
        let weights = self.qkv.each_ref();
        let input = input(normed, &weights, &mut scratch.bytes);
        step.linear(qkv, (&weights, self.qkv_bias.as_deref()), (input, 0..rows), group, &mut scratch.low_rank);
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
        let output = Output { weight: &self.o_proj, norm: self.attention_output_norm.as_deref(), step, group: group + 1 };
        output.add_to(x, attended, 0..rows, &mut scratch.output, (&mut scratch.bytes, &mut scratch.low_rank));
    }

    fn feed_forward(&self, x: &mut [f32], layer: usize, step: &Step<'_>, scratch: &mut Scratch) {
        let (config, inner, group) = (step.config, step.config.inner, layer * GROUPS.len() + 2);
        for (i, x) in x.chunks_mut(FEED_ROWS * config.hidden).enumerate() {
            let count = x.len() / config.hidden;
            let rows = i * FEED_ROWS..i * FEED_ROWS + count;
            let normed = sized(&mut scratch.normed, x.len());
            rms_norm(normed, x, &self.feed_forward_norm, config.norm_epsilon);
            let gate_up = sized(&mut scratch.gate_up, count * 2 * inner);
            let weights = self.gate_up.each_ref();
            let input = input(normed, &weights, &mut scratch.bytes);
            step.linear(gate_up, (&weights, None), (input, rows.clone()), group, &mut scratch.low_rank);
            let gated = sized(&mut scratch.gated, count * inner);
            gate(gated, gate_up, inner, config.gate);
            let output = Output { weight: &self.down_proj, norm: self.feed_forward_output_norm.as_deref(), step, group: group + 1 };
            output.add_to(x, gated, rows, &mut scratch.output, (&mut scratch.bytes, &mut scratch.low_rank));
        }
    }
}

impl Step<'_> {
    /// A group of linear layers of some rows, with their bias and adapters' updates: y (rows, outputs side by side). A row is summed in one
    /// order, whichever adapters the other rows of the step have: the frozen part and the bias, then the update.
    fn linear(
        &self,
        y: &mut [f32],
        (weights, bias): (&[&Weight], Option<&[f32]>),
        (x, rows): (Input<'_>, Range<usize>),
        group: usize,
        low_rank: &mut Vec<f32>,
    ) {
        let (updates, width) = (self.updates(group, &rows), weights.iter().map(|weight| weight.outputs()).sum());
        if !self.is_scaled(group) {
            bias.into_iter().for_each(|bias| y.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(bias)));
            let write = if bias.is_some() { Write::Add } else { Write::Set };
            return product_adapted(y, x, (weights, write), updates, low_rank);
        }
        product(y, x, weights, Write::Set);
        self.scale(y, width, group, rows);
        // A bias is not scaled.
        let add = |row: &mut [f32], bias: &[f32]| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        bias.into_iter().for_each(|bias| y.chunks_exact_mut(width).for_each(|row| add(row, bias)));
        updates::add(y, shape(weights), x.floats, updates, low_rank);
    }

    /// Multiplies what the frozen weights of a group of layers gave, y (rows, width), with the factors of DoRA adapters on those rows.
    fn scale(&self, y: &mut [f32], width: usize, group: usize, rows: Range<usize>) {
        for (range, adapter) in self.adapters {
            let Some(gains) = adapter.gains(group) else { continue };
            for row in range.start.max(rows.start)..range.end.min(rows.end) {
                let y = &mut y[(row - rows.start) * width..][..width];
                y.iter_mut().zip(gains).for_each(|(y, gain)| *y *= gain);
            }
        }
    }

    /// Whether any row goes through a DoRA adapter of that group of layers.
    fn is_scaled(&self, group: usize) -> bool {
        self.adapters.iter().any(|(_, adapter)| adapter.gains(group).is_some())
    }

    /// The updates of one group of layers on the rows that are computed.
    fn updates(&self, group: usize, rows: &Range<usize>) -> Updates<'_> {
        Updates { adapted: self.adapted, group, first: rows.start }
    }
}
