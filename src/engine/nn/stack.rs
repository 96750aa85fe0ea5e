//! All transformer blocks of a network in training, as one operation with a hand-written backward pass: blocks of rows go through a
//! [block](super::block) on one thread each, heads through the [attention](super::heads) likewise, and the buffers of a step serve the
//! next one. Gradients reach the low-rank pairs only, and no block below the lowest pair.
//!
//! Sums over rows are taken block by block of rows in their order, so that the result does not depend on the number of threads.

use super::attention::Heads;
use super::block::{Block, Grads, Kept, LINEARS, Lowest, Pairs, Places};
use super::heads::{Attention, Part, Rows};
use super::linear::Lora;
use super::pair::Pair;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows that one thread takes through a block: rounded weights lie packed, so few rows are enough; in f32 each product packs them.
const ROWS: usize = 64;
const EXACT_ROWS: usize = 256;

/// Transformer blocks and the buffers of their steps.
pub struct Stack {
    blocks: Arc<Vec<Block>>,
    heads: Heads,
    idle: Arc<Mutex<Vec<Work>>>,
}

/// The pairs of each block, in forward order.
pub type Adapted<'a> = Vec<[Option<&'a Lora>; LINEARS]>;

impl Stack {
    /// From the frozen parts, which have these heads.
    pub fn new(blocks: Vec<Block>, heads: Heads) -> Self {
        Stack { blocks: Arc::new(blocks), heads, idle: Arc::default() }
    }

    /// The residual stream behind the last block, (N, hidden), from that in front of the first one, which gets no gradient; `sequences`
    /// are the rows one behind the other.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, adapted: &Adapted<'_>, sequences: Arc<Vec<Range<usize>>>) -> Result<Tensor> {
        let isa = self.blocks.first().and_then(Block::isa);
        let size = if isa.is_some() { ROWS } else { EXACT_ROWS };
        let Some(rows) = Rows::new(size, x.dim(0)?, sequences) else {
            candle_core::bail!("the sequences of a batch are not its rows");
        };
        let attention = Attention { isa, heads: self.heads, rows };
        let (layout, values) = Plan::new(&self.blocks, adapted)?;
        let work = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let run = Run { blocks: self.blocks.clone(), attention, plan: layout, work: Mutex::new(work), idle: self.idle.clone() };
        x.contiguous()?.apply_op2(&values, run)
    }
}

/// Where the values of the pairs lie in one vector, and their gradients in another.
struct Plan {
    /// For each block: rank, scale and the beginning of A, with B behind it.
    pairs: Vec<[Option<(usize, f32, usize)>; LINEARS]>,
    /// For each block: beginning of its values.
    starts: Vec<usize>,
    places: Vec<Places>,
    /// Values in all.
    length: usize,
}

impl Plan {
    fn new(blocks: &[Block], adapted: &Adapted<'_>) -> Result<(Self, Tensor)> {
        let mut plan = Plan { pairs: Vec::new(), starts: Vec::new(), places: Vec::new(), length: 0 };
        let mut values = Vec::new();
        for (block, loras) in blocks.iter().zip(adapted) {
            plan.starts.push(plan.length);
            let (mut pairs, mut places): ([_; LINEARS], Places) = Default::default();
            let start = plan.length;
            for (i, lora) in loras.iter().enumerate() {
                let Some(lora) = lora else { continue };
                let (rank, (inputs, outputs)) = (lora.a.dim(0)?, block.linears[i].widths());
                if lora.a.dims() != [rank, inputs] || lora.b.dims() != [outputs, rank] {
                    candle_core::bail!("a pair {:?}, {:?} on a layer ({outputs}, {inputs})", lora.a.dims(), lora.b.dims());
                }
                pairs[i] = Some((rank, lora.scale, plan.length));
                let length = rank * (inputs + outputs);
                places[i] = Some(plan.length - start..plan.length - start + length);
                plan.length += length;
                values.extend([lora.a.flatten_all()?, lora.b.flatten_all()?]);
            }
            plan.pairs.push(pairs);
            plan.places.push(places);
        }
        let values = if values.is_empty() { tensor(vec![0.0], 1)? } else { Tensor::cat(&values, 0)? };
        Ok((plan, values))
    }

