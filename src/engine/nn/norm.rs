//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x²) + ε) · weight.

use super::simd;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// A frozen RMSNorm.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl RmsNorm {
    /// With these factors (hidden).
    pub fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        RmsNorm { weight, epsilon }
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// (N, hidden) → (N, hidden).
    ///
    /// # Errors
    /// When the tensor is not f32 on the CPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self.clone())
    }

    /// The norm of rows (rows, hidden), by the calling thread.
    pub(super) fn rows(&self, out: &mut [f32], x: &[f32]) {
        simd::rms_norm(out, x, &self.weight, self.epsilon);
    }

    /// Adds to `dx` the gradient that `grad` leaves for `x`.
    pub(super) fn rows_backward(&self, dx: &mut [f32], x: &[f32], grad: &[f32]) {
        simd::rms_norm_backward(dx, x, grad, (&self.weight, self.epsilon));
    }
}

/// Rows that one task works on.
pub(super) const ROWS: usize = 64;

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let n = self.weight.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * n).zip(x.par_chunks(ROWS * n)).for_each(|(y, x)| self.rows(y, x));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = self.weight.len();
        let dx = with_slice(x, |x| {
            with_slice(grad, |grad| {
                let mut dx = vec![0f32; x.len()];
                let rows = dx.par_chunks_mut(ROWS * n).zip(x.par_chunks(ROWS * n)).zip(grad.par_chunks(ROWS * n));
                rows.for_each(|((dx, x), grad)| self.rows_backward(dx, x, grad));
                dx
            })
        })??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
