//! Frozen weights for the backward pass in 8 bits: g W, for gradients g rounded to bytes. Weight and gradient share a scale over spans of
//! a few hundred outputs, so that almost all of the work is products of bytes (as in Jetfire, Xi et al. 2024, arXiv 2403.12422, whose
//! blocks are square).
//!
//! Both are rounded to the nearest of 255 steps between the span's largest magnitude and its negative: an error of some 0.6 % of a typical
//! element where a span is like noise, and of 2 % of its length at most, whatever outlier it holds. Where most of a span is small beside one
//! element, as in the probabilities of a vocabulary, all of that would be lost in one direction; so what the rounding takes from the sum of a
//! span is given back, evenly to its outputs.

use super::dots::{BLOCK, Dots};
use super::huge::Buffer;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::panel::{Panel, Panels, ROWS};
use super::tiles::{Line, TILE};
use std::ops::Range;

/// Lines of a block of a tile: four outputs of sixteen inputs each.
const LINES: usize = BLOCK / 4;
/// Blocks that share a scale, at most.
const SPAN: usize = 8;

/// A weight (outputs, inputs), packed for g W: tiles of sixteen inputs, outputs in blocks of 32 along them.
#[derive(Debug)]
pub struct Transposed {
    inputs: usize,
    /// Blocks of outputs.
    blocks: usize,
    /// Blocks that share a scale.
    span: usize,
    /// For each tile, for each block, for each four outputs: sixteen inputs.
    lines: Buffer<Line>,
    /// For each tile, for each span: the scale, and the mean of the weight.
    scales: Buffer<[[f32; TILE]; 2]>,
}

impl Transposed {
    /// Rounds and packs a weight; `None` where its outputs are no whole blocks of 32.
    ///
    /// # Panics
    /// When the length does not fit: a programming error.
    pub fn pack(weight: &[f32], (outputs, inputs): (usize, usize)) -> Option<Self> {
        assert_eq!(weight.len(), outputs * inputs, "a weight of {outputs} by {inputs}");
        if outputs == 0 || !outputs.is_multiple_of(BLOCK) {
            return None;
        }
        let blocks = outputs / BLOCK;
        let span = (1..=SPAN.min(blocks)).rev().find(|span| blocks.is_multiple_of(*span))?;
        let tiles = inputs.div_ceil(TILE);
        let (mut lines, mut scales) = (Vec::with_capacity(tiles * blocks * LINES), Vec::with_capacity(tiles * (blocks / span)));
        for tile in 0..tiles {
            for rows in weight.chunks_exact(span * BLOCK * inputs) {
                pack_span(rows, inputs, tile * TILE, &mut lines, &mut scales);
            }
        }
        Some(Transposed { inputs, blocks, span, lines: Buffer::keep(&lines), scales: Buffer::keep(&scales) })
    }

    /// Outputs that share a scale: parts of a gradient begin at a multiple of it.
    pub fn span(&self) -> usize {
        self.span * BLOCK
    }

    /// Rounds rows of gradients (rows, width), `stride` apart, of `width` outputs: all of them, or some spans.
    pub fn round(&self, panels: &mut Panels, grad: &[f32], (stride, width): (usize, usize)) {
        panels.fill_spans(grad, (stride, width), self.span);
    }

    /// Writes g W to `dx` (rows, inputs), or adds it, by the calling thread; `panels` are the outputs from `first` on.
    ///
    /// # Panics
    /// When shapes do not fit: a programming error.
    pub fn product(&self, dx: &mut [f32], panels: &Panels, first: usize, add: bool) {
        self.by(Isa::best(), dx, panels, first, add);
    }

    fn by(&self, isa: Isa, dx: &mut [f32], panels: &Panels, first: usize, add: bool) {
        let range = first / BLOCK..first / BLOCK + panels.blocks;
        assert!(first.is_multiple_of(self.span()) && panels.blocks.is_multiple_of(self.span) && range.end <= self.blocks);
        assert_eq!(dx.len(), panels.rows * self.inputs, "gradients of another number of rows");
        tiles(isa, self, panels, range, (dx, add));
    }
}

/// Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number.
const ROUND: f32 = 12_582_912.0;

/// Sixteen inputs from `first` on of one span of outputs (outputs, inputs).
fn pack_span(rows: &[f32], inputs: usize, first: usize, lines: &mut Vec<Line>, scales: &mut Vec<[[f32; TILE]; 2]>) {
    let count = TILE.min(inputs - first);
    let (mut largest, mut sums) = ([0f32; TILE], [0f32; TILE]);
    for row in rows.chunks_exact(inputs) {
        for ((largest, sum), w) in largest.iter_mut().zip(&mut sums).zip(&row[first..first + count]) {
            *largest = largest.max(w.abs());
            *sum += w;
        }
    }
    let outputs = (rows.len() / inputs) as f32;
    // Below that the inverse is not finite; such a span is as good as zero.
    let inverse = largest.map(|largest| if largest > 1e-30 { 127.0 / largest } else { 0.0 });
    for four in rows.chunks_exact(4 * inputs) {
        let mut line = Line([128; 64]);
        for (k, row) in four.chunks_exact(inputs).enumerate() {
            for (lane, (w, inverse)) in row[first..first + count].iter().zip(&inverse).enumerate() {
                line.0[lane * 4 + k] = (w * inverse + ROUND - ROUND + 128.0) as u8;
            }
        }
        lines.push(line);
    }
    scales.push([largest.map(|largest| largest * (1.0 / 127.0)), sums.map(|sum| sum / outputs)]);
}

