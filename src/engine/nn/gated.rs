//! Gated feed-forward parts (Shazeer 2020, arXiv 2002.05202): SwiGLU, silu(gate) · up, and GEGLU, gelu(gate) · up.

use super::simd;
use super::slices::{slice, tensor, with_slice};
use crate::engine::kernel::rows::Gate;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

const BLOCK: usize = 8192;

/// The operation: gate (N, inner), up (N, inner) → (N, inner).
pub struct Gated(pub Gate);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gate_layout: &Layout, up: &CpuStorage, up_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut y = vec![0f32; gate.len()];
        let gated = match self.0 {
            Gate::Silu => simd::swiglu,
            Gate::GeluTanh => simd::geglu,
        };
        y.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK)).for_each(|((y, gate), up)| gated(y, gate, up));
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = match self.0 {
            Gate::Silu => simd::swiglu_backward,
            Gate::GeluTanh => simd::geglu_backward,
        };
        let (mut dgate, mut dup) = (with_slice(gate, <[f32]>::to_vec)?, with_slice(up, <[f32]>::to_vec)?);
        with_slice(grad, |grad| {
            let blocks = dgate.par_chunks_mut(BLOCK).zip(dup.par_chunks_mut(BLOCK)).zip(grad.par_chunks(BLOCK));
            blocks.for_each(|((gate, up), grad)| backward(gate, up, grad));
        })?;
        Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
    }
}
