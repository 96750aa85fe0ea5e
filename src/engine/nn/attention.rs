//! Rotary position embedding and causal attention with grouped heads (Ainslie et al. 2023, arXiv 2305.13245) in training, over rows of many
//! sequences: no padding, a sequence is a range of rows. The backward pass recomputes the probabilities instead of keeping them.

use super::gemm::{Matrix, Write, gemm};
use super::rope::Rope;
use super::simd;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

pub use crate::engine::kernel::attend::Heads;

/// The operation: q (N, query width), k and v (N, key width), not rotated; rows of one sequence are contiguous.
#[derive(Clone)]
pub struct TrainAttention {
    /// What is multiplied with what.
    pub scores: Scores,
    /// Rotary tables.
    pub rope: Arc<Rope>,
    /// Row ranges of the sequences.
    pub sequences: Arc<Vec<Range<usize>>>,
}

/// How queries meet keys.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    /// Head counts.
    pub heads: Heads,
    /// Factor on the scores.
    pub scale: f32,
    /// Positions that a query sees, its own among them.
    pub window: usize,
}

impl Scores {
    /// Every position before, scaled with 1 / √width.
    pub fn plain(heads: Heads) -> Self {
        Scores { heads, scale: heads.scale(), window: usize::MAX }
    }

    /// Keys that query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        (i + 1).saturating_sub(self.window)..i + 1
    }
}

impl TrainAttention {
    /// Copies one head of a sequence to (T, width), rotated when asked.
    fn gather(&self, x: &[f32], rows: &Range<usize>, (head, heads): (usize, usize), rotate: bool) -> Vec<f32> {
        let width = self.scores.heads.width;
        let mut out = Vec::with_capacity(rows.len() * width);
        for row in rows.clone() {
            out.extend_from_slice(&x[(row * heads + head) * width..][..width]);
        }
        if rotate {
            for (position, row) in out.chunks_exact_mut(width).enumerate() {
                self.rope.rotate(row, position);
            }
        }
        out
    }

    fn tasks(&self) -> Vec<(usize, usize)> {
        (0..self.sequences.len()).flat_map(|s| (0..self.scores.heads.keys).map(move |h| (s, h))).collect()
    }

    fn backward_head(&self, (s, head): (usize, usize), q: &[f32], k: &[f32], v: &[f32], grad: &[f32]) -> HeadGradients {
        let (rows, width, heads) = (&self.sequences[s], self.scores.heads.width, self.scores.heads);
        let t = rows.len();
        let keys = self.gather(k, rows, (head, heads.keys), true);
        let values = self.gather(v, rows, (head, heads.keys), false);
        let (mut dk, mut dv) = (vec![0f32; t * width], vec![0f32; t * width]);
        let mut dq = Vec::with_capacity(heads.group());
        for g in 0..heads.group() {
            let query_head = (head * heads.group() + g, heads.queries);
            let query = self.gather(q, rows, query_head, true);
            let grad = self.gather(grad, rows, query_head, false);
            let mut d = vec![0f32; t * width];
            attend_backward(self.scores, [&query, &keys, &values], &grad, [&mut d, &mut dk, &mut dv]);
            self.unrotate(&mut d);
            dq.push(d);
        }
        self.unrotate(&mut dk);
        HeadGradients { dq, dk, dv }
    }

    fn unrotate(&self, rows: &mut [f32]) {
        for (position, row) in rows.chunks_exact_mut(self.scores.heads.width).enumerate() {
            self.rope.rotate_back(row, position);
        }
    }

    /// Writes (T, width) back to one head of a sequence.
    fn scatter(&self, out: &mut [f32], part: &[f32], rows: &Range<usize>, (head, heads): (usize, usize)) {
        let width = self.scores.heads.width;
        for (row, part) in rows.clone().zip(part.chunks_exact(width)) {
            out[(row * heads + head) * width..][..width].copy_from_slice(part);
        }
    }
}

/// Causal softmax(q kᵀ · scale), (T, T), for one head of one sequence, (T, width).
fn probabilities(scores: Scores, q: &[f32], k: &[f32]) -> Vec<f32> {
    let width = scores.heads.width;
    let t = q.len() / width;
    let mut p = vec![0f32; t * t];
    gemm(&mut p, Matrix::new(q, t, width), Matrix::new(k, t, width).t(), (Write::Set, scores.scale), false);
    for (i, row) in p.chunks_exact_mut(t).enumerate() {
        let seen = scores.seen(i);
        simd::softmax(&mut row[seen.clone()]);
        hide(row, seen);
    }
    p
}

