//! Low-rank updates of adapters at serving: y += (x Aᵀ) Bᵀ, each range of rows through its own adapter. Both halves read each of an
//! adapter's values once for a row.
//!
//! With few rows the work is part of the [product](super::product) with the frozen weights, on the same threads: first x Aᵀ, shared out
//! by rows and ranks; then the frozen product, while the values of Bᵀ and of the next A are fetched; then, when every thread has done the
//! first, Bᵀ for the outputs that a thread has just computed.
#![expect(unsafe_code, reason = "threads write disjoint rows, or disjoint columns of the same rows")]

use super::bf16::Line;
use super::dots::Dots;
use super::fetch::Fetch;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::low_rank::{GROUP, Group, INPUTS, LAYERS, Lines, LowRank, Shape, groups, together};
use super::pool::{self, Meeting};
use super::shared::Shared;
use std::ops::Range;

/// Rows for each thread from which on they are shared out, rather than their outputs.
const MANY: usize = 2;

/// The adapters of a step, as one group of layers meets them.
#[derive(Clone, Copy)]
pub struct Updates<'a> {
    /// Rows of the step and their adapter; no row stands in two of them.
    pub adapted: &'a [(Range<usize>, &'a LowRank)],
    /// The group of layers, counted through all blocks.
    pub group: usize,
    /// Which row of the step is the first that is computed.
    pub first: usize,
}

/// Some rows that are computed, and what is added to them.
struct Own<'a> {
    rows: Range<usize>,
    group: &'a Group,
    lines: Lines<'a>,
}

impl<'a> Updates<'a> {
    /// Those of `rows`, counted from the first that is computed, that go through adapter `index`, if it adapts that group of layers.
    #[inline(always)]
    fn own(&self, index: usize, group: usize, rows: &Range<usize>) -> Option<Own<'a>> {
        let (range, adapter) = &self.adapted[index];
        let start = range.start.saturating_sub(self.first).max(rows.start);
        let end = range.end.saturating_sub(self.first).min(rows.end);
        if start >= end || group >= adapter.groups.len() {
            return None;
        }
        let group = &adapter.groups[group];
        if group.rank() == 0 {
            return None;
        }
        Some(Own { rows: start..end, group, lines: adapter.lines(group.start) })
    }
}

/// A thread's part of something that is counted in whole.
#[derive(Clone)]
pub(super) struct Share {
    pub(super) part: Range<usize>,
    pub(super) of: usize,
}

/// What is to be added to rows y (rows, width) for x (rows, inputs), by several threads.
pub(super) struct Task<'a> {
    updates: Updates<'a>,
    shape: Shape,
    rows: usize,
    x: &'a [f32],
    y: Shared<'a, f32>,
    /// x Aᵀ (rows, stride), stride being the largest rank.
    h: Shared<'a, f32>,
    stride: usize,
}

impl<'a> Task<'a> {
    /// `None` where no row has an adapter. `scratch` is kept from call to call.
    ///
    /// # Panics
    /// When an adapter was packed for layers of another shape, or lengths do not fit: a programming error.
    pub(super) fn new(y: Shared<'a, f32>, shape: Shape, x: &'a [f32], updates: Updates<'a>, scratch: &'a mut Vec<f32>) -> Option<Self> {
        let rows = x.len() / shape.inputs;
        let (mut stride, mut any) = (0, false);
        for index in 0..updates.adapted.len() {
            any |= updates.adapted[index].0.end > updates.first;
            let Some(own) = updates.own(index, updates.group, &(0..rows)) else { continue };
            // Which columns a thread may write to is told by the shape.
            assert_eq!(own.group.shape, shape, "an adapter of layers of another shape");
            stride = stride.max(own.group.rank());
        }
        if !any {
            return None;
        }
        if scratch.len() < rows * stride {
            scratch.resize(rows * stride, 0.0);
        }
        Some(Task { updates, shape, rows, x, y, h: Shared::new(scratch), stride })
    }

