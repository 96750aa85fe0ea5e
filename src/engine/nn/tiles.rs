//! Causal attention with grouped heads in training, for one sequence and one key head, in tiles of 64 queries by 64 keys of bfloat16
//! (Dao et al. 2022, arXiv 2205.14135): tiles above the diagonal are never computed, and the backward pass makes the probabilities
//! again from the logarithms of their sums. Its tiles are transposed, keys by queries, so that no product needs a transposition.

use super::simd;
use crate::engine::kernel::bf16::{Isa, Part, Rows, Scratch, Source, Target, product, product_part, round};

/// Queries and keys of a tile.
pub(super) const TILE: usize = 64;

/// Rotated keys and plain values of one head, (length, width) each.
#[derive(Clone, Copy)]
pub(super) struct KeysValues<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) width: usize,
    /// Positions that a query sees, its own among them.
    pub(super) window: usize,
}

/// Queries of one tile, rotated and scaled, (queries, width), from position `first` on.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) values: &'a [f32],
    pub(super) first: usize,
}

/// What a tile of queries got, and its gradient.
#[derive(Clone, Copy)]
pub(super) struct Attended<'a> {
    /// Logarithm of the sum of each query's exponentials.
    pub(super) log_sums: &'a [f32],
    /// output · gradient of each query.
    pub(super) inner: &'a [f32],
    /// Gradient of the output, (queries, width).
    pub(super) grad: &'a [f32],
}

/// Buffers that are used again.
#[derive(Default)]
pub(super) struct Forward {
    window: usize,
    keys: Scratch,
    values: Scratch,
    scores: Vec<f32>,
    pairs: Vec<u32>,
}

impl Forward {
    /// Packs keys and values of a sequence.
    pub(super) fn begin(&mut self, isa: Isa, head: KeysValues<'_>) {
        let (width, length) = (head.width, head.keys.len() / head.width);
        self.window = head.window;
        self.keys.pack_columns_of_rows(isa, Source { data: head.keys, stride: width }, (width, length));
        self.values.pack(isa, Source { data: head.values, stride: width }, (length, width));
    }

    /// Writes the output (queries, width) and the logarithm of each query's sum.
    pub(super) fn tile(&mut self, isa: Isa, queries: Queries<'_>, out: &mut [f32], log_sums: &mut [f32]) {
        let width = self.values.columns();
        let count = log_sums.len();
        let seen = queries.first + count;
        let left = rows(isa, &mut self.pairs, queries.values, width);
        self.scores.resize(count * seen, 0.0);
        let part = Part { columns: seen, first: 0, pairs: width.div_ceil(2) };
        product_part(isa, Target { data: &mut self.scores, stride: seen, add: false }, left, &self.keys, part);
        for (i, (row, log_sum)) in self.scores.chunks_exact_mut(seen).zip(log_sums).enumerate() {
            let (row, behind) = row.split_at_mut(queries.first + i + 1);
            let (before, row) = row.split_at_mut(row.len().saturating_sub(self.window));
            let (log, max) = simd::softmax_stats(row);
            *log_sum = log + max;
            before.fill(0.0);
            behind.fill(0.0);
        }
        let left = rows(isa, &mut self.pairs, &self.scores, seen);
        let part = Part { columns: width, first: 0, pairs: seen.div_ceil(2) };
        product_part(isa, Target { data: out, stride: width, add: false }, left, &self.values, part);
    }
}

/// Buffers that are used again, and the sums of the gradients of keys and values.
#[derive(Default)]
pub(super) struct Backward {
    width: usize,
    length: usize,
    window: usize,
    keys: Vec<u32>,
    values: Vec<u32>,
    /// Keys, transposed: (width, length).
    columns: Vec<u32>,
    /// Queries and gradients of a tile with columns for queries, and with the depth for queries.
    across: [Scratch; 2],
    along: [Scratch; 2],
    scores: Vec<f32>,
    grads: Vec<f32>,
    pairs: Vec<u32>,
    packed: Scratch,
    turned: Vec<f32>,
    /// Gradient of the rotated keys, (length, width).
    pub(super) dk: Vec<f32>,
    /// Gradient of the values, (length, width).
    pub(super) dv: Vec<f32>,
}

