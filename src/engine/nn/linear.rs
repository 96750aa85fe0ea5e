//! Linear layers with frozen weights and, on top, low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685):
//! y = x Wᵀ + scale · (x Aᵀ) Bᵀ. A weight is kept as it is, in f32, [quantised](super::quantised), or packed for both
//! directions: as the file has it, for the kernels of serving, and backwards as bytes; or in bfloat16 both ways.

use super::gemm::{Matrix, Write, gemm};
use super::quantised::Quantised;
use super::simd;
use super::slices::{slice, tensor, with_slice};
use super::trained;
use crate::engine::kernel::bf16::{self, Frozen as Panels, Isa};
use crate::engine::kernel::panel::Panels as Bytes;
use crate::engine::kernel::product::{self as served, Input};
use crate::engine::kernel::tiles;
use crate::engine::kernel::transposed::Transposed;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Up to this many rows our own loop reads the weights as they lie; above it the gemm kernels, which pack them first, win.
const FEW_ROWS: usize = 96;

/// A frozen linear layer; `weight` is (out, in), as in the checkpoint.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    outputs: usize,
    inputs: usize,
}

/// How the weight is kept.
#[derive(Debug, Clone)]
enum Weight {
    Exact(Tensor),
    Rounded(Arc<Rounded>),
    Quantised(Arc<Quantised>),
}

/// A weight packed for x Wᵀ and for g W.
#[derive(Debug)]
struct Rounded {
    isa: Isa,
    forward: Forward,
    backward: Backward,
}

/// What x is multiplied with, and thereby what x is rounded to.
#[derive(Debug)]
enum Forward {
    /// Blocks of 8 bits: the weight as serving has it.
    Bytes(tiles::Weight),
    /// bfloat16.
    Half(Panels),
}

/// What a gradient is multiplied with, and thereby what it is rounded to.
#[derive(Debug)]
enum Backward {
    /// Bytes, where x is rounded to bytes as well.
    Bytes(Transposed),
    /// bfloat16.
    Half(Panels),
}

/// One low-rank pair: `a` (rank, in), `b` (out, rank), both f32. For training they are the tensors of variables.
#[derive(Debug, Clone)]
pub struct Lora {
    /// Down projection (rank, in).
    pub a: Tensor,
    /// Up projection (out, rank).
    pub b: Tensor,
    /// alpha / rank, or alpha / √rank with rsLoRA.
    pub scale: f32,
}

/// Rows of activations (rows, width) as products read them: also rounded to bfloat16 where the weights are.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) values: &'a [f32],
    pub(super) width: usize,
    pairs: Option<(Isa, &'a [u32])>,
    bytes: Option<&'a Bytes>,
}

/// Buffers of an operand.
#[derive(Default)]
pub(super) struct Rounding {
    pairs: Vec<u32>,
    bytes: Bytes,
}

impl<'a> Operand<'a> {
    /// Rounds the rows into `scratch` if there are instructions for them.
    pub(super) fn new(isa: Option<Isa>, values: &'a [f32], width: usize, scratch: &'a mut Vec<u32>) -> Self {
        let Some(isa) = isa else { return Operand { values, width, pairs: None, bytes: None } };
        let rows = values.len() / width;
        scratch.resize(rows * width.div_ceil(2), 0);
        bf16::round(isa, scratch, bf16::Source { data: values, stride: width }, (rows, width), 1.0);
        Operand { values, width, pairs: Some((isa, scratch)), bytes: None }
    }

    /// Rounds the rows that go through `layers`, whose inputs they are, into all that these read.
    pub(super) fn forward(layers: &[Linear], values: &'a [f32], scratch: &'a mut Rounding) -> Self {
        let Rounding { pairs, bytes } = scratch;
        let operand = Self::new(layers[0].isa(), values, layers[0].inputs, pairs);
        if !layers.iter().any(Linear::takes_bytes) {
            return operand;
        }
        bytes.fill(values, operand.width);
        Operand { bytes: Some(bytes), ..operand }
    }

