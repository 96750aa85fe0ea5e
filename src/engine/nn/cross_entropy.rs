//! Language-model head and cross-entropy in one operation, over labelled rows only and in blocks, so that the logits of a batch never
//! exist all at once. The gradient with respect to the hidden states is computed in the forward pass.

use super::gemm::{Matrix, Write, gemm};
use super::simd;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Mutex;

/// Rows whose logits exist at the same time: 128 × 49,152 × 4 bytes = 25 MB.
const BLOCK: usize = 128;

/// Sum of the cross-entropy over labelled rows, divided by `normaliser`.
///
/// `hidden` is (N, hidden), `head` (vocabulary, hidden); `labels` has one entry a row, `None` where the row does not count. With a
/// `normaliser` shared by several calls their losses add up to the mean over all of them (gradient accumulation).
///
/// # Errors
/// When shapes do not fit or a label is outside the vocabulary.
pub fn cross_entropy(hidden: &Tensor, head: &Tensor, labels: &[Option<u32>], normaliser: f32) -> Result<Tensor> {
    let rows = labelled_rows(labels, head.dim(0)?)?;
    let op = HeadCrossEntropy { head: head.clone(), rows, normaliser, gradient: Mutex::new(None) };
    hidden.contiguous()?.apply_op1(op)
}

/// The summed loss alone, without a gradient, for validation; returns (sum, labelled rows, rows whose arg max is the label).
///
/// # Errors
/// As [`cross_entropy`].
pub fn evaluate(hidden: &Tensor, head: &Tensor, labels: &[Option<u32>]) -> Result<(f64, usize, usize)> {
    let rows = labelled_rows(labels, head.dim(0)?)?;
    with_slice(hidden, |hidden| {
        with_slice(head, |head| {
            let width = hidden.len() / labels.len();
            let (mut sum, mut hits) = (0f64, 0);
            for block in rows.chunks(BLOCK) {
                let mut logits = logits(hidden, head, block, width).1;
                let vocabulary = head.len() / width;
                let each = logits.par_chunks_mut(vocabulary).zip(block).map(|(row, (_, label))| {
                    let target = row[*label];
                    let hit = row.iter().all(|x| *x <= target);
                    let (log_sum, max) = simd::softmax_stats(row);
                    (f64::from(log_sum + max - target), usize::from(hit))
                });
                let (loss, hit) = each.reduce(|| (0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                sum += loss;
                hits += hit;
            }
            (sum, rows.len(), hits)
        })
    })?
}

fn labelled_rows(labels: &[Option<u32>], vocabulary: usize) -> Result<Vec<(usize, usize)>> {
    let rows: Vec<_> = labels.iter().enumerate().filter_map(|(row, label)| label.map(|label| (row, label as usize))).collect();
    if let Some((row, label)) = rows.iter().find(|(_, label)| *label >= vocabulary) {
        candle_core::bail!("row {row} has label {label}, the vocabulary has {vocabulary} tokens");
    }
    Ok(rows)
}

/// Hidden states of a block's rows, and their logits.
fn logits(hidden: &[f32], head: &[f32], block: &[(usize, usize)], width: usize) -> (Vec<f32>, Vec<f32>) {
    let vocabulary = head.len() / width;
    let x: Vec<f32> = block.iter().flat_map(|(row, _)| hidden[row * width..][..width].iter().copied()).collect();
    let mut logits = vec![0f32; block.len() * vocabulary];
    gemm(&mut logits, Matrix::new(&x, block.len(), width), Matrix::new(head, vocabulary, width).t(), (Write::Set, 1.0), true);
    (x, logits)
}

struct HeadCrossEntropy {
    head: Tensor,
    /// (row, label)
    rows: Vec<(usize, usize)>,
    normaliser: f32,
    gradient: Mutex<Option<Vec<f32>>>,
}

impl CustomOp1 for HeadCrossEntropy {
    fn name(&self) -> &'static str {
        "head-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = slice(storage, layout)?;
        let width = layout.shape().dims2()?.1;
        let mut gradient = vec![0f32; hidden.len()];
        let loss = with_slice(&self.head, |head| {
            let vocabulary = head.len() / width;
            let mut loss = 0f64;
            for block in self.rows.chunks(BLOCK) {
                let (mut x, mut logits) = logits(hidden, head, block, width);
                let rows = logits.par_chunks_mut(vocabulary).zip(block);
                // The sum is taken in row order, so that it does not depend on which thread was first.
                let losses: Vec<f64> = rows
                    .map(|(row, (_, label))| {
                        let target = row[*label];
                        let (log_sum, max) = simd::softmax_stats(row);
                        row[*label] -= 1.0;
                        f64::from(log_sum + max - target)
                    })
                    .collect();
                loss += losses.iter().sum::<f64>();
                let probabilities = Matrix::new(&logits, block.len(), vocabulary);
                gemm(&mut x, probabilities, Matrix::new(head, vocabulary, width), (Write::Set, 1.0 / self.normaliser), true);
                for ((row, _), x) in block.iter().zip(x.chunks_exact(width)) {
                    gradient[row * width..][..width].copy_from_slice(x);
                }
            }
            loss
        })?;
        *self.gradient.lock().expect("no other thread holds the gradient: the op belongs to one graph") = Some(gradient);
        Ok((CpuStorage::F32(vec![(loss / f64::from(self.normaliser)) as f32]), Shape::from(())))
    }

    fn bwd(&self, hidden: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradient.lock().expect("as above").take();
        let Some(gradient) = gradient else { candle_core::bail!("head-cross-entropy: the backward pass ran twice") };
        let dx = tensor(gradient, hidden.shape())?;
        let scale = grad.to_scalar::<f32>()?;
        Ok(Some(if scale == 1.0 { dx } else { (dx * f64::from(scale))? }))
    }
}