impl Backward {
    /// Rounds keys and values of a sequence and clears the sums.
    pub(super) fn begin(&mut self, isa: Isa, head: KeysValues<'_>) {
        (self.width, self.length, self.window) = (head.width, head.keys.len() / head.width, head.window);
        let (width, length) = (self.width, self.length);
        rows(isa, &mut self.keys, head.keys, width);
        rows(isa, &mut self.values, head.values, width);
        self.turned.resize(width * length, 0.0);
        for (t, key) in head.keys.chunks_exact(width).enumerate() {
            for (i, x) in key.iter().enumerate() {
                self.turned[i * length + t] = *x;
            }
        }
        rows(isa, &mut self.columns, &self.turned, length);
        for sum in [&mut self.dk, &mut self.dv] {
            sum.clear();
            sum.resize(width * length, 0.0);
        }
    }

    /// Adds a tile of queries to the sums and writes the gradient of its rotated, scaled queries, (queries, width).
    pub(super) fn tile(&mut self, isa: Isa, queries: Queries<'_>, attended: Attended<'_>, dq: &mut [f32]) {
        let (width, count) = (self.width, attended.log_sums.len());
        for (i, matrix) in [queries.values, attended.grad].into_iter().enumerate() {
            let source = Source { data: matrix, stride: width };
            self.across[i].pack_columns_of_rows(isa, source, (width, count));
            self.along[i].pack(isa, source, (count, width));
        }
        // Keys in front of the diagonal that the first query sees, tile by tile; `turned` is the gradient of the queries, transposed.
        self.turned.resize(width * count, 0.0);
        let nearest = (queries.first + 1).saturating_sub(self.window) / TILE * TILE;
        for first in (nearest..queries.first + count).step_by(TILE) {
            let keys = TILE.min(self.length - first).min(queries.first + count - first);
            self.probabilities(isa, (first, keys), queries.first, attended);
            let left = rows(isa, &mut self.pairs, &self.scores, count);
            let dv = &mut self.dv[first * width..(first + keys) * width];
            product(isa, Target { data: dv, stride: width, add: true }, left, &self.along[1]);
            let left = rows(isa, &mut self.pairs, &self.grads, count);
            let dk = &mut self.dk[first * width..(first + keys) * width];
            product(isa, Target { data: dk, stride: width, add: true }, left, &self.along[0]);
            self.packed.pack(isa, Source { data: &self.grads, stride: count }, (keys, count));
            let left = Rows { pairs: &self.columns[first / 2..], stride: self.length.div_ceil(2), count: width };
            let target = Target { data: &mut self.turned[..width * count], stride: count, add: first > nearest };
            product_part(isa, target, left, &self.packed, Part { columns: count, first: 0, pairs: keys.div_ceil(2) });
        }
        for (i, column) in self.turned[..width * count].chunks_exact(count).enumerate() {
            for (t, x) in column.iter().enumerate() {
                dq[t * width + i] = *x;
            }
        }
    }

    /// Probabilities and gradients of the scores of one tile, both (keys, queries).
    fn probabilities(&mut self, isa: Isa, (first, keys): (usize, usize), query: usize, attended: Attended<'_>) {
        let (half, count) = (self.width.div_ceil(2), attended.log_sums.len());
        for (i, (out, side)) in [(&mut self.scores, &self.keys), (&mut self.grads, &self.values)].into_iter().enumerate() {
            out.resize(keys * count, 0.0);
            let left = Rows { pairs: &side[first * half..], stride: half, count: keys };
            product(isa, Target { data: out, stride: count, add: false }, left, &self.across[i]);
        }
        simd::attention_tile(&mut self.scores, &mut self.grads, attended.log_sums, attended.inner);
        // Queries see neither keys behind them nor those that their window has passed.
        let rows = self.scores.chunks_exact_mut(count).zip(self.grads.chunks_exact_mut(count)).enumerate();
        for (key, (scores, grads)) in rows {
            let hidden = (first + key).saturating_sub(query).min(count);
            let passed = (first + key).saturating_add(self.window).saturating_sub(query).min(count);
            for row in [scores, grads] {
                row[..hidden].fill(0.0);
                row[passed..].fill(0.0);
            }
        }
    }
}

/// Rounds all rows of a matrix.
fn rows<'a>(isa: Isa, pairs: &'a mut Vec<u32>, matrix: &[f32], width: usize) -> Rows<'a> {
    let count = matrix.len() / width;
    pairs.resize(count * width.div_ceil(2), 0);
    round(isa, pairs, Source { data: matrix, stride: width }, (count, width), 1.0);
    Rows { pairs, stride: width.div_ceil(2), count }
}
