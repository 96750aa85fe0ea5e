//! The forward pass that serves: pre-norm blocks of rotary grouped attention and a gated feed-forward part, over packed weights and plain
//! slices, for rows of (token, position, slot). An architecture's file says which tensors it is made of.

use super::{Batch, DecoderConfig, Segment};
use crate::engine::EngineError;
use crate::engine::adapter::Adapter;
use crate::engine::kernel::append::NewRows;
use crate::engine::kernel::attend::{Attended, Queries, attend};
use crate::engine::kernel::low_rank::{self, Adapted};
use crate::engine::kernel::panel::Panels;
use crate::engine::kernel::product::{Input, Write, product};
use crate::engine::kernel::rows::{rms_norm, swiglu};
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
    pub(super) o_proj: Weight,
    pub(super) post_attention_layernorm: Vec<f32>,
    /// gate and up.
    pub(super) gate_up: [Weight; 2],
    pub(super) down_proj: Weight,
}

/// Buffers of a step.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    bytes: Panels,
    low_rank: Vec<f32>,
}

/// A step: its rows, how they are rotated, and whose adapter they go through.
struct Step<'a> {
    config: &'a DecoderConfig,
    batch: &'a Batch,
    /// Cosines, then sines, of each row.
    angles: Vec<f32>,
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
        let mut packed = Vec::new();
        for (rows, adapter) in adapters {
            packed.push((rows.clone(), adapter.packed(|| config.lora_targets())?));
        }
        let step = Step { config, batch, angles: angles(config, batch), adapters: packed };
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
    pub(super) fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut logits = vec![0f32; hidden.len() / self.lm_head.inputs() * self.lm_head.outputs()];
        product(&mut logits, input(hidden, &[&self.lm_head], &mut scratch.bytes), &[&self.lm_head], Write::Set);
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

fn angles(config: &DecoderConfig, batch: &Batch) -> Vec<f32> {
    let half = config.heads.width / 2;
    let frequency = |j: usize| config.rope_base.powf(2.0 * j as f32 / config.heads.width as f32);
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut angles = Vec::with_capacity(batch.tokens.len() * 2 * half);
    for segment in &batch.segments {
        for position in segment.past..segment.past + segment.rows.len() {
            angles.extend(frequencies.iter().map(|f| (position as f32 / f).cos()));
            angles.extend(frequencies.iter().map(|f| (position as f32 / f).sin()));
        }
    }
    angles
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
        product(qkv, input(normed, &weights, &mut scratch.bytes), &weights, Write::Set);
        step.scale(qkv, stride, (layer, 0), 0..rows);
        low_rank::add(qkv, stride, normed, &step.updates(layer, 0, 0..rows), &mut scratch.low_rank);

        for segment in &step.batch.segments {
            let rows = &qkv[segment.rows.start * stride..segment.rows.end * stride];
            let angles = &step.angles[segment.rows.start * heads.width..segment.rows.end * heads.width];
            cache.append(segment.slot, layer, NewRows { rows, stride, angles, past: segment.past });
        }
        let attended = sized(&mut scratch.attended, rows * heads.query_width());
        let queries = Queries { rows: qkv, stride, angles: &step.angles, scale: heads.scale() };
        let sequence = |segment: &Segment| {
            let (keys, values) = cache.layer(segment.slot, layer);
            Attended { first: segment.rows.start, rows: segment.rows.len(), past: segment.past, keys, values }
        };
        attend(attended, queries, heads, &step.batch.segments.iter().map(sequence).collect::<Vec<_>>());
        step.add_product(x, input(attended, &[&self.o_proj], &mut scratch.bytes), &self.o_proj, (layer, 1), 0..rows);
        low_rank::add(x, config.hidden, attended, &step.updates(layer, 1, 0..rows), &mut scratch.low_rank);
    }

    fn feed_forward(&self, x: &mut [f32], layer: usize, step: &Step<'_>, scratch: &mut Scratch) {
        let (config, inner) = (step.config, step.config.inner);
        for (i, x) in x.chunks_mut(FEED_ROWS * config.hidden).enumerate() {
            let count = x.len() / config.hidden;
            let rows = i * FEED_ROWS..i * FEED_ROWS + count;
            let normed = sized(&mut scratch.normed, x.len());
            rms_norm(normed, x, &self.post_attention_layernorm, config.norm_epsilon);
            let gate_up = sized(&mut scratch.gate_up, count * 2 * inner);
            let weights = self.gate_up.each_ref();
            product(gate_up, input(normed, &weights, &mut scratch.bytes), &weights, Write::Set);
            step.scale(gate_up, 2 * inner, (layer, 2), rows.clone());
            low_rank::add(gate_up, 2 * inner, normed, &step.updates(layer, 2, rows.clone()), &mut scratch.low_rank);
            let gated = sized(&mut scratch.gated, count * inner);
            swiglu(gated, gate_up, inner);
            step.add_product(x, input(gated, &[&self.down_proj], &mut scratch.bytes), &self.down_proj, (layer, 3), rows.clone());
            low_rank::add(x, config.hidden, gated, &step.updates(layer, 3, rows), &mut scratch.low_rank);
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

    /// Adds a layer's output to x (rows, hidden); what a DoRA adapter scales is computed apart from x first.
    fn add_product(&self, x: &mut [f32], input: Input<'_>, weight: &Weight, (layer, group): (usize, usize), rows: Range<usize>) {
        if self.adapters.iter().all(|(_, adapter)| adapter.gains(layer, group).is_none()) {
            return product(x, input, &[weight], Write::Add);
        }
        let mut y = vec![0f32; x.len()];
        product(&mut y, input, &[weight], Write::Set);
        self.scale(&mut y, weight.outputs(), (layer, group), rows);
        x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
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
