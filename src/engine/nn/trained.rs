//! Operations whose weights are trained themselves: their gradients reach the weight as well as the input. The same operations under
//! frozen weights are in [`linear`](super::linear) and [`norm`](super::norm).

use super::gemm::{Matrix, Write, gemm};
use super::linear::product;
use super::norm::{ROWS, RmsNorm};
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// x (N, in) and W (out, in) → x Wᵀ (N, out).
pub struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, inputs), (outputs, _)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        let y = product(slice(x, x_layout)?, slice(w, w_layout)?, (inputs, outputs), true);
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }

    /// dx = g W, dW = gᵀ x.
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), outputs) = (x.dims2()?, w.dims2()?.0);
        let gradients = |x: &[f32], w: &[f32], grad: &[f32]| {
            let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; w.len()]);
            let grad = Matrix::new(grad, rows, outputs);
            gemm(&mut dx, grad, Matrix::new(w, outputs, inputs), (Write::Set, 1.0), true);
            gemm(&mut dw, grad.t(), Matrix::new(x, rows, inputs), (Write::Set, 1.0), true);
            (dx, dw)
        };
        let (dx, dw) = with_slice(x, |x| with_slice(w, |w| with_slice(grad, |grad| gradients(x, w, grad))))???;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(dw, w.shape())?)))
    }
}

/// x (N, width) and b (width) → x + b, row by row.
pub struct Bias;

impl CustomOp2 for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, b) = (slice(x, x_layout)?, slice(b, b_layout)?);
        if b.is_empty() || x_layout.shape().dims2()?.1 != b.len() {
            candle_core::bail!("a bias of {} for rows {:?}", b.len(), x_layout.shape());
        }
        let mut y = x.to_vec();
        y.chunks_exact_mut(b.len()).for_each(|y| y.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, b: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = b.elem_count();
        let sums = with_slice(grad, |grad| {
            let mut sums = vec![0f32; width];
            grad.chunks_exact(width).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            sums
        })?;
        Ok((Some(grad.clone()), Some(tensor(sums, b.shape())?)))
    }
}

/// x (N, width) and w (width) → x / rms(x) ∘ (w + offset), as [`RmsNorm`].
pub struct Norm {
    /// What is added to the weight.
    pub offset: f32,
    /// ε
    pub epsilon: f32,
}

impl Norm {
    fn with(&self, weight: &[f32]) -> RmsNorm {
        RmsNorm::new(weight.iter().map(|w| w + self.offset).collect(), self.epsilon)
    }

    /// Σ g ∘ x / rms(x) over the rows of a block, (width).
    fn weight_gradient(&self, x: &[f32], grad: &[f32], width: usize) -> Vec<f32> {
        let mut sums = vec![0f32; width];
        for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
            let squares: f32 = x.iter().map(|x| x * x).sum();
            let inverse = 1.0 / (squares / width as f32 + self.epsilon).sqrt();
            sums.iter_mut().zip(x).zip(grad).for_each(|((sum, x), grad)| *sum += grad * x * inverse);
        }
        sums
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "trained-rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(x, x_layout)?, slice(w, w_layout)?);
        let (norm, width) = (self.with(w), w.len());
        if width == 0 || x_layout.shape().dims2()?.1 != width {
            candle_core::bail!("a norm of {width} for rows {:?}", x_layout.shape());
        }
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| norm.rows(y, x));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = |x: &[f32], w: &[f32], grad: &[f32]| {
            let (norm, width) = (self.with(w), w.len());
            let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; width]);
            let blocks = dx.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(grad.par_chunks(ROWS * width));
            let sums = blocks.map(|((dx, x), grad)| {
                norm.rows_backward(dx, x, grad);
                self.weight_gradient(x, grad, width)
            });
            // Added in the order of the blocks, whichever thread was first.
            for sum in sums.collect::<Vec<_>>() {
                dw.iter_mut().zip(sum).for_each(|(dw, sum)| *dw += sum);
            }
            (dx, dw)
        };
        let (dx, dw) = with_slice(x, |x| with_slice(w, |w| with_slice(grad, |grad| gradients(x, w, grad))))???;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(dw, w.shape())?)))
    }
}
