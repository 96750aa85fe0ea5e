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

/// What a row should predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// The token.
    pub token: u32,
    /// Factor on the row's cross-entropy: 1 where all rows count alike. It may be negative: preference losses push some rows away.
    pub weight: f32,
}

impl Label {
    /// A label that counts once.
    pub fn once(token: u32) -> Self {
        Label { token, weight: 1.0 }
    }
}

/// Weighted sum of the cross-entropy over labelled rows, divided by `normaliser`.
///
/// `hidden` is (N, hidden), `head` (vocabulary, hidden); `labels` has one entry a row, `None` where the row does not count. With a
/// `normaliser` shared by several calls their losses add up to the mean over all of them (gradient accumulation).
///
/// # Errors
/// When shapes do not fit or a label is outside the vocabulary.
pub fn cross_entropy(hidden: &Tensor, head: &Tensor, labels: &[Option<Label>], normaliser: f32) -> Result<Tensor> {
    let rows = labelled_rows(labels, head.dim(0)?)?;
    let op = HeadCrossEntropy { head: head.clone(), rows, normaliser, gradient: Mutex::new(None) };
    hidden.contiguous()?.apply_op1(op)
}

/// A labelled row, measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The row.
    pub row: usize,
    /// Its weight.
    pub weight: f32,
    /// Its cross-entropy, nats, without the weight: minus the log probability of the label.
    pub loss: f64,
    /// Whether no token is likelier than the label.
    pub is_hit: bool,
}

/// The losses alone, without a gradient: one entry for each labelled row, in order.
///
/// # Errors
/// As [`cross_entropy`].
pub fn evaluate(hidden: &Tensor, head: &Tensor, labels: &[Option<Label>]) -> Result<Vec<Measured>> {
    let rows = labelled_rows(labels, head.dim(0)?)?;
    with_slice(hidden, |hidden| {
        with_slice(head, |head| {
            let width = hidden.len() / labels.len().max(1);
            let mut measured = Vec::with_capacity(rows.len());
            for block in rows.chunks(BLOCK) {
                let mut logits = logits(hidden, head, block, width).1;
                let vocabulary = head.len() / width;
                let each = logits.par_chunks_mut(vocabulary).zip(block).map(|(logits, &Row { row, token, weight })| {
                    let target = logits[token];
                    let is_hit = logits.iter().all(|x| *x <= target);
                    let (log_sum, max) = simd::softmax_stats(logits);
                    Measured { row, weight, loss: f64::from(log_sum + max - target), is_hit }
                });
                measured.extend(each.collect::<Vec<_>>());
            }
            measured
        })
    })?
}

/// A row with a label.
#[derive(Clone, Copy)]
struct Row {
    row: usize,
    token: usize,
    weight: f32,
}

fn labelled_rows(labels: &[Option<Label>], vocabulary: usize) -> Result<Vec<Row>> {
    let labelled = labels.iter().enumerate().filter_map(|(row, label)| label.map(|label| (row, label)));
    let rows: Vec<Row> = labelled.map(|(row, Label { token, weight })| Row { row, token: token as usize, weight }).collect();
    if let Some(Row { row, token, .. }) = rows.iter().find(|row| row.token >= vocabulary) {
        candle_core::bail!("row {row} has label {token}, the vocabulary has {vocabulary} tokens");
    }
    Ok(rows)
}

/// Hidden states of a block's rows, and their logits.
fn logits(hidden: &[f32], head: &[f32], block: &[Row], width: usize) -> (Vec<f32>, Vec<f32>) {
    let vocabulary = head.len() / width;
    let x: Vec<f32> = block.iter().flat_map(|row| hidden[row.row * width..][..width].iter().copied()).collect();
    let mut logits = vec![0f32; block.len() * vocabulary];
    gemm(&mut logits, Matrix::new(&x, block.len(), width), Matrix::new(head, vocabulary, width).t(), (Write::Set, 1.0), true);
    (x, logits)
}

struct HeadCrossEntropy {
    head: Tensor,
    rows: Vec<Row>,
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
                    .map(|(logits, row)| {
                        let target = logits[row.token];
                        let (log_sum, max) = simd::softmax_stats(logits);
                        logits[row.token] -= 1.0;
                        f64::from(row.weight) * f64::from(log_sum + max - target)
                    })
                    .collect();
                loss += losses.iter().sum::<f64>();
                let probabilities = Matrix::new(&logits, block.len(), vocabulary);
                gemm(&mut x, probabilities, Matrix::new(head, vocabulary, width), (Write::Set, 1.0 / self.normaliser), true);
                for (row, x) in block.iter().zip(x.chunks_exact(width)) {
                    let gradient = gradient[row.row * width..][..width].iter_mut();
                    gradient.zip(x).for_each(|(gradient, x)| *gradient = row.weight * x);
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
