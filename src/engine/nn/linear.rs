//! Linear layers with frozen weights and, on top, low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685):
//! y = x Wᵀ + scale · (x Aᵀ) Bᵀ.

use super::gemm::{Matrix, Write, gemm};
use super::simd;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Up to this many rows our own loop reads the weights as they lie; above it the gemm kernels, which pack them first, win.
const FEW_ROWS: usize = 96;

/// A frozen linear layer; `weight` is (out, in), as in the checkpoint.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    outputs: usize,
    inputs: usize,
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

impl Linear {
    /// From a checkpoint's weight (out, in), f32 on the CPU.
    ///
    /// # Errors
    /// When it is no matrix.
    pub fn new(weight: Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Ok(Linear { weight: weight.contiguous()?, outputs, inputs })
    }

    /// The frozen weight (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (in, out) widths.
    pub fn widths(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// Training: (N, in) → (N, out), every row through the same adapter; gradients reach x, A and B and never the weight.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn train(&self, x: &Tensor, lora: Option<&Lora>) -> Result<Tensor> {
        let x = x.contiguous()?;
        match lora {
            None => x.apply_op1(Frozen(self.clone())),
            Some(lora) => x.apply_op3(&lora.a, &lora.b, LoraLinear { base: self.clone(), rank: lora.a.dim(0)?, scale: lora.scale }),
        }
    }

    /// x Wᵀ for rows of x.
    fn project(&self, x: &[f32]) -> Result<Vec<f32>> {
        with_slice(&self.weight, |w| product(x, w, (self.inputs, self.outputs), true))
    }

    fn project_many(&self, x: &[f32], w: &[f32], rows: usize) -> Vec<f32> {
        let mut y = vec![0f32; rows * self.outputs];
        gemm(&mut y, Matrix::new(x, rows, self.inputs), Matrix::new(w, self.outputs, self.inputs).t(), (Write::Set, 1.0), true);
        y
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
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
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
        let Linear { weight, outputs, inputs } = &self.0;
        let dx = with_slice(grad, |grad| with_slice(weight, |w| backward_input(grad, w, *outputs, *inputs)))??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

/// grad W: (rows, out) → (rows, in).
fn backward_input(grad: &[f32], w: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let rows = grad.len() / outputs;
    let mut dx = vec![0f32; rows * inputs];
    gemm(&mut dx, Matrix::new(grad, rows, outputs), Matrix::new(w, outputs, inputs), (Write::Set, 1.0), true);
    dx
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
        let rows = x.len() / inputs;
        let mut y = with_slice(&self.base.weight, |w| self.base.project_many(x, w, rows))?;
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
        let gradients = |x: &[f32], a: &[f32], b: &[f32], grad: &[f32], w: &[f32]| {
            let h = low_rank(x, a, (inputs, rank), self.scale);
            let u = low_rank(grad, &transposed(b, rank), (outputs, rank), self.scale);
            let mut dx = backward_input(grad, w, outputs, inputs);
            add_low_rank(&mut dx, &u, a, rank);
            let da = outer(&u, x, (rank, inputs));
            let db = transposed(&outer(&h, grad, (rank, outputs)), outputs);
            (dx, da, db)
        };
        let weight = &self.base.weight;
        let (dx, da, db) = with_slice(x, |x| {
            with_slice(a, |a| with_slice(b, |b| with_slice(grad, |grad| with_slice(weight, |w| gradients(x, a, b, grad, w)))))
        })?????;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