    /// Rounds the gradients of a layer's output into all that the layer, and a pair on top of it, reads.
    pub(super) fn backward(layer: &Linear, grad: &'a [f32], scratch: &'a mut Rounding) -> Self {
        let Rounding { pairs, bytes } = scratch;
        let operand = Self::new(layer.isa(), grad, layer.outputs, pairs);
        let Some(Backward::Bytes(weight)) = layer.rounded_backward() else { return operand };
        weight.round(bytes, grad, (layer.outputs, layer.outputs));
        Operand { bytes: Some(bytes), ..operand }
    }

    /// The rows as bytes, where a weight takes these.
    pub(super) fn bytes(&self) -> Option<&'a Bytes> {
        self.bytes
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// `out (rows, columns) [=, +=] rows · panels` in bfloat16.
    pub(super) fn times<D: std::ops::Deref<Target = [bf16::Line]>>(&self, panels: &bf16::Panels<D>, out: &mut [f32], write: Write) {
        let (isa, pairs) = self.pairs.expect("an operand is rounded wherever weights are");
        let left = bf16::Rows { pairs, stride: self.width.div_ceil(2), count: self.rows() };
        bf16::product(isa, bf16::Target { data: out, stride: panels.columns(), add: write == Write::Add }, left, panels);
    }
}

/// Who works on a product.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Threads {
    /// The calling thread.
    Caller,
    /// The current rayon pool.
    All,
}

impl Linear {
    /// From a checkpoint's weight (out, in), f32 on the CPU, kept as it is.
    ///
    /// # Errors
    /// When it is no matrix.
    pub fn new(weight: Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Ok(Linear { weight: Weight::Exact(weight.contiguous()?), outputs, inputs })
    }

