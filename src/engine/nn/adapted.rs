//! A frozen linear layer under an adapter in training, with all that an adapter may have beside its pair: dropout on its input, and DoRA's
//! magnitudes. The plain case is one operation of [`linear`](super::linear).

use super::add::add;
use super::dora::{Magnitude, row_norms};
use super::dropout::Dropout;
use super::gemm::{Matrix, Write, gemm};
use super::linear::{Linear, Lora};
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// What an adapter has beside its pair.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Dropout on the input of the low-rank part.
    pub dropout: Option<Dropout>,
    /// DoRA's magnitudes (out).
    pub magnitude: Option<&'a Tensor>,
}

/// (N, in) → (N, out): g ∘ (x Wᵀ + scale · (x̃ Aᵀ) Bᵀ), where x̃ is x after dropout and g is DoRA's m / ‖W + scale · B A‖ or 1.
///
/// # Errors
/// When shapes do not fit.
pub fn adapted(linear: &Linear, x: &Tensor, lora: &Lora, extras: Extras<'_>) -> Result<Tensor> {
    let z = match extras.dropout {
        None => linear.train(x, Some(lora))?,
        Some(dropout) => {
            let update = dropout.apply(x)?.apply_op3(&lora.a, &lora.b, Update { scale: lora.scale })?;
            add(&linear.train(x, None)?, &update)?
        }
    };
    match extras.magnitude {
        None => Ok(z),
        Some(m) => z.apply_op2(m, Magnitude { norms: row_norms(linear.weight()?, lora)? }),
    }
}

/// The low-rank part alone: scale · (x Aᵀ) Bᵀ for x (N, in), A (rank, in) and B (out, rank).
struct Update {
    scale: f32,
}

/// alpha · a b.
fn times(a: Matrix<'_>, b: Matrix<'_>, length: usize, alpha: f32) -> Vec<f32> {
    let mut c = vec![0f32; length];
    gemm(&mut c, a, b, (Write::Set, alpha), true);
    c
}

impl CustomOp3 for Update {
    fn name(&self) -> &'static str {
        "low-rank-update"
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
        let (rows, inputs) = x_layout.shape().dims2()?;
        let ((rank, _), outputs) = (a_layout.shape().dims2()?, b_layout.shape().dims2()?.0);
        let (x, a, b) = (slice(x, x_layout)?, slice(a, a_layout)?, slice(b, b_layout)?);
        let h = times(Matrix::new(x, rows, inputs), Matrix::new(a, rank, inputs).t(), rows * rank, self.scale);
        let y = times(Matrix::new(&h, rows, rank), Matrix::new(b, outputs, rank).t(), rows * outputs, 1.0);
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }

    /// With h = s · x Aᵀ and u = s · g B: dx = u A, dA = uᵀ x, dB = gᵀ h.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), (outputs, rank)) = (x.dims2()?, b.dims2()?);
        let gradients = |x: &[f32], a: &[f32], b: &[f32], g: &[f32]| {
            let (x, a) = (Matrix::new(x, rows, inputs), Matrix::new(a, rank, inputs));
            let (b, g) = (Matrix::new(b, outputs, rank), Matrix::new(g, rows, outputs));
            let h = times(x, a.t(), rows * rank, self.scale);
            let u = times(g, b, rows * rank, self.scale);
            let (h, u) = (Matrix::new(&h, rows, rank), Matrix::new(&u, rows, rank));
            (times(u, a, rows * inputs, 1.0), times(u.t(), x, rank * inputs, 1.0), times(g.t(), h, outputs * rank, 1.0))
        };
        let (dx, da, db) = with_slice(x, |x| with_slice(a, |a| with_slice(b, |b| with_slice(grad, |grad| gradients(x, a, b, grad)))))????;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
