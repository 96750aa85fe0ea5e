//! Activations as bytes: rows of floats, rounded to 8 bits for each block of 32 (symmetric, so that zero stays zero), in panels of eight
//! rows, so that a kernel reads eight rows through one pointer.

use super::dots::{BLOCK, Dots};
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;

/// Rows of a panel.
pub(super) const ROWS: usize = 8;

/// One block of 32 inputs of eight rows.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Panel {
    pub(super) bytes: [[i8; BLOCK]; ROWS],
    /// Activation = scale · byte.
    pub(super) scales: [f32; ROWS],
    /// Sums of the bytes.
    pub(super) sums: [i32; ROWS],
    /// scale · sum
    pub(super) totals: [f32; ROWS],
}

const EMPTY: Panel = Panel { bytes: [[0; BLOCK]; ROWS], scales: [0.0; ROWS], sums: [0; ROWS], totals: [0.0; ROWS] };

/// Rows of activations; the buffer is kept from step to step.
#[derive(Default)]
pub struct Panels {
    pub(super) panels: Vec<Panel>,
    /// Blocks of a row.
    pub(super) blocks: usize,
    pub(super) rows: usize,
}

impl Panels {
    /// Takes rows of `width` floats, a multiple of 32.
    pub fn fill(&mut self, x: &[f32], width: usize) {
        (self.blocks, self.rows) = (width / BLOCK, x.len() / width);
        let count = self.rows.div_ceil(ROWS) * self.blocks;
        if self.panels.len() < count {
            self.panels.resize(count, EMPTY);
        }
        let blocks = self.blocks;
        let isa = Isa::best();
        // Few rows are one panel, which is shared out by blocks.
        pool::chunks(&mut self.panels[..count], 1, x.len() / 4096, |first, panels| fill(isa, panels, x, (first, blocks)));
    }

    /// Takes rows of `width` floats, `stride` apart, by the calling thread. A scale and a sum reach over `span` blocks and stand in the
    /// first; its `totals` are what the rounding has taken from the sum of a span.
    pub(super) fn fill_spans(&mut self, x: &[f32], (stride, width): (usize, usize), span: usize) {
        (self.blocks, self.rows) = (width / BLOCK, (x.len() + stride - width) / stride);
        let count = self.rows.div_ceil(ROWS) * self.blocks;
        if self.panels.len() < count {
            self.panels.resize(count, EMPTY);
        }
        spans(Isa::best(), &mut self.panels[..count], x, (stride, width), span);
    }
}

compiled! {
    /// Fills panels of rows of `shape` (stride, width), with one scale for `span` blocks.
    fn spans(panels: &mut [Panel], x: &[f32], shape: (usize, usize), span: usize) = spans_body
}

#[inline(always)]
fn spans_body<D: Dots>(panels: &mut [Panel], x: &[f32], (stride, width): (usize, usize), span: usize) {
    let blocks = width / BLOCK;
    for (group, panels) in panels.chunks_exact_mut(blocks).enumerate() {
        for r in 0..ROWS {
            let Some(row) = x.get((group * ROWS + r) * stride..).and_then(|row| row.get(..width)) else { break };
            for (panels, x) in panels.chunks_exact_mut(span).zip(row.chunks_exact(span * BLOCK)) {
                round_span::<D>(panels, r, x);
            }
        }
    }
}

#[inline(always)]
fn round_span<D: Dots>(panels: &mut [Panel], row: usize, x: &[f32]) {
    let (lanes, _) = x.as_chunks::<LANES>();
    let (mut most, mut whole) = (D::Floats::splat(0.0), D::Floats::splat(0.0));
    let mut i = 0;
    while i < lanes.len() {
        let x = D::Floats::load(&lanes[i]);
        (most, whole) = (most.max(x.abs()), whole.plus(x));
        i += 1;
    }
    let largest = most.largest();
    let inverse = D::Floats::splat(inverse(largest));
    let (mut sum, mut b) = (0, 0);
    while b < panels.len() {
        let (low, high) = (D::Floats::load(&lanes[2 * b]), D::Floats::load(&lanes[2 * b + 1]));
        sum += D::rounded(low.times(inverse), high.times(inverse), &mut panels[b].bytes[row]);
        b += 1;
    }
    let scale = largest * (1.0 / 127.0);
    (panels[0].scales[row], panels[0].sums[row], panels[0].totals[row]) = (scale, sum, whole.sum() - scale * sum as f32);
}