compiled! {
    /// All tiles of a weight, for a range of its blocks, and all rows.
    fn tiles(weight: &Transposed, panels: &Panels, blocks: Range<usize>, to: (&mut [f32], bool)) = tiles_body
}

#[inline(always)]
fn tiles_body<D: Dots>(weight: &Transposed, panels: &Panels, blocks: Range<usize>, (dx, add): (&mut [f32], bool)) {
    let (all, depth) = (weight.inputs.div_ceil(TILE), blocks.len());
    let weight = Packed { inputs: weight.inputs, blocks: weight.blocks, span: weight.span, lines: &weight.lines, scales: &weight.scales };
    let mut tile = 0;
    while tile < all {
        // Two tiles share the activations that are spread over a register, where there are registers for it.
        let together = if D::Floats::WIDE { (all - tile).min(2) } else { 1 };
        let mut group = 0;
        while group * ROWS < panels.rows {
            let part = &panels.panels[group * depth..(group + 1) * depth];
            let to = To { row: group * ROWS, rows: panels.rows, tile, add };
            if together == 2 {
                some::<D, 2>(weight, part, blocks.start, dx, to)
            } else {
                some::<D, 1>(weight, part, blocks.start, dx, to)
            }
            group += 1;
        }
        tile += together;
    }
}

/// A weight's own slices: a mapping is looked into by a call, before which every register would have to be saved.
#[derive(Clone, Copy)]
struct Packed<'a> {
    inputs: usize,
    blocks: usize,
    span: usize,
    lines: &'a [Line],
    scales: &'a [[[f32; TILE]; 2]],
}

/// Where the sums of some tiles and eight rows go.
#[derive(Clone, Copy)]
struct To {
    row: usize,
    rows: usize,
    tile: usize,
    add: bool,
}

/// `N` tiles and eight rows, for the blocks from `start` on.
#[inline(always)]
fn some<D: Dots, const N: usize>(weight: Packed<'_>, panels: &[Panel], start: usize, dx: &mut [f32], to: To) {
    let span = weight.span;
    let spans = weight.blocks / span;
    let mut totals = [[D::Floats::splat(0.0); N]; ROWS];
    let (mut b, mut s) = (0, start / span);
    while b < panels.len() {
        let sums = span_sums::<D, N>(weight, &panels[b..b + span], (to.tile, start + b));
        let mut n = 0;
        while n < N {
            let [scale, mean] = &weight.scales[(to.tile + n) * spans + s];
            let (scale, mean) = (D::Floats::load(scale), D::Floats::load(mean));
            let mut r = 0;
            while r < ROWS {
                let scale = scale.times(D::Floats::splat(panels[b].scales[r]));
                let total = totals[r][n].plus_product(scale, D::floats(sums[r][n]));
                totals[r][n] = total.plus_product(mean, D::Floats::splat(panels[b].totals[r]));
                r += 1;
            }
            n += 1;
        }
        (b, s) = (b + span, s + 1);
    }
    let mut r = 0;
    while r < ROWS && to.row + r < to.rows {
        let mut n = 0;
        while n < N {
            let (row, first) = ((to.row + r) * weight.inputs, (to.tile + n) * TILE);
            put(&mut dx[row + first..row + weight.inputs.min(first + TILE)], totals[r][n], to.add);
            n += 1;
        }
        r += 1;
    }
}

/// Sums of products of bytes over one span, for `N` tiles and eight rows; the block is the first of the span in the weight.
#[inline(always)]
fn span_sums<D: Dots, const N: usize>(weight: Packed<'_>, panels: &[Panel], (tile, block): (usize, usize)) -> [[D::Ints; N]; ROWS] {
    let mut sums = [[D::ints(0); N]; ROWS];
    let mut r = 0;
    while r < ROWS {
        sums[r] = [D::ints(-D::BYTE_OFFSET * panels[0].sums[r]); N];
        r += 1;
    }
    let mut b = 0;
    while b < panels.len() {
        let lines: [&[Line; LINES]; N] = lines_of(weight, tile, block + b);
        let mut g = 0;
        while g < LINES {
            let mut n = 0;
            let mut line = [D::bytes(&lines[0][g].0); N];
            while n < N {
                line[n] = D::bytes(&lines[n][g].0);
                n += 1;
            }
            let mut r = 0;
            while r < ROWS {
                let four = &panels[b].bytes[r].as_chunks::<4>().0[g];
                n = 0;
                while n < N {
                    sums[r][n] = D::plus_bytes(sums[r][n], line[n], four);
                    n += 1;
                }
                r += 1;
            }
            g += 1;
        }
        b += 1;
    }
    sums
}