    /// As [`Linear::new`], rounded to bfloat16 where the processor multiplies that: a half of the memory for each direction, and twice
    /// the speed. Elsewhere it is kept exactly.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn rounded(weight: Tensor) -> Result<Self> {
        let Some(isa) = Isa::detect() else { return Self::new(weight) };
        let (outputs, inputs) = weight.dims2()?;
        let (forward, backward) = with_slice(&weight, |weight| Panels::both(isa, weight, (outputs, inputs)))?;
        Ok(Linear {
            weight: Weight::Rounded(Arc::new(Rounded { isa, forward: Forward::Half(forward), backward: Backward::Half(backward) })),
            outputs,
            inputs,
        })
    }

    /// As [`Linear::rounded`], but forwards with the same weight as serving packs it, where that multiplies bytes: what is trained is then
    /// what is served, at a quarter of the memory and half as fast again. Gradients go backwards as bytes, too.
    ///
    /// # Errors
    /// As [`Linear::new`], and when the two are of different shapes.
    pub fn served(weight: Tensor, packed: tiles::Weight) -> Result<Self> {
        let Some(isa) = Isa::detect().filter(|_| packed.takes_bytes()) else { return Self::rounded(weight) };
        let (outputs, inputs) = weight.dims2()?;
        if (packed.outputs(), packed.inputs()) != (outputs, inputs) {
            candle_core::bail!("a weight ({outputs}, {inputs}) that serving has as ({}, {})", packed.outputs(), packed.inputs());
        }
        let backward = with_slice(&weight, |weight| match Transposed::pack(weight, (outputs, inputs)) {
            Some(weight) => Backward::Bytes(weight),
            None => Backward::Half(Panels::backward(isa, weight, (outputs, inputs))),
        })?;
        Ok(Linear { weight: Weight::Rounded(Arc::new(Rounded { isa, forward: Forward::Bytes(packed), backward })), outputs, inputs })
    }

    /// With the weight as serving packs it, and nothing else in memory: backwards it is dequantised while it is needed.
    pub fn quantised(packed: Arc<tiles::Weight>) -> Self {
        let (outputs, inputs) = (packed.outputs(), packed.inputs());
        Linear { weight: Weight::Quantised(Arc::new(Quantised::new(packed))), outputs, inputs }
    }

    /// Makes what the backward pass needs of a quantised weight, until it is released; nothing of others.
    pub(super) fn hold(&self) {
        if let Weight::Quantised(quantised) = &self.weight {
            quantised.hold();
        }
    }

    /// Throws that away.
    pub(super) fn release(&self) {
        if let Weight::Quantised(quantised) = &self.weight {
            quantised.release();
        }
    }

    /// Whether its inputs are rounded to bytes.
    fn takes_bytes(&self) -> bool {
        match &self.weight {
            Weight::Exact(_) => false,
            Weight::Rounded(rounded) => matches!(rounded.forward, Forward::Bytes(_)),
            Weight::Quantised(quantised) => quantised.takes_bytes(),
        }
    }

    fn rounded_backward(&self) -> Option<&Backward> {
        match &self.weight {
            Weight::Exact(_) | Weight::Quantised(_) => None,
            Weight::Rounded(rounded) => Some(&rounded.backward),
        }
    }

    /// The frozen weight (out, in).
    ///
    /// # Errors
    /// When only its rounded values are kept.
    pub fn weight(&self) -> Result<&Tensor> {
        match &self.weight {
            Weight::Exact(weight) => Ok(weight),
            Weight::Rounded(_) | Weight::Quantised(_) => {
                candle_core::bail!("the weights were rounded for training; load the model for Purpose::Train to read them")
            }
        }
    }

    /// The weight, where it is a variable.
    pub(super) fn variable(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Exact(weight) => Some(weight).filter(|weight| weight.is_variable()),
            _ => None,
        }
    }

    /// (in, out) widths.
    pub fn widths(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// The instructions for rounded weights, where they are rounded.
    pub(super) fn isa(&self) -> Option<Isa> {
        match &self.weight {
            Weight::Exact(_) => None,
            Weight::Rounded(rounded) => Some(rounded.isa),
            Weight::Quantised(quantised) => quantised.isa(),
        }
    }

    /// Training: (N, in) → (N, out), every row through the same adapter; gradients reach x, A and B, and the weight where that is a
    /// variable and has no adapter.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn train(&self, x: &Tensor, lora: Option<&Lora>) -> Result<Tensor> {
        let x = x.contiguous()?;
        match lora {
            None => match &self.weight {
                Weight::Exact(weight) if weight.is_variable() => x.apply_op2(weight, trained::Product),
                _ => x.apply_op1(Frozen(self.clone())),
            },
            Some(lora) => x.apply_op3(&lora.a, &lora.b, LoraLinear { base: self.clone(), rank: lora.a.dim(0)?, scale: lora.scale }),
        }
    }

    /// y (rows, out) [+]= x Wᵀ.
    pub(super) fn forward(&self, y: &mut [f32], x: Operand<'_>, write: Write, threads: Threads) -> Result<()> {
        match &self.weight {
            Weight::Rounded(rounded) => rounded.forward.product(y, x, write),
            Weight::Quantised(quantised) => quantised.forward(y, x, write),
            Weight::Exact(weight) => with_slice(weight, |w| {
                let w = Matrix::new(w, self.outputs, self.inputs).t();
                gemm(y, Matrix::new(x.values, x.rows(), self.inputs), w, (write, 1.0), threads == Threads::All);
            })?,
        }
        Ok(())
    }

    /// dx (rows, in) [+]= g W.
    pub(super) fn backward(&self, dx: &mut [f32], grad: Operand<'_>, write: Write, threads: Threads) -> Result<()> {
        match &self.weight {
            Weight::Rounded(rounded) => rounded.backward.product(dx, grad, write),
            Weight::Quantised(quantised) => quantised.backward(dx, grad.values, write, &mut Vec::new()),
            Weight::Exact(weight) => with_slice(weight, |w| {
                let w = Matrix::new(w, self.outputs, self.inputs);
                gemm(dx, Matrix::new(grad.values, grad.rows(), self.outputs), w, (write, 1.0), threads == Threads::All);
            })?,
        }
        Ok(())
    }

    /// dx (rows, in) = g W for a layer of very many outputs: g is rounded piece by piece into `scratch`.
    pub(super) fn backward_wide(&self, dx: &mut [f32], grad: &[f32], scratch: &mut Rounding) -> Result<()> {
        /// Outputs of a piece, at least; an even number.
        const PIECE: usize = 1024;
        if let Weight::Quantised(quantised) = &self.weight {
            quantised.backward(dx, grad, Write::Set, &mut scratch.pairs);
            return Ok(());
        }
        let Weight::Rounded(rounded) = &self.weight else {
            return self.backward(dx, Operand { values: grad, width: self.outputs, pairs: None, bytes: None }, Write::Set, Threads::All);
        };
        let size = match &rounded.backward {
            Backward::Bytes(weight) => PIECE.next_multiple_of(weight.span()),
            Backward::Half(_) => PIECE,
        };
        let count = grad.len() / self.outputs;
        for first in (0..self.outputs).step_by(size) {
            let width = size.min(self.outputs - first);
            match &rounded.backward {
                Backward::Bytes(weight) => {
                    weight.round(&mut scratch.bytes, &grad[first..], (self.outputs, width));
                    weight.product(dx, &scratch.bytes, first, first > 0);
                }
                Backward::Half(panels) => {
                    let (stride, pairs) = (width.div_ceil(2), &mut scratch.pairs);
                    pairs.resize(count * stride, 0);
                    let source = bf16::Source { data: &grad[first..], stride: self.outputs };
                    bf16::round(rounded.isa, pairs, source, (count, width), 1.0);
                    let target = bf16::Target { data: dx, stride: self.inputs, add: first > 0 };
                    let part = bf16::Part { columns: self.inputs, first: first / 2, pairs: stride };
                    bf16::product_part(rounded.isa, target, bf16::Rows { pairs, stride, count }, panels, part);
                }
            }
        }
        Ok(())
    }

    /// x Wᵀ for many rows of x, on all threads.
    fn project(&self, x: &[f32]) -> Result<Vec<f32>> {
        match &self.weight {
            Weight::Exact(weight) => with_slice(weight, |w| product(x, w, (self.inputs, self.outputs), true)),
            Weight::Rounded(_) | Weight::Quantised(_) => {
                let mut y = vec![0f32; x.len() / self.inputs * self.outputs];
                let rows = y.par_chunks_mut(ROWS * self.outputs).zip(x.par_chunks(ROWS * self.inputs));
                rows.try_for_each_init(Rounding::default, |scratch, (y, x)| {
                    self.forward(y, Operand::forward(std::slice::from_ref(self), x, scratch), Write::Set, Threads::Caller)
                })?;
                Ok(y)
            }
        }
    }

    /// g W for many rows of g, on all threads.
    fn project_back(&self, grad: &[f32]) -> Result<Vec<f32>> {
        match &self.weight {
            Weight::Exact(_) => {
                let mut dx = vec![0f32; grad.len() / self.outputs * self.inputs];
                let grad = Operand { values: grad, width: self.outputs, pairs: None, bytes: None };
                self.backward(&mut dx, grad, Write::Set, Threads::All)?;
                Ok(dx)
            }
            Weight::Rounded(rounded) => {
                let mut dx = vec![0f32; grad.len() / self.outputs * self.inputs];
                let rows = dx.par_chunks_mut(ROWS * self.inputs).zip(grad.par_chunks(ROWS * self.outputs));
                rows.for_each_init(Rounding::default, |scratch, (dx, grad)| {
                    rounded.backward.product(dx, Operand::backward(self, grad, scratch), Write::Set);
                });
                Ok(dx)
            }
            Weight::Quantised(quantised) => {
                let mut dx = vec![0f32; grad.len() / self.outputs * self.inputs];
                quantised.hold();
                let rows = dx.par_chunks_mut(ROWS * self.inputs).zip(grad.par_chunks(ROWS * self.outputs));
                rows.for_each_init(Vec::new, |scratch, (dx, grad)| quantised.backward(dx, grad, Write::Set, scratch));
                quantised.release();
                Ok(dx)
            }
        }
    }
}

