//! One transformer block in training, over a block of rows and by one thread: what lies between its attention and the next one's. The
//! activations of a block of rows stay in the cache from one operation to the next; what the backward pass needs is kept.

use super::gemm::Write;
use super::heads::Sight;
use super::linear::{Linear, Operand, Rounding, Threads};
use super::norm::RmsNorm;
use super::pair::Pair;
use super::simd;
use crate::engine::kernel::bf16::{self, Isa};
use crate::engine::kernel::rows::Gate;
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
    pub input_norm: RmsNorm,
    /// In front of the feed-forward part.
    pub feed_forward_norm: RmsNorm,
    /// On what the attention and what the feed-forward part add, where there are some.
    pub output_norms: Option<[RmsNorm; 2]>,
    /// Of the heads of q and k, where there are some.
    pub head_norms: Option<[RmsNorm; 2]>,
    /// In forward order.
    pub linears: [Linear; LINEARS],
    /// Of q, k and v, where they have some.
    pub biases: Option<[Vec<f32>; OUTPUT]>,
    /// Of the feed-forward part.
    pub gate: Gate,
    /// What its attention sees.
    pub sight: Sight,
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
    /// q and k before the norms of their heads, where there are some.
    raw: [Vec<f32>; 2],
    /// Output of the attention.
    pub(super) attended: Vec<f32>,
    /// The residual stream between the halves of the block.
    middle: Vec<f32>,
    gate: Stored,
    up: Stored,
    /// What o and down add before their norms, where there are some.
    added: [Vec<f32>; 2],
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
    /// The gradient in front of a norm of an output or of heads.
    d_raw: Vec<f32>,
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
            self.input_norm.rows(normed, x);
            let normed = Operand::forward(&self.linears[..OUTPUT], normed, rounding);
            for (i, y) in kept.qkv.iter_mut().enumerate() {
                y.resize(normed.rows() * self.linears[i].widths().1, 0.0);
                self.apply(i, normed, (y, Write::Set), (pairs, &mut kept.low[i], low))?;
                if let Some(biases) = &self.biases {
                    y.chunks_exact_mut(biases[i].len()).for_each(|y| y.iter_mut().zip(&biases[i]).for_each(|(y, bias)| *y += bias));
                }
            }
            for ((norm, raw), y) in self.head_norms.iter().flatten().zip(&mut kept.raw).zip(&mut kept.qkv) {
                y.clone_into(raw);
                norm.rows(y, raw);
            }
            Ok(())
        })
    }

    /// From the attention's output to the residual stream behind the block.
    pub(super) fn finish(&self, x: &[f32], kept: &mut Kept, pairs: &Pairs, out: &mut Vec<f32>) -> Result<()> {
        let isa = self.isa();
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { normed, gate, up, inner, rounding, low, .. } = scratch;
            normed.resize(x.len(), 0.0);
            x.clone_into(&mut kept.middle);
            let attended = Operand::forward(&self.linears[OUTPUT..GATE], &kept.attended, rounding);
            let raw = (&mut kept.added[0], &mut *normed);
            self.add(OUTPUT, attended, (&mut kept.middle, raw), (pairs, &mut kept.low[OUTPUT], low))?;
            self.feed_forward_norm.rows(normed, &kept.middle);
            let width = self.linears[DOWN].widths().0;
            let input = Operand::forward(&self.linears[GATE..DOWN], normed, rounding);
            for (i, y) in [(GATE, &mut *gate), (UP, &mut *up)] {
                y.resize(input.rows() * width, 0.0);
                self.apply(i, input, (y, Write::Set), (pairs, &mut kept.low[i], low))?;
            }
            kept.gate.keep(isa, gate);
            kept.up.keep(isa, up);
            inner.resize(gate.len(), 0.0);
            match self.gate {
                Gate::Silu => simd::swiglu(inner, gate, up),
                Gate::GeluTanh => simd::geglu(inner, gate, up),
            }
            kept.middle.clone_into(out);
            let input = Operand::forward(&self.linears[DOWN..], inner, rounding);
            self.add(DOWN, input, (out, (&mut kept.added[1], normed)), (pairs, &mut kept.low[DOWN], low))
        })
    }

    /// The norm on what a layer adds to the residual stream, and which of the two it is.
    fn output_norm(&self, i: usize) -> Option<(&RmsNorm, usize)> {
        let which = usize::from(i == DOWN);
        self.output_norms.as_ref().map(|norms| (&norms[which], which))
    }

    /// Adds what o or down makes of `x` to the residual stream; where it goes through a norm, keeps it as it was before, with a buffer for
    /// what it is behind.
    fn add(
        &self,
        i: usize,
        x: Operand<'_>,
        (stream, (raw, normed)): (&mut [f32], (&mut Vec<f32>, &mut Vec<f32>)),
        of: (&Pairs, &mut Vec<f32>, &mut Low),
    ) -> Result<()> {
        let Some((norm, _)) = self.output_norm(i) else { return self.apply(i, x, (stream, Write::Add), of) };
        raw.resize(stream.len(), 0.0);
        self.apply(i, x, (raw, Write::Set), of)?;
        norm.rows(normed, raw);
        stream.iter_mut().zip(normed).for_each(|(stream, x)| *stream += *x);
        Ok(())
    }

    /// The gradient that reaches o or down: that of the residual stream, through their norm where there is one.
    fn added<'a>(&self, i: usize, stream: &'a [f32], kept: &Kept, d_raw: &'a mut Vec<f32>) -> &'a [f32] {
        let Some((norm, which)) = self.output_norm(i) else { return stream };
        zeros(d_raw, stream.len());
        norm.rows_backward(d_raw, &kept.added[which], stream);
        d_raw
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
            let Scratch { normed, d_normed, gate, up, inner, d_inner, d_raw, low, rounding: rounded, more_rounding } = scratch;
            for buffer in [&mut *gate, &mut *up, &mut *inner, &mut *d_inner] {
                buffer.resize(rows * width, 0.0);
            }
            kept.gate.read(isa, gate);
            kept.up.read(isa, up);
            let mut backward = Backward { block: self, kept, pairs, places, sums: &mut grads.pairs, low };
            let grad = Operand::backward(&self.linears[DOWN], self.added(DOWN, &grads.stream, kept, d_raw), rounded);
            backward.input(DOWN, grad, Some((d_inner, Write::Set)))?;
            match self.gate {
                Gate::Silu => simd::swiglu_again(inner, gate, up, d_inner),
                Gate::GeluTanh => simd::geglu_again(inner, gate, up, d_inner),
            }
            backward.pair(DOWN, inner, grad);
            normed.resize(rows * hidden, 0.0);
            d_normed.resize(rows * hidden, 0.0);
            self.feed_forward_norm.rows(normed, &kept.middle);
            backward.apply(GATE, normed, Operand::backward(&self.linears[GATE], gate, more_rounding), Some((d_normed, Write::Set)))?;
            backward.apply(UP, normed, Operand::backward(&self.linears[UP], up, more_rounding), Some((d_normed, Write::Add)))?;
            self.feed_forward_norm.rows_backward(&mut grads.stream, &kept.middle, d_normed);
            let grad = Operand::backward(&self.linears[OUTPUT], self.added(OUTPUT, &grads.stream, kept, d_raw), rounded);
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
            let Scratch { normed, d_normed, d_raw, low, rounding: rounded, .. } = scratch;
            normed.resize(x.len(), 0.0);
            d_normed.resize(x.len(), 0.0);
            self.input_norm.rows(normed, x);
            let mut backward = Backward { block: self, kept, pairs, places, sums: &mut grads.pairs, low };
            for (i, grad) in grads.qkv.iter().enumerate() {
                let write = if i == 0 { Write::Set } else { Write::Add };
                let norm = self.head_norms.as_ref().and_then(|norms| norms.get(i));
                let grad = match norm {
                    Some(norm) => {
                        zeros(d_raw, grad.len());
                        norm.rows_backward(d_raw, &kept.raw[i], grad);
                        &*d_raw
                    }
                    None => grad,
                };
                let grad = Operand::backward(&self.linears[i], grad, rounded);
                backward.apply(i, normed, grad, (lowest == Lowest::No).then_some((&mut *d_normed, write)))?;
            }
            if lowest == Lowest::No {
                self.input_norm.rows_backward(&mut grads.stream, x, d_normed);
            }
            Ok(())
        })
    }
}

/// So many zeros.
fn zeros(buffer: &mut Vec<f32>, length: usize) {
    buffer.clear();
    buffer.resize(length, 0.0);
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