/// One block of `N` tiles.
#[inline(always)]
fn lines_of<const N: usize>(weight: Packed<'_>, tile: usize, block: usize) -> [&[Line; LINES]; N] {
    let at = |n: usize| ((tile + n) * weight.blocks + block) * LINES;
    let mut lines = [weight.lines[at(0)..].first_chunk::<LINES>().expect("whole blocks"); N];
    let mut n = 1;
    while n < N {
        lines[n] = weight.lines[at(n)..].first_chunk::<LINES>().expect("whole blocks");
        n += 1;
    }
    lines
}

#[inline(always)]
fn put<L: Lanes>(out: &mut [f32], sums: L, add: bool) {
    if let Some(out) = out.as_mut_array::<LANES>() {
        let sums = if add { L::load(out).plus(sums) } else { sums };
        sums.store(out);
        return;
    }
    let mut all = [0f32; LANES];
    sums.store(&mut all);
    let mut i = 0;
    while i < out.len() {
        out[i] = if add { out[i] + all[i] } else { all[i] };
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    /// What a span is rounded to.
    fn rounded(values: &[f32]) -> Vec<f64> {
        let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        values.iter().map(|x| f64::from((x * (127.0 / largest)).round_ties_even()) * f64::from(largest / 127.0)).collect()
    }

    #[test]
    fn products_are_those_of_the_rounded_values_on_every_instruction_set() {
        for (rows, outputs, inputs) in [(1, 32, 16), (8, 96, 40), (9, 576, 33), (13, 416, 7)] {
            let (weight, grad) = (wave(outputs * inputs, 0.7), wave(rows * outputs, 0.31));
            let packed = Transposed::pack(&weight, (outputs, inputs)).expect("whole blocks");
            let span = packed.span();
            let column = |i: usize| (0..outputs).map(|o| weight[o * inputs + i]).collect::<Vec<f32>>();
            let spans = |values: &[f32]| values.chunks(span).flat_map(rounded).collect::<Vec<f64>>();
            let given_back = |w: &[f32], g: &[f32]| -> f64 {
                let sum = |values: &[f32]| values.iter().map(|x| f64::from(*x)).sum::<f64>();
                w.chunks(span).zip(g.chunks(span)).map(|(w, g)| sum(w) / w.len() as f64 * (sum(g) - rounded(g).iter().sum::<f64>())).sum()
            };
            for isa in Isa::available() {
                let mut panels = Panels::default();
                let mut dx = vec![1f32; rows * inputs];
                // The first span, then the rest: parts add up.
                for (first, width) in [(0, span), (span, outputs - span)].into_iter().filter(|(_, width)| *width > 0) {
                    panels.fill_spans(&grad[first..], (outputs, width), packed.span);
                    packed.by(isa, &mut dx, &panels, first, true);
                }
                for (row, grad) in grad.chunks_exact(outputs).enumerate() {
                    for i in 0..inputs {
                        let products = spans(&column(i)).iter().zip(spans(grad)).map(|(w, g)| w * g).sum::<f64>();
                        let plain = 1.0 + products + given_back(&column(i), grad);
                        let found = f64::from(dx[row * inputs + i]);
                        let close = (found - plain).abs() < 1e-4 * (outputs as f64).sqrt() * 49.0;
                        assert!(close, "{isa:?} ({rows}, {outputs}, {inputs}) at ({row}, {i}): {found} for {plain}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_many_small_elements_beside_a_large_one_are_not_lost() {
        // Probabilities of a vocabulary less one at the label, and embeddings that are not zero in the mean.
        let (outputs, inputs) = (2048, 32);
        let mut state = 9u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let weight: Vec<f32> = (0..outputs * inputs).map(|_| random() - 0.3).collect();
        let mut grad: Vec<f32> = (0..outputs).map(|_| (4.0 * random()).exp()).collect();
        let sum: f32 = grad.iter().sum();
        grad.iter_mut().for_each(|g| *g /= sum);
        grad[700] -= 1.0;
        let packed = Transposed::pack(&weight, (outputs, inputs)).expect("whole blocks");
        let (mut panels, mut dx) = (Panels::default(), vec![0f32; inputs]);
        packed.round(&mut panels, &grad, (outputs, outputs));
        packed.product(&mut dx, &panels, 0, false);
        let exact = |i: usize| (0..outputs).map(|o| f64::from(grad[o]) * f64::from(weight[o * inputs + i])).sum::<f64>();
        let length = |of: &dyn Fn(usize) -> f64| (0..inputs).map(|i| of(i).powi(2)).sum::<f64>().sqrt();
        let off = length(&|i| f64::from(dx[i]) - exact(i)) / length(&exact);
        assert!(off < 0.02, "off by {off}");
    }

    #[test]
    fn a_weight_of_broken_blocks_is_not_packed() {
        assert!(Transposed::pack(&wave(40 * 8, 0.7), (40, 8)).is_none());
    }
}
