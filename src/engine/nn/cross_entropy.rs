//! Language-model head and cross-entropy in one operation, over labelled rows only and in blocks, so that the logits of a batch never
//! exist all at once. The gradient with respect to the hidden states is computed in the forward pass.

use super::gemm::{Matrix, Write, gemm};
use super::linear::{Linear, Operand, Rounding, Threads};
use super::simd;
use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

/// Rows whose logits exist at the same time: 128 × 49,152 × 4 bytes = 25 MB. All threads work on them; with a rounded head each thread has
/// a block of [`ROWS`] to itself.
const BLOCK: usize = 128;
const ROWS: usize = 64;

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
pub fn cross_entropy(hidden: &Tensor, head: &Linear, labels: &[Option<Label>], normaliser: f32) -> Result<Tensor> {
    let rows = labelled_rows(labels, head.widths().1)?;
    let op = HeadCrossEntropy { head: head.clone(), rows, normaliser, gradient: Mutex::new(None) };
    match head.variable() {
        Some(weight) => hidden.contiguous()?.apply_op2(weight, TrainedHead { op, gradient: Mutex::new(None) }),
        None => hidden.contiguous()?.apply_op1(op),
    }
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
pub fn evaluate(hidden: &Tensor, head: &Linear, labels: &[Option<Label>]) -> Result<Vec<Measured>> {
    let rows = labelled_rows(labels, head.widths().1)?;
    with_slice(hidden, |hidden| {
        let measured = in_blocks(head, &rows, |block, buffers| {
            logits(hidden, head, block, buffers)?;
            let measure = |logits: &mut [f32], &Row { row, token, weight }: &Row| {
                let target = logits[token];
                let is_hit = logits.iter().all(|x| *x <= target);
                let (sum, max) = simd::exponentials(logits);
                Measured { row, weight, loss: f64::from(sum.ln() + max - target), is_hit }
            };
            Ok(each_row(head, buffers, block, measure))
        })?;
        Ok(measured.into_iter().flatten().collect())
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

/// Buffers of a block of rows.
#[derive(Default)]
struct Buffers {
    hidden: Vec<f32>,
    logits: Vec<f32>,
    rounding: Rounding,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Calls `f` with blocks of rows, in order or, with a rounded head, on all threads, and returns what it gives in order.
fn in_blocks<R: Send>(head: &Linear, rows: &[Row], f: impl Fn(&[Row], &mut Buffers) -> Result<R> + Sync) -> Result<Vec<R>> {
    // Taken away while they are used: a thread that waits inside a block may be given another one.
    let with_buffers = |block: &[Row]| {
        let mut buffers = BUFFERS.take();
        let result = f(block, &mut buffers);
        BUFFERS.set(buffers);
        result
    };
    match head.isa() {
        Some(_) => rows.par_chunks(ROWS).with_max_len(1).map(with_buffers).collect(),
        None => rows.chunks(BLOCK).map(with_buffers).collect(),
    }
}

/// The logits of a block's rows.
fn logits(hidden: &[f32], head: &Linear, block: &[Row], buffers: &mut Buffers) -> Result<()> {
    let (width, vocabulary) = head.widths();
    let Buffers { hidden: x, logits, rounding, .. } = buffers;
    x.clear();
    block.iter().for_each(|row| x.extend_from_slice(&hidden[row.row * width..][..width]));
    logits.resize(block.len() * vocabulary, 0.0);
    head.forward(logits, Operand::forward(std::slice::from_ref(head), x, rounding), Write::Set, Threads::All)
}

/// Calls `f` with the logits of each row: here, or on all threads where they have no other blocks.
fn each_row<R: Send>(head: &Linear, buffers: &mut Buffers, block: &[Row], f: impl Fn(&mut [f32], &Row) -> R + Sync) -> Vec<R> {
    let vocabulary = head.widths().1;
    match head.isa() {
        Some(_) => buffers.logits.chunks_exact_mut(vocabulary).zip(block).map(|(logits, row)| f(logits, row)).collect(),
        None => buffers.logits.par_chunks_mut(vocabulary).zip(block).map(|(logits, row)| f(logits, row)).collect(),
    }
}

struct HeadCrossEntropy {
    head: Linear,
    rows: Vec<Row>,
    normaliser: f32,
    gradient: Mutex<Option<Vec<f32>>>,
}

impl HeadCrossEntropy {
    /// The loss; keeps the gradient of the hidden states (N, width), and adds that of the head, if it is asked for.
    fn compute(&self, hidden: &[f32], width: usize, head: Option<&Mutex<Vec<f32>>>) -> Result<f32> {
        self.head.hold();
        // Sums are taken in row order, so that they do not depend on which thread was first.
        let blocks = in_blocks(&self.head, &self.rows, |block, buffers| {
            logits(hidden, &self.head, block, buffers)?;
            // The gradient of a row is taken times the sum of its exponentials, which saves a walk through its logits.
            let rows = each_row(&self.head, buffers, block, |logits, row| {
                let target = logits[row.token];
                let (sum, max) = simd::exponentials(logits);
                logits[row.token] -= sum;
                (f64::from(row.weight) * f64::from(sum.ln() + max - target), row.weight / self.normaliser / sum)
            });
            let mut dx = vec![0f32; block.len() * width];
            self.head.backward_wide(&mut dx, &buffers.logits, &mut buffers.rounding)?;
            for (dx, (_, scale)) in dx.chunks_exact_mut(width).zip(&rows) {
                dx.iter_mut().for_each(|dx| *dx *= scale);
            }
            if let Some(head) = head {
                let scales = rows.iter().map(|(_, scale)| *scale);
                self.add_head_gradient(&mut head.lock().unwrap_or_else(PoisonError::into_inner), scales, buffers);
            }
            Ok((rows.iter().map(|(loss, _)| loss).sum::<f64>(), dx))
        });
        self.head.release();
        let blocks = blocks?;
        let loss: f64 = blocks.iter().map(|(loss, _)| loss).sum();
        let mut gradient = vec![0f32; hidden.len()];
        for (row, dx) in self.rows.iter().zip(blocks.iter().flat_map(|(_, dx)| dx.chunks_exact(width))) {
            gradient[row.row * width..][..width].copy_from_slice(dx);
        }
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradient);
        Ok((loss / f64::from(self.normaliser)) as f32)
    }

    /// dW += gᵀ x, for the gradients of a block's logits, once they are multiplied with the scale of their row.
    fn add_head_gradient(&self, sum: &mut [f32], scales: impl ExactSizeIterator<Item = f32>, buffers: &mut Buffers) {
        let ((width, vocabulary), count) = (self.head.widths(), scales.len());
        for (logits, scale) in buffers.logits.chunks_exact_mut(vocabulary).zip(scales) {
            logits.iter_mut().for_each(|x| *x *= scale);
        }
        let (grad, x) = (Matrix::new(&buffers.logits, count, vocabulary), Matrix::new(&buffers.hidden, count, width));
        gemm(sum, grad.t(), x, (Write::Add, 1.0), true);
    }

    /// The gradient of the hidden states, times that of the loss.
    fn backward(&self, hidden: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner).take();
        scaled(gradient, hidden, grad)
    }
}

/// A gradient that was computed in the forward pass, times that of the loss.
fn scaled(gradient: Option<Vec<f32>>, of: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let Some(gradient) = gradient else { candle_core::bail!("head-cross-entropy: the backward pass ran twice") };
    let dx = tensor(gradient, of.shape())?;
    let scale = grad.to_scalar::<f32>()?;
    if scale == 1.0 { Ok(dx) } else { dx * f64::from(scale) }
}

impl CustomOp1 for HeadCrossEntropy {
    fn name(&self) -> &'static str {
        "head-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let loss = self.compute(slice(storage, layout)?, layout.shape().dims2()?.1, None)?;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, hidden: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.backward(hidden, grad).map(Some)
    }
}

/// The same under a head that is trained itself.
struct TrainedHead {
    op: HeadCrossEntropy,
    gradient: Mutex<Option<Vec<f32>>>,
}

impl CustomOp2 for TrainedHead {
    fn name(&self) -> &'static str {
        "trained-head-cross-entropy"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout, _: &CpuStorage, head_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sum = Mutex::new(vec![0f32; head_layout.shape().elem_count()]);
        let loss = self.op.compute(slice(hidden, layout)?, layout.shape().dims2()?.1, Some(&sum))?;
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(sum.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, hidden: &Tensor, head: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((Some(self.op.backward(hidden, grad)?), Some(scaled(gradient, head, grad)?)))
    }
}
