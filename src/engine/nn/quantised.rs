//! A frozen weight that stays as the file has it while an adapter is trained on it (QLoRA, Dettmers et al. 2023, arXiv 2305.14314). Forwards
//! the product of serving reads it as it is; backwards it is dequantised for as long as its layer is gone through, and then thrown away.

use super::gemm::{Matrix, Write, gemm};
use super::linear::Operand;
use crate::engine::kernel::bf16::{self, Frozen as Panels, Isa};
use crate::engine::kernel::panel::Panels as Bytes;
use crate::engine::kernel::product::{self as served, Input};
use crate::engine::kernel::tiles;
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// Outputs that are dequantised together, an even number: the f32 values of no more are there at once.
const PIECE: usize = 1024;

/// The weight.
#[derive(Debug)]
pub(super) struct Quantised {
    isa: Option<Isa>,
    weight: Arc<tiles::Weight>,
    held: Mutex<Option<Arc<Vec<Piece>>>>,
}

/// Some of its outputs, for g W.
#[derive(Debug)]
enum Piece {
    Half(Panels),
    Full(Vec<f32>),
}

impl Quantised {
    pub(super) fn new(weight: Arc<tiles::Weight>) -> Self {
        Quantised { isa: Isa::detect(), weight, held: Mutex::default() }
    }

    /// The instructions for rounded values, where there are some.
    pub(super) fn isa(&self) -> Option<Isa> {
        self.isa
    }

    /// Whether the input of a product is rounded to bytes.
    pub(super) fn takes_bytes(&self) -> bool {
        self.weight.takes_bytes()
    }

    /// Dequantises it until it is released.
    pub(super) fn hold(&self) {
        let pieces = Arc::new(self.pieces());
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(pieces);
    }

    /// Throws the dequantised values away.
    pub(super) fn release(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn held(&self) -> Arc<Vec<Piece>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.unwrap_or_else(|| Arc::new(self.pieces()))
    }

    fn pieces(&self) -> Vec<Piece> {
        let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
        let piece = |first: usize| {
            let count = PIECE.min(outputs - first);
            let mut values = vec![0f32; count * inputs];
            values.chunks_exact_mut(inputs).enumerate().for_each(|(row, out)| self.weight.row(first + row, out));
            match self.isa {
                Some(isa) => Piece::Half(Panels::backward(isa, &values, (count, inputs))),
                None => Piece::Full(values),
            }
        };
        (0..outputs.div_ceil(PIECE)).into_par_iter().map(|i| piece(i * PIECE)).collect()
    }

    /// y (rows, out) [+]= x Wᵀ, by the calling thread.
    pub(super) fn forward(&self, y: &mut [f32], x: Operand<'_>, write: Write) {
        let none = Bytes::default();
        let write = if write == Write::Add { served::Write::Add } else { served::Write::Set };
        served::product(y, Input { floats: x.values, bytes: x.bytes().unwrap_or(&none) }, &[&self.weight], write);
    }

    /// dx (rows, in) [+]= g W, by the calling thread; g is rounded piece by piece into `scratch`.
    pub(super) fn backward(&self, dx: &mut [f32], grad: &[f32], write: Write, scratch: &mut Vec<u32>) {
        let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
        let rows = grad.len() / outputs;
        for (i, piece) in self.held().iter().enumerate() {
            let first = i * PIECE;
            let count = PIECE.min(outputs - first);
            let add = i > 0 || write == Write::Add;
            match piece {
                Piece::Half(panels) => {
                    let Some(isa) = self.isa else { continue };
                    let stride = count.div_ceil(2);
                    scratch.resize(rows * stride, 0);
                    bf16::round(isa, scratch, bf16::Source { data: &grad[first..], stride: outputs }, (rows, count), 1.0);
                    let left = bf16::Rows { pairs: scratch, stride, count: rows };
                    bf16::product(isa, bf16::Target { data: dx, stride: inputs, add }, left, panels);
                }
                Piece::Full(values) => {
                    let left = Matrix::part(grad, (rows, count), first, outputs);
                    let write = if add { Write::Add } else { Write::Set };
                    gemm(dx, left, Matrix::new(values, count, inputs), (write, 1.0), false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_product_with_its_values_in_both_directions() {
        // More outputs than a piece, and not a multiple of anything.
        let (outputs, inputs, rows) = (PIECE + 37, 24, 5);
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let (w, x, g) = (wave(outputs * inputs, 0.37), wave(rows * inputs, 0.11), wave(rows * outputs, 0.23));
        let weight = Arc::new(tiles::Weight::exact(&w, (outputs, inputs), &|row| row));
        for isa in [Isa::detect(), None] {
            let quantised = Quantised { isa, weight: weight.clone(), held: Mutex::default() };
            for is_held in [false, true] {
                if is_held {
                    quantised.hold();
                }
                let (mut y, mut dx) = (vec![1f32; rows * outputs], vec![1f32; rows * inputs]);
                quantised.forward(&mut y, Operand::new(None, &x, inputs, &mut Vec::new()), Write::Add);
                quantised.backward(&mut dx, &g, Write::Add, &mut Vec::new());
                for r in 0..rows {
                    for o in [0, 1, PIECE, outputs - 1] {
                        let sum: f32 = (0..inputs).map(|i| x[r * inputs + i] * w[o * inputs + i]).sum();
                        assert!((y[r * outputs + o] - 1.0 - sum).abs() < 1e-4);
                    }
                    for i in 0..inputs {
                        let sum: f32 = (0..outputs).map(|o| g[r * outputs + o] * w[o * inputs + i]).sum();
                        // bfloat16 keeps eight bits of each of the thousand factors.
                        assert!((dx[r * inputs + i] - 1.0 - sum).abs() < 0.3, "{} {sum}", dx[r * inputs + i]);
                    }
                }
            }
            quantised.release();
        }
    }
}