impl Forward {
    /// y [+]= x Wᵀ, by the calling thread.
    fn product(&self, y: &mut [f32], x: Operand<'_>, write: Write) {
        match self {
            Forward::Half(panels) => x.times(panels, y, write),
            Forward::Bytes(weight) => {
                let bytes = x.bytes.expect("an operand is rounded to bytes for layers that take them");
                let write = if write == Write::Add { served::Write::Add } else { served::Write::Set };
                served::product(y, Input { floats: x.values, bytes }, &[weight], write);
            }
        }
    }
}

impl Backward {
    /// dx [+]= g W, by the calling thread.
    fn product(&self, dx: &mut [f32], grad: Operand<'_>, write: Write) {
        match self {
            Backward::Half(panels) => grad.times(panels, dx, write),
            Backward::Bytes(weight) => {
                weight.product(dx, grad.bytes.expect("a gradient is rounded to bytes for layers that take them"), 0, write == Write::Add);
            }
        }
    }
}

/// Rows that one task works on; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// scale · x Aᵀ (rows, rank), for x (rows, inputs) and a (rank, inputs).
fn low_rank(x: &[f32], a: &[f32], (inputs, rank): (usize, usize), scale: f32) -> Vec<f32> {
    let mut h = vec![0f32; x.len() / inputs * rank];
    h.par_chunks_mut(ROWS * rank).zip(x.par_chunks(ROWS * inputs)).for_each(|(h, x)| {
        simd::products_transposed(h, a, x, inputs);
        h.iter_mut().for_each(|h| *h *= scale);
    });
    h
}

