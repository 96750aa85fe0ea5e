//! One transformer block in training, over a block of rows and by one thread: what lies between its attention and the next one's. The
//! activations of a block of rows stay in the cache from one operation to the next; what the backward pass needs is kept.

use super::gemm::Write;
use super::linear::{Linear, Operand, Rounding, Threads};
use super::norm::RmsNorm;
use super::pair::Pair;
use super::simd;
use crate::engine::kernel::bf16::{self, Isa};
use candle_core::Result;
use std::cell::RefCell;
use std::ops::Range;

/// Adapted linear layers of a block, in forward order: q, k, v, o, gate, up and down.
pub const LINEARS: usize = 7;
const OUTPUT: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// The frozen part.
#[derive(Clone)]
pub struct Block {
    /// In front of the attention.
    pub input_layernorm: RmsNorm,
    /// In front of the feed-forward part.
    pub post_attention_layernorm: RmsNorm,
    /// In forward order.
    pub linears: [Linear; LINEARS],
    /// Of q, k and v, where they have some.
    pub biases: Option<[Vec<f32>; OUTPUT]>,
}

/// Its low-rank pairs.
pub(super) type Pairs = [Option<Pair>; LINEARS];

/// Where the gradients of the pairs lie: A (rank, in) and behind it Bᵀ (rank, out), for each adapted layer.
pub(super) type Places = [Option<Range<usize>>; LINEARS];

/// What the backward pass needs of some rows.
#[derive(Default)]
pub(super) struct Kept {
    /// q, k and v, not rotated.
    pub(super) qkv: [Vec<f32>; 3],
    /// Output of the attention.
    pub(super) attended: Vec<f32>,
    /// The residual stream between the halves of the block.
    middle: Vec<f32>,
    gate: Stored,
    up: Stored,
    /// scale · x Aᵀ of each adapted layer.
    low: [Vec<f32>; LINEARS],
}

/// Values that are kept rounded to bfloat16 where there are instructions for that.
#[derive(Default)]
struct Stored {
    full: Vec<f32>,
    half: Vec<u32>,
}

impl Stored {
    fn keep(&mut self, isa: Option<Isa>, values: &[f32]) {
        match isa {
            Some(isa) => {
                self.half.resize(values.len().div_ceil(2), 0);
                let source = bf16::Source { data: values, stride: values.len() };
                bf16::round(isa, &mut self.half, source, (1, values.len()), 1.0);
            }
            None => values.clone_into(&mut self.full),
        }
    }

    fn read(&self, isa: Option<Isa>, out: &mut [f32]) {
        match isa {
            Some(isa) => bf16::widen(isa, out, &self.half),
            None => out.copy_from_slice(&self.full),
        }
    }
}

/// Gradients of some rows.
#[derive(Default)]
pub(super) struct Grads {
    /// Of the residual stream: at first behind the block, then between its halves, at last in front of it.
    pub(super) stream: Vec<f32>,
    /// Of the attention's output.
    pub(super) attended: Vec<f32>,
    /// Of q, k and v.
    pub(super) qkv: [Vec<f32>; 3],
    /// Of the pairs, by [`Places`].
    pub(super) pairs: Vec<f32>,
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    d_normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    d_inner: Vec<f32>,
    low: Low,
    rounding: Rounding,
    more_rounding: Rounding,
}

