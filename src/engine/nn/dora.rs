//! DoRA (Liu et al. 2024, arXiv 2402.09353): the weight's rows are taken apart into length and direction. An adapter changes the
//! direction, a vector of magnitudes the length: y = m / ‖W + s·B A‖ ∘ (W x + s·B A x). As in the paper's section 4.3 and in PEFT the
//! norm is a constant to the backward pass.

use super::gemm::{Matrix, Write, gemm};
use super::linear::Lora;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Length of each row of W + s·B A, (out). `weight` is W (out, in).
///
/// # Errors
/// When a tensor is not f32 on the CPU.
pub fn row_norms(weight: &Tensor, lora: &Lora) -> Result<Vec<f32>> {
    let rank = lora.a.dim(0)?;
    with_slice(weight, |w| with_slice(&lora.a, |a| with_slice(&lora.b, |b| norms(w, a, (b, rank), lora.scale))))???
}

fn norms(w: &[f32], a: &[f32], (b, rank): (&[f32], usize), scale: f32) -> Result<Vec<f32>> {
    let (inputs, outputs) = (a.len() / rank, b.len() / rank);
    if w.len() != inputs * outputs {
        candle_core::bail!("a weight of {} values under an adapter of {outputs} x {inputs}", w.len());
    }
    // ‖w + s·bᵀA‖² = ‖w‖² + 2s·b·(A w) + s²·bᵀ(A Aᵀ)b needs no matrix as large as W.
    let (mut wa, mut aa) = (vec![0f32; outputs * rank], vec![0f32; rank * rank]);
    gemm(&mut wa, Matrix::new(w, outputs, inputs), Matrix::new(a, rank, inputs).t(), (Write::Set, 1.0), true);
    gemm(&mut aa, Matrix::new(a, rank, inputs), Matrix::new(a, rank, inputs).t(), (Write::Set, 1.0), false);
    let scale = f64::from(scale);
    let norm = |((w, wa), b): ((&[f32], &[f32]), &[f32])| -> f32 {
        let update: f64 = b.iter().zip(aa.chunks_exact(rank)).map(|(x, aa)| f64::from(*x) * dot(aa, b)).sum();
        (dot(w, w) + 2.0 * scale * dot(b, wa) + scale * scale * update).max(0.0).sqrt() as f32
    };
    Ok(w.par_chunks(inputs).zip(wa.par_chunks(rank)).zip(b.par_chunks(rank)).map(norm).collect())
}

/// x · y, summed in eight parts.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let (x, y) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut sums = [0f32; 8];
    for (x, y) in x.0.iter().zip(y.0) {
        sums.iter_mut().zip(x).zip(y).for_each(|((sum, x), y)| *sum += x * y);
    }
    let rest = x.1.iter().zip(y.1).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest
}

/// The operation: z (N, out) and m (out) → z ∘ m / norms.
pub struct Magnitude {
    /// Constants, (out).
    pub norms: Vec<f32>,
}

impl Magnitude {
    fn gains(&self, m: &[f32]) -> Vec<f32> {
        m.iter().zip(&self.norms).map(|(m, norm)| m / norm.max(f32::MIN_POSITIVE)).collect()
    }
}

/// Every row of x (N, out) multiplied with `gains` (out).
fn scaled(x: &[f32], gains: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    let rows = y.par_chunks_mut(gains.len()).zip(x.par_chunks(gains.len()));
    rows.with_min_len(16).for_each(|(y, x)| y.iter_mut().zip(x).zip(gains).for_each(|((y, x), gain)| *y = x * gain));
    y
}

impl CustomOp2 for Magnitude {
    fn name(&self) -> &'static str {
        "dora-magnitude"
    }

    fn cpu_fwd(&self, z: &CpuStorage, z_layout: &Layout, m: &CpuStorage, m_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (z, m) = (slice(z, z_layout)?, slice(m, m_layout)?);
        if m.len() != self.norms.len() {
            candle_core::bail!("{} magnitudes for {} outputs", m.len(), self.norms.len());
        }
        Ok((CpuStorage::F32(scaled(z, &self.gains(m))), z_layout.shape().clone()))
    }

    /// dz = dy ∘ m / norms, dm = Σ dy ∘ z / norms over the rows.
    fn bwd(&self, z: &Tensor, m: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dz = with_slice(m, |m| with_slice(grad, |grad| scaled(grad, &self.gains(m))))??;
        let dm = with_slice(z, |z| {
            with_slice(grad, |grad| {
                let width = self.norms.len();
                let mut sums = vec![0f32; width];
                for (z, grad) in z.chunks_exact(width).zip(grad.chunks_exact(width)) {
                    sums.iter_mut().zip(z).zip(grad).for_each(|((sum, z), grad)| *sum += z * grad);
                }
                sums.iter_mut().zip(&self.norms).for_each(|(sum, norm)| *sum /= norm.max(f32::MIN_POSITIVE));
                sums
            })
        })??;
        Ok((Some(tensor(dz, z.shape())?), Some(tensor(dm, m.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn norms_are_those_of_the_updated_weight() {
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let (w, a, b) = (wave(11 * 19, 0.3), wave(3 * 19, 0.7), wave(11 * 3, 0.9));
        let of = |values: &[f32], shape: (usize, usize)| Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor");
        let lora = Lora { a: of(&a, (3, 19)), b: of(&b, (11, 3)), scale: 1.5 };
        let found = row_norms(&of(&w, (11, 19)), &lora).expect("norms");
        for (o, found) in found.iter().enumerate() {
            let row = (0..19)
                .map(|i| f64::from(w[o * 19 + i]) + 1.5 * (0..3).map(|r| f64::from(b[o * 3 + r]) * f64::from(a[r * 19 + i])).sum::<f64>());
            let expected = row.map(|x| x * x).sum::<f64>().sqrt();
            assert!((f64::from(*found) - expected).abs() < 1e-5 * expected, "{o}: {found} against {expected}");
        }
        assert!(row_norms(&of(&w[..11 * 18], (11, 18)), &lora).is_err());
    }
}