/// out += h b, for out (rows, width), h (rows, rank) and b (rank, width).
fn add_low_rank(out: &mut [f32], h: &[f32], b: &[f32], rank: usize) {
    let width = b.len() / rank;
    out.par_chunks_mut(ROWS * width).zip(h.par_chunks(ROWS * rank)).for_each(|(out, h)| simd::add_low_rank(out, h, b, rank));
}

/// hᵀ x (rank, width), for h (rows, rank) and x (rows, width). Partial sums are added in row order.
fn outer(h: &[f32], x: &[f32], (rank, width): (usize, usize)) -> Vec<f32> {
    let part = |(h, x): (&[f32], &[f32])| {
        let mut sum = vec![0f32; rank * width];
        simd::add_outer(&mut sum, h, x, rank);
        sum
    };
    let parts: Vec<Vec<f32>> = h.par_chunks(4 * ROWS * rank).zip(x.par_chunks(4 * ROWS * width)).map(part).collect();
    let mut total = vec![0f32; rank * width];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}

/// (rows, columns) → (columns, rows).
pub(super) fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns;
    (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

/// x Wᵀ (rows, outputs) for x (rows, inputs) and W (outputs, inputs); `parallel` spreads many rows over the current rayon pool.
pub(super) fn product(x: &[f32], w: &[f32], (inputs, outputs): (usize, usize), parallel: bool) -> Vec<f32> {
    let rows = x.len() / inputs;
    if rows <= FEW_ROWS {
        return project_few(x, w, rows, outputs);
    }
    let mut y = vec![0f32; rows * outputs];
    gemm(&mut y, Matrix::new(x, rows, inputs), Matrix::new(w, outputs, inputs).t(), (Write::Set, 1.0), parallel);
    y
}

fn project_few(x: &[f32], w: &[f32], rows: usize, outputs: usize) -> Vec<f32> {
    const BLOCK: usize = 64;
    let inputs = x.len() / rows;
    let mut transposed = vec![0f32; outputs * rows];
    let blocks = transposed.par_chunks_mut(BLOCK * rows).zip(w.par_chunks(BLOCK * inputs));
    blocks.with_min_len(2).for_each(|(out, w)| simd::products_transposed(out, x, w, inputs));
    if rows == 1 {
        return transposed;
    }
    let mut y = vec![0f32; rows * outputs];
    for (o, column) in transposed.chunks_exact(rows).enumerate() {
        for (r, value) in column.iter().enumerate() {
            y[r * outputs + o] = *value;
        }
    }
    y
}

fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut dims = layout.dims().to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

/// A linear layer without an adapter, in training: the gradient passes through, the weight has none.
struct Frozen(Linear);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.0.project(slice(x, layout)?)?), with_last(layout, self.0.outputs)))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(grad, |grad| self.0.project_back(grad))??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct LoraLinear {
    base: Linear,
    rank: usize,
    scale: f32,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (slice(x, x_layout)?, slice(a, a_layout)?, slice(b, b_layout)?);
        let (inputs, outputs, rank) = (self.base.inputs, self.base.outputs, self.rank);
        let mut y = self.base.project(x)?;
        let h = low_rank(x, a, (inputs, rank), self.scale);
        add_low_rank(&mut y, &h, &transposed(b, rank), rank);
        Ok((CpuStorage::F32(y), with_last(x_layout, outputs)))
    }

    /// With h = s · x Aᵀ and u = s · g B: dx = g W + u A, dA = uᵀ x, dB = gᵀ h.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (inputs, outputs, rank) = (self.base.inputs, self.base.outputs, self.rank);
        let gradients = |x: &[f32], a: &[f32], b: &[f32], grad: &[f32]| -> Result<_> {
            let h = low_rank(x, a, (inputs, rank), self.scale);
            let u = low_rank(grad, &transposed(b, rank), (outputs, rank), self.scale);
            let mut dx = self.base.project_back(grad)?;
            add_low_rank(&mut dx, &u, a, rank);
            let da = outer(&u, x, (rank, inputs));
            let db = transposed(&outer(&h, grad, (rank, outputs)), outputs);
            Ok((dx, da, db))
        };
        let (dx, da, db) = with_slice(x, |x| with_slice(a, |a| with_slice(b, |b| with_slice(grad, |grad| gradients(x, a, b, grad)))))?????;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    /// Sums of its products do not cancel as those of waves do.
    fn noise(rows: usize, columns: usize, seed: u64) -> Tensor {
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| random()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
    }

    /// y, and dx for a gradient of y.
    fn run(linear: &Linear, x: &Tensor, grad: &Tensor) -> [Vec<f32>; 2] {
        let x = candle_core::Var::from_tensor(x).expect("a variable");
        let y = linear.train(x.as_tensor(), None).expect("a product");
        let gradients = (&y * grad).and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("a backward pass");
        let values = |tensor: &Tensor| tensor.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("values");
        [values(&y), values(gradients.get(x.as_tensor()).expect("a gradient"))]
    }

    #[test]
    fn a_served_weight_gives_nearly_the_exact_products_in_both_directions() {
        // Whole blocks, which go backwards as bytes, and outputs that are none, which go in bfloat16.
        for (outputs, inputs) in [(288, 96), (50, 64)] {
            let quantised = QTensor::quantize(&noise(outputs, inputs, 1), GgmlDType::Q8_0).expect("blocks");
            let (weight, bytes) = (quantised.dequantize(&Device::Cpu).expect("values"), quantised.data().expect("bytes"));
            let source = tiles::Source { bytes: &bytes, outputs, inputs, order: &|row| row, packed: &|_| {} };
            let packed = tiles::Weight::pack(GgmlDType::Q8_0, source).expect("a known type");
            let linear = Linear::served(weight.clone(), packed).expect("a layer");
            let (x, grad) = (noise(70, inputs, 2), noise(70, outputs, 3));
            let expected = run(&Linear::new(weight).expect("a layer"), &x, &grad);
            for (found, expected) in run(&linear, &x, &grad).iter().zip(&expected) {
                let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let off = length(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / length(&mut expected.iter().copied());
                assert!(off < 0.015, "({outputs}, {inputs}): off by {off}");
            }
        }
    }
}