/// Buffers of low-rank products.
#[derive(Default)]
struct Low {
    values: Vec<f32>,
    pairs: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Block {
    /// The instructions for rounded weights, where they are rounded.
    pub(super) fn isa(&self) -> Option<Isa> {
        self.linears[0].isa()
    }

    /// Makes what the backward pass needs of quantised weights, until they are released.
    pub(super) fn hold(&self) {
        self.linears.iter().for_each(Linear::hold);
    }

    /// Throws that away.
    pub(super) fn release(&self) {
        self.linears.iter().for_each(Linear::release);
    }

    fn hidden(&self) -> usize {
        self.linears[0].widths().0
    }

    /// q, k and v of rows of the residual stream.
    pub(super) fn project(&self, x: &[f32], kept: &mut Kept, pairs: &Pairs) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normed, rounding, low, .. } = scratch;
            normed.resize(x.len(), 0.0);
            self.input_layernorm.rows(normed, x);
            let normed = Operand::forward(&self.linears[..OUTPUT], normed, rounding);
            for (i, y) in kept.qkv.iter_mut().enumerate() {
                y.resize(normed.rows() * self.linears[i].widths().1, 0.0);
                self.apply(i, normed, (y, Write::Set), (pairs, &mut kept.low[i], low))?;
                if let Some(biases) = &self.biases {
                    y.chunks_exact_mut(biases[i].len()).for_each(|y| y.iter_mut().zip(&biases[i]).for_each(|(y, bias)| *y += bias));
                }
            }
            Ok(())
        })
    }

    /// From the attention's output to the residual stream behind the block.
    pub(super) fn finish(&self, x: &[f32], kept: &mut Kept, pairs: &Pairs, out: &mut Vec<f32>) -> Result<()> {
        let isa = self.isa();
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normed, gate, up, inner, rounding, low, .. } = scratch;
            x.clone_into(&mut kept.middle);
            let attended = Operand::forward(&self.linears[OUTPUT..GATE], &kept.attended, rounding);
            self.apply(OUTPUT, attended, (&mut kept.middle, Write::Add), (pairs, &mut kept.low[OUTPUT], low))?;
            normed.resize(x.len(), 0.0);
            self.post_attention_layernorm.rows(normed, &kept.middle);
            let width = self.linears[DOWN].widths().0;
            let input = Operand::forward(&self.linears[GATE..DOWN], normed, rounding);
            for (i, y) in [(GATE, &mut *gate), (UP, &mut *up)] {
                y.resize(input.rows() * width, 0.0);
                self.apply(i, input, (y, Write::Set), (pairs, &mut kept.low[i], low))?;
            }
            kept.gate.keep(isa, gate);
            kept.up.keep(isa, up);
            inner.resize(gate.len(), 0.0);
            simd::swiglu(inner, gate, up);
            kept.middle.clone_into(out);
            let input = Operand::forward(&self.linears[DOWN..], inner, rounding);
            self.apply(DOWN, input, (out, Write::Add), (pairs, &mut kept.low[DOWN], low))
        })
    }

    /// y [+]= x Wᵀ + scale · (x Aᵀ) Bᵀ; keeps the product in the middle.
    fn apply(
        &self,
        i: usize,
        x: Operand<'_>,
        (y, write): (&mut [f32], Write),
        (pairs, kept, low): (&Pairs, &mut Vec<f32>, &mut Low),
    ) -> Result<()> {
        self.linears[i].forward(y, x, write, Threads::Caller)?;
        if let Some(pair) = &pairs[i] {
            pair.down(kept, x);
            pair.up(y, Operand::new(self.isa(), kept, pair.rank(), &mut low.pairs));
        }
        Ok(())
    }

    /// The backward pass of [`Block::finish`]: from the gradient behind the block to those between its halves and of the attention's output.
    pub(super) fn finish_backward(&self, kept: &Kept, grads: &mut Grads, (pairs, places): (&Pairs, &Places)) -> Result<()> {
        let (isa, hidden, width) = (self.isa(), self.hidden(), self.linears[DOWN].widths().0);
        let rows = grads.stream.len() / hidden;
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normed, d_normed, gate, up, inner, d_inner, low, rounding: rounded, more_rounding, .. } = scratch;
            for buffer in [&mut *gate, &mut *up, &mut *inner, &mut *d_inner] {
                buffer.resize(rows * width, 0.0);
            }
            kept.gate.read(isa, gate);
            kept.up.read(isa, up);
            let mut backward = Backward { block: self, kept, pairs, places, sums: &mut grads.pairs, low };
            let grad = Operand::backward(&self.linears[DOWN], &grads.stream, rounded);
            backward.input(DOWN, grad, Some((d_inner, Write::Set)))?;
            simd::swiglu_again(inner, gate, up, d_inner);
            backward.pair(DOWN, inner, grad);
            normed.resize(rows * hidden, 0.0);
            d_normed.resize(rows * hidden, 0.0);
            self.post_attention_layernorm.rows(normed, &kept.middle);
            backward.apply(GATE, normed, Operand::backward(&self.linears[GATE], gate, more_rounding), Some((d_normed, Write::Set)))?;
            backward.apply(UP, normed, Operand::backward(&self.linears[UP], up, more_rounding), Some((d_normed, Write::Add)))?;
            self.post_attention_layernorm.rows_backward(&mut grads.stream, &kept.middle, d_normed);
            let grad = Operand::backward(&self.linears[OUTPUT], &grads.stream, rounded);
            grads.attended.resize(kept.attended.len(), 0.0);
            backward.apply(OUTPUT, &kept.attended, grad, Some((&mut grads.attended, Write::Set)))
        })
    }

    /// The backward pass of [`Block::project`], to the gradient in front of the block; nobody asks for that of the `lowest` block.
    pub(super) fn project_backward(
        &self,
        (x, kept): (&[f32], &Kept),
        grads: &mut Grads,
        (pairs, places): (&Pairs, &Places),
        lowest: Lowest,
    ) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normed, d_normed, low, rounding: rounded, .. } = scratch;
            normed.resize(x.len(), 0.0);
            d_normed.resize(x.len(), 0.0);
            self.input_layernorm.rows(normed, x);
            let mut backward = Backward { block: self, kept, pairs, places, sums: &mut grads.pairs, low };
            for (i, grad) in grads.qkv.iter().enumerate() {
                let write = if i == 0 { Write::Set } else { Write::Add };
                let grad = Operand::backward(&self.linears[i], grad, rounded);
                backward.apply(i, normed, grad, (lowest == Lowest::No).then_some((&mut *d_normed, write)))?;
            }
            if lowest == Lowest::No {
                self.input_layernorm.rows_backward(&mut grads.stream, x, d_normed);
            }
            Ok(())
        })
    }
}