    /// x Aᵀ, a thread's share of the work.
    pub(super) fn down(&self, isa: Isa, share: &Share) {
        let mut units = 0;
        for index in 0..self.updates.adapted.len() {
            if let Some(own) = self.updates.own(index, self.updates.group, &(0..self.rows)) {
                units += own.rows.len() * groups(own.group.rank());
            }
        }
        downs(isa, self, 0..self.rows, units * share.part.start / share.of..units * share.part.end / share.of);
    }

    /// Adds to all rows, when x Aᵀ is there: columns of some sixteens of outputs.
    pub(super) fn up(&self, isa: Isa, chunks: Range<usize>) {
        ups(isa, self, 0..self.rows, chunks);
    }

    /// Both halves of some rows.
    pub(super) fn both(&self, isa: Isa, rows: Range<usize>) {
        downs(isa, self, rows.clone(), 0..usize::MAX);
        ups(isa, self, rows, 0..usize::MAX);
    }

    /// Memory that a thread reads after the product with the frozen weights, of whose tiles it has a share.
    pub(super) fn ask(&self, fetch: &mut Fetch, share: &Share) {
        for index in 0..self.updates.adapted.len() {
            let Some(own) = self.updates.own(index, self.updates.group, &(0..self.rows)) else { continue };
            let (mut line, mut before) = (own.group.down(), 0);
            for (rank, outputs) in own.group.ranks.iter().zip(own.group.shape.outputs) {
                let (all, each) = (outputs.div_ceil(LANES), rank.div_ceil(2));
                let (start, end) = (share.part.start.saturating_sub(before).min(all), share.part.end.saturating_sub(before).min(all));
                fetch.add(own.lines.addresses(line + start * each..line + end * each));
                (before, line) = (before + all, line + all * each);
            }
        }
        // The beginning of the next group of layers: its down projections, a thread's share of them.
        let rows = self.rows * share.part.start / share.of..(self.rows * share.part.end).div_ceil(share.of);
        for index in 0..self.updates.adapted.len() {
            if let Some(own) = self.updates.own(index, self.updates.group + 1, &rows) {
                fetch.add(own.lines.addresses(0..own.group.down()));
            }
        }
    }
}

/// Adds each adapter's update to its rows of `y` (rows, sum of the outputs), for rows `x` (rows, inputs). `scratch` is kept from call to
/// call.
///
/// # Panics
/// When an adapter was packed for layers of another shape: a programming error.
pub fn add(y: &mut [f32], shape: Shape, x: &[f32], updates: Updates<'_>, scratch: &mut Vec<f32>) {
    assert_eq!(x.len() / shape.inputs * shape.width(), y.len(), "rows of another shape");
    let Some(task) = Task::new(Shared::new(y), shape, x, updates, scratch) else { return };
    let (isa, chunks) = (Isa::best(), shape.chunks());
    if task.rows >= MANY * pool::threads() {
        pool::ranges(task.rows, usize::MAX, |rows| task.both(isa, rows));
        return;
    }
    let meeting = Meeting::default();
    pool::ranges(chunks, usize::MAX, |part| {
        let share = Share { part, of: chunks };
        meeting.after(share.part.len(), || task.down(isa, &share));
        meeting.wait(chunks);
        task.up(isa, share.part);
    });
}

