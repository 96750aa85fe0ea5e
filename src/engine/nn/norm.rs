//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x²) + ε) · weight.

use super::simd::dot;
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
    /// From the checkpoint's weight (hidden).
    ///
    /// # Errors
    /// When the weight is no vector of f32.
    pub fn new(weight: &Tensor, epsilon: f32) -> Result<Self> {
        Ok(RmsNorm { weight: weight.to_vec1()?, epsilon })
    }

    /// (N, hidden) → (N, hidden).
    ///
    /// # Errors
    /// When the tensor is not f32 on the CPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self.clone())
    }

    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let n = self.weight.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(64).for_each(|(y, x)| {
            let inverse = self.inverse_rms(x);
            for ((y, x), w) in y.iter_mut().zip(x).zip(&self.weight) {
                *y = x * inverse * w;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = self.weight.len();
        let dx = with_slice(x, |x| {
            with_slice(grad, |grad| {
                let mut dx = vec![0f32; x.len()];
                dx.par_chunks_mut(n).zip(x.par_chunks(n)).zip(grad.par_chunks(n)).with_min_len(64).for_each(|((dx, x), grad)| {
                    let inverse = self.inverse_rms(x);
                    for ((d, g), w) in dx.iter_mut().zip(grad).zip(&self.weight) {
                        *d = g * w * inverse;
                    }
                    let along = dot(dx, x) * inverse * inverse / n as f32;
                    for (d, x) in dx.iter_mut().zip(x) {
                        *d -= x * along;
                    }
                });
                dx
            })
        })??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