/// Whether a block is the lowest one with an adapter.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Lowest {
    Yes,
    No,
}

/// The backward pass of linear layers over some rows.
struct Backward<'a> {
    block: &'a Block,
    kept: &'a Kept,
    pairs: &'a Pairs,
    places: &'a Places,
    sums: &'a mut [f32],
    low: &'a mut Low,
}

impl Backward<'_> {
    /// With h = s · x Aᵀ and u = s · g B: dx = g W + u A, dA += uᵀ x, dBᵀ += hᵀ g.
    fn apply(&mut self, i: usize, x: &[f32], grad: Operand<'_>, dx: Option<(&mut Vec<f32>, Write)>) -> Result<()> {
        self.input(i, grad, dx)?;
        self.pair(i, x, grad);
        Ok(())
    }

    /// dx, if it is asked for; u stays for [`Backward::pair`].
    fn input(&mut self, i: usize, grad: Operand<'_>, dx: Option<(&mut Vec<f32>, Write)>) -> Result<()> {
        let pair = self.pairs[i].as_ref();
        if let Some(pair) = pair {
            pair.back_up(&mut self.low.values, grad);
        }
        let Some((dx, write)) = dx else { return Ok(()) };
        self.block.linears[i].backward(dx, grad, write, Threads::Caller)?;
        if let Some(pair) = pair {
            pair.back_down(dx, Operand::new(self.block.isa(), &self.low.values, pair.rank(), &mut self.low.pairs));
        }
        Ok(())
    }

    /// The gradients of a pair.
    fn pair(&mut self, i: usize, x: &[f32], grad: Operand<'_>) {
        if let (Some(pair), Some(place)) = (&self.pairs[i], &self.places[i]) {
            let rank = pair.rank();
            let (da, db) = self.sums[place.clone()].split_at_mut(rank * self.block.linears[i].widths().0);
            simd::add_outer(da, &self.low.values, x, rank);
            simd::add_outer(db, &self.kept.low[i], grad.values, rank);
        }
    }
}