    /// The lowest block with a pair.
    fn lowest(&self) -> Option<usize> {
        self.pairs.iter().position(|pairs| pairs.iter().any(Option::is_some))
    }

    /// Values of a block.
    fn range(&self, block: usize) -> Range<usize> {
        self.starts[block]..self.starts.get(block + 1).copied().unwrap_or(self.length)
    }

    fn pairs(&self, index: usize, block: &Block, values: &[f32]) -> Pairs {
        let mut pairs = Pairs::default();
        for (i, place) in self.pairs[index].iter().enumerate() {
            if let Some((rank, scale, start)) = *place {
                let (inputs, outputs) = block.linears[i].widths();
                let (a, rest) = values[start..].split_at(rank * inputs);
                pairs[i] = Some(Pair::new(a, &rest[..outputs * rank], (rank, scale), &block.linears[i]));
            }
        }
        pairs
    }
}

/// Buffers of a step.
#[derive(Default)]
struct Work {
    pairs: Vec<Pairs>,
    /// The residual stream in front of each block and behind the last one, by block of rows.
    streams: Vec<Vec<Vec<f32>>>,
    /// By transformer block and block of rows.
    kept: Vec<Vec<Kept>>,
    /// By transformer block and task of the attention.
    log_sums: Vec<Vec<Vec<f32>>>,
    parts: Vec<Part>,
    grads: Vec<Grads>,
}

/// One forward pass and its backward pass.
struct Run {
    blocks: Arc<Vec<Block>>,
    attention: Attention,
    plan: Plan,
    work: Mutex<Work>,
    idle: Arc<Mutex<Vec<Work>>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        let work = std::mem::take(&mut *self.work.lock().unwrap_or_else(PoisonError::into_inner));
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }
}

impl Run {
    fn prepare(&self, work: &mut Work, x: &[f32], values: &[f32]) {
        let (layers, rows) = (self.blocks.len(), &self.attention.rows);
        let width = x.len() / rows.count.max(1);
        work.streams.resize_with(layers + 1, Vec::new);
        work.streams.iter_mut().for_each(|stream| stream.resize_with(rows.blocks(), Vec::new));
        work.kept.resize_with(layers, Vec::new);
        work.kept.iter_mut().for_each(|kept| kept.resize_with(rows.blocks(), Kept::default));
        work.log_sums.resize_with(layers, Vec::new);
        work.log_sums.iter_mut().for_each(|sums| sums.resize_with(self.attention.tasks(), Vec::new));
        work.parts.resize_with(self.attention.tasks(), Part::default);
        work.grads.resize_with(rows.blocks(), Grads::default);
        for (i, stream) in work.streams[0].iter_mut().enumerate() {
            let rows = rows.of(i);
            x[rows.start * width..rows.end * width].clone_into(stream);
        }
        let pairs = self.blocks.par_iter().enumerate().map(|(i, block)| self.plan.pairs(i, block, values));
        pairs.collect_into_vec(&mut work.pairs);
    }

    fn forward(&self, work: &mut Work) -> Result<()> {
        for (layer, block) in self.blocks.iter().enumerate() {
            let (before, behind) = work.streams.split_at_mut(layer + 1);
            let (x, pairs, kept) = (&before[layer], &work.pairs[layer], &mut work.kept[layer]);
            each(kept.par_iter_mut().zip(x)).try_for_each(|(kept, x)| block.project(x, kept, pairs))?;
            let tasks = work.parts.par_iter_mut().zip(&mut work.log_sums[layer]).enumerate();
            each(tasks).for_each(|(task, (part, sums))| self.attention.forward((task, &block.sight), kept, part, sums));
            let rows = kept.par_iter_mut().zip(x).zip(&mut behind[0]).enumerate();
            each(rows).try_for_each(|(i, ((kept, x), out))| {
                self.attention.collect(i, &work.parts, &mut kept.attended);
                block.finish(x, kept, pairs, out)
            })?;
        }
        Ok(())
    }

