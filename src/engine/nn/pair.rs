//! A low-rank pair in training, over rows of activations: both halves and both directions, by the calling thread alone. In bfloat16 its
//! halves are packed anew in every step, for they change.

use super::gemm::Write;
use super::linear::{Linear, Operand, transposed};
use super::simd;
use crate::engine::kernel::bf16::{Isa, Scratch, Source};

/// The pair of one linear layer, ready for products.
pub(super) struct Pair {
    rank: usize,
    scale: f32,
    /// A (rank, in).
    a: Vec<f32>,
    /// Bᵀ (rank, out).
    b: Vec<f32>,
    packed: Option<Packed>,
}

struct Packed {
    /// Aᵀ: x Aᵀ.
    down: Scratch,
    /// Bᵀ: h Bᵀ.
    up: Scratch,
    /// B: g B.
    back_up: Scratch,
    /// A: u A.
    back_down: Scratch,
}

impl Pair {
    /// From A (rank, in) and B (out, rank), for a layer.
    pub(super) fn new(a: &[f32], b: &[f32], (rank, scale): (usize, f32), layer: &Linear) -> Self {
        let packed = layer.isa().map(|isa| Packed::new(isa, a, b, rank));
        Pair { rank, scale, a: a.to_vec(), b: transposed(b, rank), packed }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// h (rows, rank) = scale · x Aᵀ.
    pub(super) fn down(&self, h: &mut Vec<f32>, x: Operand<'_>) {
        let panels = self.packed.as_ref().map(|packed| &packed.down);
        self.to_rank(h, x, &self.a, panels);
    }

    /// u (rows, rank) = scale · g B.
    pub(super) fn back_up(&self, u: &mut Vec<f32>, grad: Operand<'_>) {
        let panels = self.packed.as_ref().map(|packed| &packed.back_up);
        self.to_rank(u, grad, &self.b, panels);
    }

    /// y (rows, out) += h Bᵀ.
    pub(super) fn up(&self, y: &mut [f32], h: Operand<'_>) {
        match &self.packed {
            Some(packed) => h.times(&packed.up, y, Write::Add),
            None => simd::add_low_rank(y, h.values, &self.b, self.rank),
        }
    }

    /// dx (rows, in) += u A.
    pub(super) fn back_down(&self, dx: &mut [f32], u: Operand<'_>) {
        match &self.packed {
            Some(packed) => u.times(&packed.back_down, dx, Write::Add),
            None => simd::add_low_rank(dx, u.values, &self.a, self.rank),
        }
    }

    fn to_rank(&self, out: &mut Vec<f32>, x: Operand<'_>, half: &[f32], panels: Option<&Scratch>) {
        out.resize(x.rows() * self.rank, 0.0);
        match panels {
            Some(panels) => x.times(panels, out, Write::Set),
            None => simd::products_transposed(out, half, x.values, x.width),
        }
        out.iter_mut().for_each(|out| *out *= self.scale);
    }
}

impl Packed {
    fn new(isa: Isa, a: &[f32], b: &[f32], rank: usize) -> Self {
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let (a, b) = (Source { data: a, stride: inputs }, Source { data: b, stride: rank });
        let mut packed =
            Packed { down: Scratch::default(), up: Scratch::default(), back_up: Scratch::default(), back_down: Scratch::default() };
        packed.down.pack_columns_of_rows(isa, a, (inputs, rank));
        packed.up.pack_columns_of_rows(isa, b, (rank, outputs));
        packed.back_up.pack(isa, b, (outputs, rank));
        packed.back_down.pack(isa, a, (rank, inputs));
        packed
    }
}
