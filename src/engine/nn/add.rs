//! The residual addition, ours: candle's own elementwise operations wake a spinning thread pool beside rayon's, which on two cores took
//! a third of the processor while a model was running.

use super::slices::slice;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `a + b`, equal shapes, f32.
///
/// # Errors
/// When the shapes differ or a tensor is not f32 on the CPU.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2(b, Add)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        if a_layout.shape() != b_layout.shape() {
            candle_core::bail!("residual-add: shapes {:?} and {:?} differ", a_layout.shape(), b_layout.shape());
        }
        let (a, b) = (slice(a, a_layout)?, slice(b, b_layout)?);
        Ok((CpuStorage::F32(a.iter().zip(b).map(|(a, b)| a + b).collect()), a_layout.shape().clone()))
    }

    fn bwd(&self, _a: &Tensor, _b: &Tensor, _sum: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
