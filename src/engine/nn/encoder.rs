//! Operations of encoders (BERT, Devlin et al. 2018, arXiv 1810.04805), for inference only and over plain slices: rows of many texts lie one
//! behind the other, without padding, and each text is a range of rows.

use super::simd::{self, Affine};
use crate::engine::kernel::dense::{Finish, Packed, Rows, Weights};
use rayon::prelude::*;
use std::ops::Range;

/// A linear layer with a bias: y = x Wᵀ + b.
pub struct Dense {
    weight: Weights,
    bias: Vec<f32>,
}

impl Dense {
    /// From a weight (outputs, inputs) and a bias (outputs).
    ///
    /// # Panics
    /// When their lengths do not fit: a programming error.
    pub fn new(weight: &[f32], bias: Vec<f32>) -> Self {
        assert!(!bias.is_empty() && weight.len().is_multiple_of(bias.len()), "a weight of {} for {} outputs", weight.len(), bias.len());
        Dense { weight: Weights::new(weight, weight.len() / bias.len()), bias }
    }

    /// (rows, inputs) → (rows, outputs); `parallel` shares the work out in the current rayon pool.
    pub fn forward(&self, x: &[f32], parallel: bool) -> Vec<f32> {
        self.weight.product(x, Finish::Bias(&self.bias), parallel)
    }

    /// gelu(x Wᵀ + b), likewise.
    pub fn forward_gelu(&self, x: &[f32], parallel: bool) -> Vec<f32> {
        self.weight.product(x, Finish::Gelu(&self.bias), parallel)
    }
}

/// LayerNorm (Ba et al. 2016, arXiv 1607.06450).
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// From scale and shift (width) and ε.
    ///
    /// # Panics
    /// When their lengths differ: a programming error.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, epsilon: f32) -> Self {
        assert_eq!(weight.len(), bias.len(), "scale and shift of a norm");
        LayerNorm { weight, bias, epsilon }
    }

    /// The norm of `x + residual`, (rows, width), in the place of `x`.
    pub fn add(&self, x: &mut [f32], residual: &[f32]) {
        simd::layer_norm(x, residual, Affine { weight: &self.weight, bias: &self.bias, epsilon: self.epsilon });
    }
}

/// Widths of attention.
#[derive(Clone, Copy)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Elements of each.
    pub width: usize,
}

/// Attention of every row to all rows of its text: softmax(q kᵀ / √width) v for each head. `qkv` is (rows, 3 · heads · width), queries,
/// keys and values side by side; returns (rows, heads · width). `parallel` as in [`Dense::forward`].
pub fn attend_all(qkv: &[f32], texts: &[Range<usize>], heads: Heads, parallel: bool) -> Vec<f32> {
    let hidden = heads.count * heads.width;
    let mut out = vec![0f32; qkv.len() / 3];
    let head = |rows: &Range<usize>, head: usize, scratch: &mut Scratch| {
        scratch.attend(&qkv[rows.start * 3 * hidden..rows.end * 3 * hidden], heads, head)
    };
    for rows in texts.iter().filter(|rows| !rows.is_empty()) {
        let mut put = |head: usize, part: &[f32]| {
            for (row, part) in rows.clone().zip(part.chunks_exact(heads.width)) {
                out[row * hidden + head * heads.width..][..heads.width].copy_from_slice(part);
            }
        };
        if parallel {
            let parts: Vec<Scratch> = (0..heads.count)
                .into_par_iter()
                .map(|i| {
                    let mut scratch = Scratch::default();
                    head(rows, i, &mut scratch);
                    scratch
                })
                .collect();
            parts.iter().enumerate().for_each(|(i, scratch)| put(i, &scratch.out));
        } else {
            let mut scratch = Scratch::default();
            for i in 0..heads.count {
                head(rows, i, &mut scratch);
                put(i, &scratch.out);
            }
        }
    }
    out
}

/// Memory of one head's attention.
#[derive(Default)]
struct Scratch {
    packed: Packed,
    scores: Vec<f32>,
    /// (rows, width)
    out: Vec<f32>,
}

impl Scratch {
    /// One head of a text, `qkv` its rows.
    fn attend(&mut self, qkv: &[f32], heads: Heads, head: usize) {
        let (hidden, width) = (heads.count * heads.width, heads.width);
        let count = qkv.len() / (3 * hidden);
        let part = |which: usize| Rows { values: &qkv[which * hidden + head * width..], stride: 3 * hidden, count };
        self.scores.resize(count * count, 0.0);
        self.out.resize(count * width, 0.0);
        self.packed.columns(part(1), width);
        self.packed.product(&mut self.scores, count, part(0), Finish::Scale(1.0 / (width as f32).sqrt()));
        self.scores.chunks_exact_mut(count).for_each(simd::softmax);
        self.packed.rows(part(2), width);
        let weights = Rows { values: &self.scores, stride: count, count };
        self.packed.product(&mut self.out, width, weights, Finish::Scale(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn attention_stays_inside_a_text_and_equals_the_plain_formula() {
        let (heads, width, texts) = (2, 5, [0..3, 3..7]);
        let qkv = wave(7 * 3 * heads * width, 0.37);
        let out = attend_all(&qkv, &texts, Heads { count: heads, width }, false);
        assert_eq!(attend_all(&qkv, &texts, Heads { count: heads, width }, true), out);
        let at = |row: usize, which: usize, head: usize, i: usize| f64::from(qkv[row * 30 + which * 10 + head * width + i]);
        for rows in &texts {
            for (row, head) in rows.clone().flat_map(|row| [(row, 0), (row, 1)]) {
                let score = |other: usize| (0..width).map(|i| at(row, 0, head, i) * at(other, 1, head, i)).sum::<f64>() / 5f64.sqrt();
                let total: f64 = rows.clone().map(|other| score(other).exp()).sum();
                for i in 0..width {
                    let expected: f64 = rows.clone().map(|other| score(other).exp() / total * at(other, 2, head, i)).sum();
                    let found = f64::from(out[row * 10 + head * width + i]);
                    assert!((found - expected).abs() < 1e-5, "row {row}, head {head}, element {i}: {found} against {expected}");
                }
            }
        }
    }

    #[test]
    fn a_dense_layer_multiplies_and_adds() {
        let weight = wave(12, 0.5);
        let layer = Dense::new(&weight, vec![1.0, 2.0, 3.0]);
        for rows in [1, 7, 120] {
            let x = wave(rows * 4, 0.9);
            let y = layer.forward(&x, true);
            for (i, y) in y.iter().enumerate() {
                let (row, o) = (i / 3, i % 3);
                let expected = (0..4).map(|k| x[row * 4 + k] * weight[o * 4 + k]).sum::<f32>() + layer.bias[o];
                assert!((y - expected).abs() < 1e-5, "{rows} rows: ({row}, {o})");
            }
        }
    }
}