    /// Gradients of all pairs, in the order of the plan.
    fn backward(&self, work: &mut Work, grad: &[f32]) -> Result<Vec<f32>> {
        let rows = &self.attention.rows;
        let width = grad.len() / rows.count.max(1);
        let mut all = vec![0f32; self.plan.length];
        for (i, grads) in work.grads.iter_mut().enumerate() {
            let rows = rows.of(i);
            grad[rows.start * width..rows.end * width].clone_into(&mut grads.stream);
        }
        let Some(lowest) = self.plan.lowest() else { return Ok(all) };
        for layer in (lowest..self.blocks.len()).rev() {
            let (block, kept) = (&self.blocks[layer], &work.kept[layer]);
            let pairs = (&work.pairs[layer], &self.plan.places[layer]);
            let range = self.plan.range(layer);
            block.hold();
            each(work.grads.par_iter_mut().zip(kept)).try_for_each(|(grads, kept)| {
                grads.pairs.clear();
                grads.pairs.resize(range.len(), 0.0);
                block.finish_backward(kept, grads, pairs)
            })?;
            let (grads, tasks) = (&work.grads, work.parts.par_iter_mut().zip(&work.log_sums[layer]).enumerate());
            each(tasks).for_each(|(task, (part, sums))| self.attention.backward((task, &block.sight), (kept, grads), part, sums));
            let last = if layer == lowest { Lowest::Yes } else { Lowest::No };
            let rows = work.grads.par_iter_mut().zip(kept).zip(&work.streams[layer]).enumerate();
            each(rows).try_for_each(|(i, ((grads, kept), x))| {
                self.attention.collect_grads(i, &work.parts, &mut grads.qkv);
                block.project_backward((x, kept), grads, pairs, last)
            })?;
            block.release();
            self.sum(layer, &work.grads, &mut all[range]);
        }
        Ok(all)
    }

    /// Adds up the gradients of a block's pairs over the blocks of rows, and turns those of B the right way round.
    fn sum(&self, layer: usize, grads: &[Grads], out: &mut [f32]) {
        const CHUNK: usize = 8192;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
            for grads in grads {
                out.iter_mut().zip(&grads.pairs[i * CHUNK..]).for_each(|(out, x)| *out += x);
            }
        });
        for (i, (place, pair)) in self.plan.places[layer].iter().zip(&self.plan.pairs[layer]).enumerate() {
            if let (Some(place), Some((rank, ..))) = (place, pair) {
                let (inputs, outputs) = self.blocks[layer].linears[i].widths();
                let b = &mut out[place.start + rank * inputs..place.end];
                b.copy_from_slice(&super::linear::transposed(b, outputs));
            }
        }
    }
}

/// Every item is a task of its own.
fn each<I: IndexedParallelIterator>(items: I) -> rayon::iter::MaxLen<I> {
    items.with_max_len(1)
}

impl CustomOp2 for Run {
    fn name(&self) -> &'static str {
        "transformer-blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, pairs: &CpuStorage, pairs_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let work = &mut *self.work.lock().unwrap_or_else(PoisonError::into_inner);
        self.prepare(work, slice(x, x_layout)?, slice(pairs, pairs_layout)?);
        self.forward(work)?;
        let out = work.streams[self.blocks.len()].iter().flatten().copied().collect();
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, pairs: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let work = &mut *self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = with_slice(grad, |grad| self.backward(work, grad))??;
        Ok((None, (self.plan.length > 0).then(|| tensor(gradient, pairs.shape())).transpose()?))
    }
}
