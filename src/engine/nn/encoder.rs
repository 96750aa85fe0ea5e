//! Operations of encoders (BERT, Devlin et al. 2018, arXiv 1810.04805), for inference only and over plain slices: rows of many texts lie one
//! behind the other, without padding, and each text is a range of rows.

use super::gemm::{Matrix, Write, gemm};
use super::linear::product;
use super::simd::{self, Affine};
use std::ops::Range;

/// A linear layer with a bias: y = x Wᵀ + b.
pub struct Dense {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Dense {
    /// From a weight (outputs, inputs) and a bias (outputs).
    ///
    /// # Panics
    /// When their lengths do not fit: a programming error.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>) -> Self {
        assert!(!bias.is_empty() && weight.len().is_multiple_of(bias.len()), "a weight of {} for {} outputs", weight.len(), bias.len());
        Dense { inputs: weight.len() / bias.len(), weight, bias }
    }

    /// (rows, inputs) → (rows, outputs).
    pub fn forward(&self, x: &[f32], parallel: bool) -> Vec<f32> {
        let mut y = self.product(x, parallel);
        simd::add_bias(&mut y, &self.bias);
        y
    }

    /// gelu(x Wᵀ + b).
    pub fn forward_gelu(&self, x: &[f32], parallel: bool) -> Vec<f32> {
        let mut y = self.product(x, parallel);
        simd::gelu_bias(&mut y, &self.bias);
        y
    }

    fn product(&self, x: &[f32], parallel: bool) -> Vec<f32> {
        product(x, &self.weight, (self.inputs, self.bias.len()), parallel)
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

/// Attention of every row to all rows of its text: softmax(q kᵀ / √width) v for each head. `qkv` is (rows, 3 · heads · width), queries,
/// keys and values side by side; returns (rows, heads · width).
pub fn attend_all(qkv: &[f32], texts: &[Range<usize>], heads: usize, width: usize) -> Vec<f32> {
    let hidden = heads * width;
    let stride = 3 * hidden;
    let mut out = vec![0f32; qkv.len() / 3];
    let (mut scores, mut part) = (Vec::new(), Vec::new());
    for rows in texts.iter().filter(|rows| !rows.is_empty()) {
        let t = rows.len();
        scores.resize(t * t, 0.0);
        part.resize(t * width, 0.0);
        let text = &qkv[rows.start * stride..rows.end * stride];
        for head in 0..heads {
            let view = |which: usize| Matrix::strided(&text[which * hidden + head * width..], t, width, stride);
            gemm(&mut scores, view(0), view(1).t(), (Write::Set, 1.0 / (width as f32).sqrt()), false);
            scores.chunks_exact_mut(t).for_each(simd::softmax);
            gemm(&mut part, Matrix::new(&scores, t, t), view(2), (Write::Set, 1.0), false);
            for (row, part) in rows.clone().zip(part.chunks_exact(width)) {
                out[row * hidden + head * width..][..width].copy_from_slice(part);
            }
        }
    }
    out
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
        let out = attend_all(&qkv, &texts, heads, width);
        let at = |row: usize, which: usize, head: usize, i: usize| f64::from(qkv[row * 30 + which * 10 + head * width + i]);
        for rows in &texts {
            for row in rows.clone() {
                for head in 0..heads {
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
    }

    #[test]
    fn a_dense_layer_multiplies_and_adds() {
        let layer = Dense::new(wave(12, 0.5), vec![1.0, 2.0, 3.0]);
        for rows in [1, 7, 120] {
            let x = wave(rows * 4, 0.9);
            let y = layer.forward(&x, true);
            for (i, y) in y.iter().enumerate() {
                let (row, o) = (i / 3, i % 3);
                let expected = (0..4).map(|k| x[row * 4 + k] * layer.weight[o * 4 + k]).sum::<f32>() + layer.bias[o];
                assert!((y - expected).abs() < 1e-5, "{rows} rows: ({row}, {o})");
            }
        }
    }
}