compiled! {
    /// x Aᵀ of some rows; of the units of work (rows, groups of ranks) those in `units`.
    fn downs(task: &Task<'_>, rows: Range<usize>, units: Range<usize>) = downs_body
}
compiled! {
    /// Adds h Bᵀ to some rows, in the columns of some sixteens of outputs.
    fn ups(task: &Task<'_>, rows: Range<usize>, chunks: Range<usize>) = ups_body
}

#[inline(always)]
fn downs_body<D: Dots>(task: &Task<'_>, rows: Range<usize>, units: Range<usize>) {
    let (mut index, mut unit) = (0, 0);
    while index < task.updates.adapted.len() {
        let own = task.updates.own(index, task.updates.group, &rows);
        index += 1;
        let Some(own) = own else { continue };
        let (rank, inputs) = (own.group.rank(), own.group.shape.inputs);
        let all = groups(rank);
        let mut row = own.rows.start;
        while row < own.rows.end {
            let start = units.start.saturating_sub(unit).min(all);
            let end = units.end.saturating_sub(unit).min(all);
            if start < end {
                let x = &task.x[row * inputs..(row + 1) * inputs];
                let at = Down { task, row, rank, start, end };
                match own.lines {
                    Lines::Half(lines) => down::<D::Floats, Line>(at, x, lines),
                    Lines::Full(lines) => down::<D::Floats, [[f32; LANES]; 2]>(at, x, lines),
                }
            }
            (unit, row) = (unit + all, row + 1);
        }
    }
}

/// Groups of ranks of a row, from `start` to `end`.
#[derive(Clone, Copy)]
struct Down<'a> {
    task: &'a Task<'a>,
    row: usize,
    /// All of them.
    rank: usize,
    start: usize,
    end: usize,
}

/// A line of an adapter: two registers.
trait Element: Copy {
    fn lanes<L: Lanes>(&self) -> [L; 2];
}

impl Element for Line {
    #[inline(always)]
    fn lanes<L: Lanes>(&self) -> [L; 2] {
        L::load_bf16_pairs(&self.0)
    }
}

impl Element for [[f32; LANES]; 2] {
    #[inline(always)]
    fn lanes<L: Lanes>(&self) -> [L; 2] {
        [L::load(&self[0]), L::load(&self[1])]
    }
}

#[inline(always)]
fn down<L: Lanes, T: Element>(at: Down<'_>, x: &[f32], lines: &[T]) {
    let each = x.len().div_ceil(INPUTS);
    let (mut rank, mut group) = (0, 0);
    while group < at.end {
        let together = together(rank, at.rank);
        if group >= at.start {
            // SAFETY: each (row, group of ranks) is written by the one thread that has this unit of work, or the row.
            let h = unsafe { at.task.h.part(at.row * at.task.stride + rank, together) };
            let lines = &lines[rank * each..(rank + together) * each];
            match together {
                GROUP => dots::<L, T, GROUP>(h, x, lines),
                4 => dots::<L, T, 4>(h, x, lines),
                2 => dots::<L, T, 2>(h, x, lines),
                _ => dots::<L, T, 1>(h, x, lines),
            }
        }
        (rank, group) = (rank + together, group + 1);
    }
}

#[inline(always)]
fn dots<L: Lanes, T: Element, const G: usize>(h: &mut [f32], x: &[f32], lines: &[T]) {
    let (lines, whole) = (lines.as_chunks::<G>().0, x.len() / INPUTS);
    let (lanes, _) = x.as_chunks::<LANES>();
    assert!(lanes.len() >= 2 * whole && lines.len() >= x.len().div_ceil(INPUTS) && h.len() == G);
    let mut sums = [L::splat(0.0); G];
    // By index, here and below: zipped iterators were seen to become calls without the instruction set.
    let mut i = 0;
    while i < whole {
        add_products(&mut sums, [L::load(&lanes[2 * i]), L::load(&lanes[2 * i + 1])], &lines[i]);
        i += 1;
    }
    if whole * INPUTS < x.len() {
        let mut last = [0f32; INPUTS];
        last[..x.len() - whole * INPUTS].copy_from_slice(&x[whole * INPUTS..]);
        let (last, _) = last.as_chunks::<LANES>();
        add_products(&mut sums, [L::load(&last[0]), L::load(&last[1])], &lines[whole]);
    }
    let mut g = 0;
    while g < G {
        h[g] = sums[g].sum();
        g += 1;
    }
}

#[inline(always)]
fn add_products<L: Lanes, T: Element, const G: usize>(sums: &mut [L; G], x: [L; 2], lines: &[T; G]) {
    let mut g = 0;
    while g < G {
        let [first, second] = lines[g].lanes::<L>();
        sums[g] = sums[g].plus_product(x[0], first).plus_product(x[1], second);
        g += 1;
    }
}

#[inline(always)]
fn ups_body<D: Dots>(task: &Task<'_>, rows: Range<usize>, chunks: Range<usize>) {
    let mut index = 0;
    while index < task.updates.adapted.len() {
        let own = task.updates.own(index, task.updates.group, &rows);
        index += 1;
        let Some(own) = own else { continue };
        match own.lines {
            Lines::Half(lines) => up::<D::Floats, Line>(task, &own, lines, &chunks),
            Lines::Full(lines) => up::<D::Floats, [[f32; LANES]; 2]>(task, &own, lines, &chunks),
        }
    }
}

#[inline(always)]
fn up<L: Lanes, T: Element>(task: &Task<'_>, own: &Own<'_>, lines: &[T], chunks: &Range<usize>) {
    let width = task.shape.width();
    let mut row = own.rows.start;
    while row < own.rows.end {
        let (mut layer, mut line, mut before, mut column, mut first) = (0, own.group.down(), 0, 0, 0);
        while layer < LAYERS {
            let (rank, outputs) = (own.group.ranks[layer], own.group.shape.outputs[layer]);
            let (all, each) = (outputs.div_ceil(LANES), rank.div_ceil(2));
            let start = chunks.start.saturating_sub(before).min(all);
            let end = chunks.end.saturating_sub(before).min(all);
            if rank > 0 && start < end {
                let (from, to) = (start * LANES, (end * LANES).min(outputs));
                // SAFETY: threads have different rows, or else different columns: those of their tiles, as the shape is everybody's.
                let y = unsafe { task.y.part(row * width + column + from, to - from) };
                // SAFETY: written before the meeting, or by this thread.
                let h = unsafe { task.h.read(row * task.stride + first, rank) };
                let lines = &lines[line + start * each..line + end * each];
                match rank {
                    8 => add_ranks::<L, T, 4>(y, h, lines),
                    16 => add_ranks::<L, T, 8>(y, h, lines),
                    _ => add_any::<L, T>(y, h, lines),
                }
            }
            (before, line, column, first, layer) = (before + all, line + all * each, column + outputs, first + rank, layer + 1);
        }
        row += 1;
    }
}

/// y += hᵀ b for `2 · N` ranks.
#[inline(always)]
fn add_ranks<L: Lanes, T: Element, const N: usize>(y: &mut [f32], h: &[f32], lines: &[T]) {
    let lines = lines.as_chunks::<N>().0;
    let mut factors = [[L::splat(0.0); 2]; N];
    let mut n = 0;
    while n < N {
        factors[n] = [L::splat(h[2 * n]), L::splat(h[2 * n + 1])];
        n += 1;
    }
    let (whole, rest) = y.as_chunks_mut::<LANES>();
    assert!(lines.len() >= whole.len() + rest.len().min(1));
    let mut i = 0;
    while i < whole.len() {
        ranks_added(L::load(&whole[i]), &factors, &lines[i]).store(&mut whole[i]);
        i += 1;
    }
    if !rest.is_empty() {
        let mut lanes = [0f32; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        ranks_added(L::load(&lanes), &factors, &lines[i]).store(&mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

#[inline(always)]
fn ranks_added<L: Lanes, T: Element, const N: usize>(y: L, factors: &[[L; 2]; N], lines: &[T; N]) -> L {
    let (mut sum, mut n) = (y, 0);
    while n < N {
        let [first, second] = lines[n].lanes::<L>();
        sum = sum.plus_product(factors[n][0], first).plus_product(factors[n][1], second);
        n += 1;
    }
    sum
}

/// y += hᵀ b for any number of ranks, in the same order.
#[inline(always)]
fn add_any<L: Lanes, T: Element>(y: &mut [f32], h: &[f32], lines: &[T]) {
    let each = h.len().div_ceil(2);
    let (whole, rest) = y.as_chunks_mut::<LANES>();
    let mut i = 0;
    while i < whole.len() {
        any_added(L::load(&whole[i]), h, &lines[i * each..(i + 1) * each]).store(&mut whole[i]);
        i += 1;
    }
    if !rest.is_empty() {
        let mut lanes = [0f32; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        any_added(L::load(&lanes), h, &lines[i * each..(i + 1) * each]).store(&mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

#[inline(always)]
fn any_added<L: Lanes, T: Element>(y: L, h: &[f32], lines: &[T]) -> L {
    let (mut sum, mut n) = (y, 0);
    while 2 * n + 1 < h.len() {
        let [first, second] = lines[n].lanes::<L>();
        sum = sum.plus_product(L::splat(h[2 * n]), first).plus_product(L::splat(h[2 * n + 1]), second);
        n += 1;
    }
    if 2 * n < h.len() {
        sum = sum.plus_product(L::splat(h[2 * n]), lines[n].lanes::<L>()[0]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernel::low_rank::{Pair, Precision};
    use crate::engine::kernel::pool::Pool;
    use proptest::prelude::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// The halves of a layer's pair and its factor.
    type Halves = (Vec<f32>, Vec<f32>, f32);

    /// An adapter for two groups of layers of a shape: the first one is not what is tested.
    struct Made {
        layers: [Option<Halves>; LAYERS],
        packed: LowRank,
    }

    fn pair(layer: &Option<Halves>) -> Option<Pair<'_>> {
        layer.as_ref().map(|(a, b, scale)| Pair { a, b, scale: *scale })
    }

    const OTHER: Shape = Shape { inputs: 40, outputs: [20, 0, 0] };

    fn made(shape: Shape, ranks: [usize; LAYERS], seed: f32, precision: Precision) -> Made {
        let layer = |i: usize| {
            let rank = ranks[i];
            let step = seed + i as f32 * 0.11;
            let values = || (wave(rank * shape.inputs, 0.7 * step), wave(shape.outputs[i] * rank, 0.9 * step), 0.5 + step);
            (rank > 0 && shape.outputs[i] > 0).then(values)
        };
        let layers: [Option<Halves>; LAYERS] = std::array::from_fn(layer);
        let mut packed = LowRank::with_room(OTHER.lines([3, 0, 0]) + shape.lines(ranks), precision);
        packed.push(OTHER, [Some(Pair { a: &wave(3 * 40, 0.1), b: &wave(20 * 3, 0.2), scale: 1.0 }), None, None]);
        packed.push(shape, [pair(&layers[0]), pair(&layers[1]), pair(&layers[2])]);
        Made { layers, packed }
    }

    impl Made {
        /// What it adds to a row, and how large the terms are.
        fn update(&self, shape: Shape, x: &[f32]) -> Vec<(f64, f64)> {
            let mut all = Vec::new();
            for (layer, outputs) in self.layers.iter().zip(shape.outputs) {
                let Some((a, b, scale)) = layer else {
                    all.extend(vec![(0.0, 0.0); outputs]);
                    continue;
                };
                let dot = |a: &[f32]| x.iter().zip(a).map(|(x, a)| f64::from(*x) * f64::from(*a)).sum::<f64>();
                let h: Vec<f64> = a.chunks(shape.inputs).map(dot).collect();
                for b in b.chunks(h.len()) {
                    let terms = || h.iter().zip(b).map(|(h, b)| h * f64::from(*b) * f64::from(*scale));
                    all.push((terms().sum(), f64::from(*scale) * h.len() as f64 * shape.inputs as f64));
                }
            }
            all
        }
    }

    fn added(isa: Isa, shape: Shape, x: &[f32], adapted: &[(Range<usize>, &LowRank)], first: usize, parts: usize) -> Vec<f32> {
        let mut y = vec![1.0; x.len() / shape.inputs * shape.width()];
        let mut scratch = Vec::new();
        let updates = Updates { adapted, group: 1, first };
        let shared = Shared::new(&mut y);
        if let Some(task) = Task::new(shared, shape, x, updates, &mut scratch) {
            if parts == 0 {
                task.both(isa, 0..task.rows);
            }
            let part = |i: usize| Share { part: shape.chunks() * i / parts..shape.chunks() * (i + 1) / parts, of: shape.chunks() };
            (0..parts).for_each(|i| task.down(isa, &part(i)));
            (0..parts).for_each(|i| task.up(isa, part(i).part));
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
        #[test]
        fn each_row_gets_its_own_adapters_update(
            inputs in 1usize..100, outputs in prop::array::uniform3(0usize..50), own in prop::array::uniform3(0usize..20),
            rank in 1usize..40, rows in 1usize..12, first in 0usize..4, parts in 0usize..4,
        ) {
            let shape = Shape { inputs, outputs: [outputs[0] + 1, outputs[1], outputs[2]] };
            let x = wave(rows * inputs, 0.31);
            for (precision, off) in [(Precision::Full, 1e-6), (Precision::Half, 1e-2)] {
                let (one, other) = (made(shape, own, 0.3, precision), made(shape, [rank, 0, rank], 0.4, precision));
                // Rows of the step, whose row `first` is the first here: some of the first adapter, one of none, the rest of the other.
                let (some, end) = (first + rows / 2, first + rows);
                let adapted = [(0..some, &one.packed), ((some + 1).min(end)..end, &other.packed)];
                for isa in Isa::available() {
                    let y = added(isa, shape, &x, &adapted, first, parts);
                    for (row, (x, y)) in x.chunks(inputs).zip(y.chunks(shape.width())).enumerate() {
                        let of = if first + row < some { Some(&one) } else if first + row == some { None } else { Some(&other) };
                        let update = of.map_or_else(|| vec![(0.0, 0.0); y.len()], |of| of.update(shape, x));
                        for (column, (y, (update, terms))) in y.iter().zip(update).enumerate() {
                            let error = (f64::from(*y) - 1.0 - update).abs();
                            prop_assert!(error <= off * terms + 1e-6 * update.abs(), "{precision:?} {isa:?} ({row}, {column}): {y} for 1 + {update}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others_and_with_any_number_of_threads() {
        let shape = Shape { inputs: 72, outputs: [40, 33, 16] };
        let rows = 23;
        let x = wave(rows * shape.inputs, 0.31);
        for precision in [Precision::Full, Precision::Half] {
            let (one, other) = (made(shape, [8, 3, 0], 0.3, precision), made(shape, [16, 5, 24], 0.4, precision));
            let adapted = [(0..9, &one.packed), (10..rows, &other.packed)];
            let together = |threads: usize| {
                let mut y = vec![1.0; rows * shape.width()];
                let updates = Updates { adapted: &adapted, group: 1, first: 0 };
                Pool::new(threads).expect("a pool").install(|| add(&mut y, shape, &x, updates, &mut Vec::new()));
                y
            };
            let all = together(1);
            assert!(together(3) == all && together(40) == all, "{precision:?} depends on the threads");
            assert!(added(Isa::best(), shape, &x, &adapted, 0, 3) == all, "{precision:?} depends on how the work is shared out");
            for row in 0..rows {
                let of = adapted.iter().find(|(range, _)| range.contains(&row)).map(|(_, adapter)| *adapter);
                let own: Vec<(Range<usize>, &LowRank)> = of.map(|adapter| (0..1, adapter)).into_iter().collect();
                let alone = added(Isa::best(), shape, &x[row * shape.inputs..][..shape.inputs], &own, 0, 2);
                assert_eq!(alone, all[row * shape.width()..][..shape.width()], "{precision:?} row {row}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "an adapter of layers of another shape")]
    fn an_adapter_of_other_layers_is_refused() {
        let made = made(Shape { inputs: 32, outputs: [32, 16, 0] }, [2, 2, 0], 0.3, Precision::Half);
        added(Isa::best(), Shape { inputs: 32, outputs: [16, 32, 0] }, &wave(64, 0.3), &[(0..2, &made.packed)], 0, 1);
    }

    #[test]
    fn what_is_read_next_is_asked_for() {
        let shape = Shape { inputs: 64, outputs: [32, 32, 0] };
        let made = made(shape, [8, 0, 0], 0.3, Precision::Half);
        let (x, mut y, mut scratch) = (wave(2 * 40, 0.1), vec![0.0; 2 * 20], Vec::new());
        // In the group before: one line of its up projection for each two ranks, then what the group's down projection is.
        let updates = Updates { adapted: &[(0..2, &made.packed)], group: 0, first: 0 };
        let task = Task::new(Shared::new(&mut y), OTHER, &x, updates, &mut scratch).expect("adapted rows");
        let mut fetch = Fetch::new();
        task.ask(&mut fetch, &Share { part: 1..2, of: 2 });
        assert_eq!(fetch.lines(), 2 + 8 * 2);
    }
}