/// Steps in one; below that of 1e-30 it is not finite, and such a block is as good as zero.
#[inline(always)]
fn inverse(largest: f32) -> f32 {
    if largest > 1e-30 { 127.0 / largest } else { 0.0 }
}

compiled! {
    /// Fills panels in the order (group of eight rows, block); `at` is the first one and the blocks of a row.
    fn fill(panels: &mut [Panel], x: &[f32], at: (usize, usize)) = fill_body
}

#[inline(always)]
fn fill_body<D: Dots>(mut panels: &mut [Panel], x: &[f32], (mut first, blocks): (usize, usize)) {
    let (all, _) = x.as_chunks::<BLOCK>();
    while !panels.is_empty() {
        // Blocks of one group of rows, row by row: that is how the floats lie.
        let (group, block) = (first / blocks, first % blocks);
        let count = panels.len().min(blocks - block);
        let (part, rest) = panels.split_at_mut(count);
        let rows = all[group * ROWS * blocks..].chunks(blocks).take(ROWS);
        for (r, row) in rows.enumerate() {
            for (panel, x) in part.iter_mut().zip(&row[block..]) {
                round_block::<D>(panel, r, x);
            }
        }
        (panels, first) = (rest, first + count);
    }
}

#[inline(always)]
fn round_block<D: Dots>(panel: &mut Panel, row: usize, x: &[f32; BLOCK]) {
    let (halves, _) = x.as_chunks::<LANES>();
    let (low, high) = (D::Floats::load(&halves[0]), D::Floats::load(&halves[1]));
    let largest = low.abs().max(high.abs()).largest();
    let inverse = D::Floats::splat(inverse(largest));
    let sum = D::rounded(low.times(inverse), high.times(inverse), &mut panel.bytes[row]);
    let scale = largest * (1.0 / 127.0);
    (panel.scales[row], panel.sums[row], panel.totals[row]) = (scale, sum, scale * sum as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_within_half_a_step_of_the_floats_on_every_instruction_set() {
        let (rows, blocks) = (11, 3);
        let width = blocks * BLOCK;
        let mut x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.731).sin() * (1.0 + (i / BLOCK) as f32)).collect();
        x[..BLOCK].fill(0.0);
        for isa in Isa::available() {
            let mut panels = vec![EMPTY; rows.div_ceil(ROWS) * blocks];
            // In two parts, as two threads would.
            let (first, second) = panels.split_at_mut(2);
            fill(isa, first, &x, (0, blocks));
            fill(isa, second, &x, (2, blocks));
            for (i, x) in x.iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let panel = &panels[row / ROWS * blocks + column / BLOCK];
                let (r, scale) = (row % ROWS, panel.scales[row % ROWS]);
                let found = scale * f32::from(panel.bytes[r][column % BLOCK]);
                assert!((found - x).abs() <= 0.5001 * scale, "{isa:?} ({row}, {column}): {found} for {x}");
                let sum: i32 = panel.bytes[r].iter().map(|x| i32::from(*x)).sum();
                assert_eq!((panel.sums[r], panel.totals[r]), (sum, scale * sum as f32), "{isa:?} row {row}");
                let largest = panel.bytes[r].iter().map(|x| x.unsigned_abs()).max();
                assert_eq!(largest, Some(if row == 0 && column < BLOCK { 0 } else { 127 }), "{isa:?} row {row}");
            }
        }
    }
}