/// Sets what a query does not see to zero.
fn hide(row: &mut [f32], seen: Range<usize>) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
}

/// The output of one head of one sequence, in f32: rotated q and k, and v, (T, width) each.
pub(super) fn attend(scores: Scores, [q, k, v]: [&[f32]; 3], out: &mut [f32]) {
    let width = scores.heads.width;
    let t = q.len() / width;
    let p = probabilities(scores, q, k);
    gemm(out, Matrix::new(&p, t, t), Matrix::new(v, t, width), (Write::Set, 1.0), false);
}

/// The gradients of [`attend`]: sets that of q, adds to those of k and v.
pub(super) fn attend_backward(scores: Scores, [q, k, v]: [&[f32]; 3], grad: &[f32], [dq, dk, dv]: [&mut [f32]; 3]) {
    let width = scores.heads.width;
    let t = q.len() / width;
    let p = probabilities(scores, q, k);
    let mut dp = vec![0f32; t * t];
    gemm(dv, Matrix::new(&p, t, t).t(), Matrix::new(grad, t, width), (Write::Add, 1.0), false);
    gemm(&mut dp, Matrix::new(grad, t, width), Matrix::new(v, t, width).t(), (Write::Set, 1.0), false);
    for (i, (dp, p)) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)).enumerate() {
        let seen = scores.seen(i);
        simd::softmax_backward(&mut dp[seen.clone()], &p[seen.clone()], scores.scale);
        hide(dp, seen);
    }
    gemm(dq, Matrix::new(&dp, t, t), Matrix::new(k, t, width), (Write::Set, 1.0), false);
    gemm(dk, Matrix::new(&dp, t, t).t(), Matrix::new(q, t, width), (Write::Add, 1.0), false);
}

/// Bytes that the operation takes for sequences of up to so many tokens beside what comes in and goes out: in every working thread the
/// probabilities of one head and on the way back their gradient, (T, T) each.
pub fn scratch_bytes(longest: usize) -> u64 {
    let square = (longest as u64).saturating_mul(longest as u64);
    square.saturating_mul(2 * size_of::<f32>() as u64).saturating_mul(rayon::current_num_threads() as u64)
}

struct HeadGradients {
    /// One (T, width) for each query head of the group.
    dq: Vec<Vec<f32>>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl CustomOp3 for TrainAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let (heads, width) = (self.scores.heads, self.scores.heads.width);
        let one = |(s, head): &(usize, usize)| -> Vec<Vec<f32>> {
            let rows = &self.sequences[*s];
            let t = rows.len();
            let (keys, values) = (self.gather(k, rows, (*head, heads.keys), true), self.gather(v, rows, (*head, heads.keys), false));
            let attend = |g: usize| {
                let query = self.gather(q, rows, (head * heads.group() + g, heads.queries), true);
                let mut out = vec![0f32; t * width];
                attend(self.scores, [&query, &keys, &values], &mut out);
                out
            };
            (0..heads.group()).map(attend).collect()
        };
        let tasks = self.tasks();
        let parts: Vec<_> = tasks.par_iter().map(one).collect();
        let mut y = vec![0f32; q.len()];
        for ((s, head), parts) in tasks.into_iter().zip(parts) {
            for (g, part) in parts.iter().enumerate() {
                self.scatter(&mut y, part, &self.sequences[s], (head * heads.group() + g, heads.queries));
            }
        }
        Ok((CpuStorage::F32(y), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let heads = self.scores.heads;
        let tasks = self.tasks();
        let parts: Vec<HeadGradients> = with_slice(q, |q| {
            with_slice(k, |k| {
                with_slice(v, |v| with_slice(grad, |grad| tasks.par_iter().map(|task| self.backward_head(*task, q, k, v, grad)).collect()))
            })
        })????;
        let (mut dq, mut dk, mut dv) = (vec![0f32; q.elem_count()], vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        for ((s, head), part) in tasks.into_iter().zip(parts) {
            let rows = &self.sequences[s];
            for (g, d) in part.dq.iter().enumerate() {
                self.scatter(&mut dq, d, rows, (head * heads.group() + g, heads.queries));
            }
            self.scatter(&mut dk, &part.dk, rows, (head, heads.keys));
            self.scatter(&mut dv, &part.dv, rows, (head, heads.keys));
        }
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}
