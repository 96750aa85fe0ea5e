//! Low-rank updates of adapters at serving: y += (x Aᵀ) Bᵀ, each range of rows through its own adapter. The two halves read each of an
//! adapter's values once for a row, in the order they lie in, which is what decoding with many adapters is bound by; bfloat16 halves it.
#![expect(unsafe_code, reason = "threads write disjoint rows, or disjoint columns of the same rows")]

use super::dots::Dots;
use super::huge::Buffer;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;
use super::shared::Shared;
use half::bf16;
use std::ops::Range;

/// Rows of the down half that are computed together, at most.
const GROUP: usize = 8;

/// Rows for each thread from which on both halves are shared out by rows.
const MANY: usize = 2;

/// How adapters are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bfloat16: half the memory.
    #[default]
    Half,
    /// f32, as trained.
    Full,
}

/// Values in either precision, sixteen at a time.
#[derive(Debug)]
enum Values {
    Half(Buffer<[bf16; LANES]>),
    Full(Buffer<[f32; LANES]>),
}

impl Values {
    fn new(values: &[[f32; LANES]], precision: Precision) -> Self {
        match precision {
            Precision::Half => Values::Half(Buffer::keep(&values.iter().map(|x| x.map(bf16::from_f32)).collect::<Vec<_>>())),
            Precision::Full => Values::Full(Buffer::keep(values)),
        }
    }

    fn addresses(&self) -> Range<usize> {
        let start = match self {
            Values::Half(values) => values.as_ptr().addr(),
            Values::Full(values) => values.as_ptr().addr(),
        };
        start..start + self.bytes()
    }

    fn bytes(&self) -> usize {
        match self {
            Values::Half(values) => size_of_val(&**values),
            Values::Full(values) => size_of_val(&**values),
        }
    }
}

/// One adapted layer among those that are computed side by side.
pub struct Pair<'a> {
    /// Down projection (rank, inputs).
    pub a: &'a [f32],
    /// Up projection (outputs, rank).
    pub b: &'a [f32],
    /// Rank.
    pub rank: usize,
    /// Factor on the update.
    pub scale: f32,
    /// First column of the outputs side by side.
    pub column: usize,
}

impl Pair<'_> {
    /// Memory that a packed pair of that rank and those widths (inputs, outputs) takes at most.
    pub fn bytes(rank: usize, (inputs, outputs): (usize, usize), precision: Precision) -> usize {
        let width = match precision {
            Precision::Half => size_of::<bf16>(),
            Precision::Full => size_of::<f32>(),
        };
        let half = |length: usize| (rank * length.next_multiple_of(LANES) * width).next_multiple_of(64);
        half(inputs) + half(outputs)
    }
}

/// The updates of an adapter for layers that are computed side by side (q, k and v; gate and up).
#[derive(Debug)]
pub struct LowRank {
    inputs: usize,
    /// Ranks of all layers together.
    rank: usize,
    /// All down projections: for each group of ranks, for each sixteen inputs (ranks, 16).
    down: Values,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// Its ranks among all.
    ranks: Range<usize>,
    column: usize,
    outputs: usize,
    /// scale · Bᵀ: for each sixteen outputs (ranks, 16).
    up: Values,
}

impl Part {
    fn chunks(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }
}

/// An adapter's rows in a step.
pub type Adapted<'a> = (Range<usize>, &'a LowRank);

/// Ranks that are computed together: eights, and the rest in powers of two.
#[inline(always)]
fn group(rank: usize, of: usize) -> usize {
    let left = of - rank;
    if left >= GROUP { GROUP } else { 1 << left.ilog2() }
}

impl LowRank {
    /// Packs the pairs of layers with the same input of width `inputs`.
    pub fn new(inputs: usize, pairs: &[Pair<'_>], precision: Precision) -> Self {
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for pair in pairs {
            let (first, outputs) = (rows.len(), pair.b.len() / pair.rank);
            rows.extend(pair.a.chunks_exact(inputs));
            let mut up = vec![[0f32; LANES]; outputs.div_ceil(LANES) * pair.rank];
            for (i, b) in pair.b.iter().enumerate() {
                let (output, r) = (i / pair.rank, i % pair.rank);
                up[output / LANES * pair.rank + r][output % LANES] = pair.scale * b;
            }
            parts.push(Part { ranks: first..rows.len(), column: pair.column, outputs, up: Values::new(&up, precision) });
        }
        LowRank { inputs, rank: rows.len(), down: Values::new(&packed(&rows, inputs), precision), parts }
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        self.down.bytes() + self.parts.iter().map(|part| part.up.bytes()).sum::<usize>()
    }

    /// Sixteens of outputs of all layers.
    fn chunks(&self) -> usize {
        self.parts.iter().map(Part::chunks).sum()
    }
}

/// Rows (ranks, inputs) in the order they are read in.
fn packed(rows: &[&[f32]], inputs: usize) -> Vec<[f32; LANES]> {
    let mut packed = Vec::new();
    let mut rank = 0;
    while rank < rows.len() {
        let together = group(rank, rows.len());
        for start in (0..inputs).step_by(LANES) {
            for row in &rows[rank..rank + together] {
                let part = &row[start..(start + LANES).min(inputs)];
                let mut lanes = [0f32; LANES];
                lanes[..part.len()].copy_from_slice(part);
                packed.push(lanes);
            }
        }
        rank += together;
    }
    packed
}

/// Addresses of the values that [`add`] will read, in the order of the rows.
pub fn addresses(adapted: &[Adapted<'_>]) -> Vec<Range<usize>> {
    let of = |(_, update): &Adapted<'_>| -> [Option<Range<usize>>; 4] {
        let mut all = [const { None }; 4];
        all[0] = Some(update.down.addresses());
        all[1..].iter_mut().zip(&update.parts).for_each(|(place, part)| *place = Some(part.up.addresses()));
        all
    };
    adapted.iter().flat_map(|item| of(item).into_iter().flatten()).collect()
}

/// Adds each adapter's update to its rows of `y` (rows, `width`), for rows `x` (rows, inputs). `scratch` is kept from call to call.
pub fn add(y: &mut [f32], width: usize, x: &[f32], adapted: &[Adapted<'_>], scratch: &mut Vec<f32>) {
    let isa = Isa::best();
    let stride = adapted.iter().map(|(_, update)| update.rank).max().unwrap_or(0);
    if stride == 0 {
        return;
    }
    // One row of scratch for each adapted row.
    let rows: Vec<(usize, &LowRank)> = adapted.iter().flat_map(|(rows, update)| rows.clone().map(move |row| (row, *update))).collect();
    scratch.resize(rows.len() * stride, 0.0);
    let y = Shared::new(y);
    let downs = |first: usize, h: &mut [f32]| {
        for ((row, update), h) in rows[first..].iter().zip(h.chunks_exact_mut(stride)) {
            down(isa, &mut h[..update.rank], &x[row * update.inputs..][..update.inputs], &update.down);
        }
    };
    // `chunks` of the outputs of all layers, one behind the other.
    let ups = |first: usize, h: &[f32], chunks: Range<usize>| {
        for ((row, update), h) in rows[first..].iter().zip(h.chunks_exact(stride)) {
            let mut before = 0;
            for part in &update.parts {
                let own = chunks.start.saturating_sub(before).min(part.chunks())..chunks.end.saturating_sub(before).min(part.chunks());
                before += part.chunks();
                if !own.is_empty() {
                    let (start, end) = (own.start * LANES, (own.end * LANES).min(part.outputs));
                    // SAFETY: threads have different rows, or else different columns.
                    let y = unsafe { y.part(row * width + part.column + start, end - start) };
                    up(isa, y, &h[part.ranks.clone()], &part.up, own.start);
                }
            }
        }
    };
    if rows.len() >= MANY * pool::threads() {
        pool::chunks(scratch, stride, usize::MAX, |first, h| {
            downs(first, h);
            ups(first, h, 0..usize::MAX);
        });
        return;
    }
    pool::chunks(scratch, stride, usize::MAX, downs);
    let (h, most) = (&scratch[..], adapted.iter().map(|(_, update)| update.chunks()).max().unwrap_or(0));
    pool::ranges(most, usize::MAX, |chunks| ups(0, h, chunks));
}

compiled! {
    /// `h[r] = a[r] · x` for a (rank, inputs).
    fn down(h: &mut [f32], x: &[f32], a: &Values) = down_body
}
compiled! {
    /// `y += hᵀ b`, for the columns of b (rank, outputs) from the sixteen `first` on.
    fn up(y: &mut [f32], h: &[f32], b: &Values, first: usize) = up_body
}

#[inline(always)]
fn down_body<D: Dots>(h: &mut [f32], x: &[f32], a: &Values) {
    match a {
        Values::Half(a) => down_values::<D::Floats, bf16>(h, x, a),
        Values::Full(a) => down_values::<D::Floats, f32>(h, x, a),
    }
}

#[inline(always)]
fn up_body<D: Dots>(y: &mut [f32], h: &[f32], b: &Values, first: usize) {
    match b {
        Values::Half(b) => up_values::<D::Floats, bf16>(y, h, b, first),
        Values::Full(b) => up_values::<D::Floats, f32>(y, h, b, first),
    }
}

/// An element of an adapter.
trait Element: Copy {
    fn lanes<L: Lanes>(x: &[Self; LANES]) -> L;
}

impl Element for bf16 {
    #[inline(always)]
    fn lanes<L: Lanes>(x: &[bf16; LANES]) -> L {
        L::load_bf16(x)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn lanes<L: Lanes>(x: &[f32; LANES]) -> L {
        L::load(x)
    }
}

#[inline(always)]
fn down_values<L: Lanes, T: Element>(h: &mut [f32], x: &[f32], a: &[[T; LANES]]) {
    let chunks = x.len().div_ceil(LANES);
    let (mut rank, of) = (0, h.len());
    while rank < of {
        let together = group(rank, of);
        let (h, a) = (&mut h[rank..rank + together], &a[rank * chunks..(rank + together) * chunks]);
        match together {
            GROUP => dots::<L, T, GROUP>(h, x, a),
            4 => dots::<L, T, 4>(h, x, a),
            2 => dots::<L, T, 2>(h, x, a),
            _ => dots::<L, T, 1>(h, x, a),
        }
        rank += together;
    }
}

#[inline(always)]
fn dots<L: Lanes, T: Element, const G: usize>(h: &mut [f32], x: &[f32], a: &[[T; LANES]]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let a = &a.as_chunks::<G>().0[..x.len().div_ceil(LANES)];
    let mut sums = [L::splat(0.0); G];
    // By index, here and below: zipped iterators were seen to become calls without the instruction set.
    let mut i = 0;
    while i < whole.len() {
        add_products::<L, T, G>(&mut sums, L::load(&whole[i]), &a[i]);
        i += 1;
    }
    if !rest.is_empty() {
        let mut last = [0f32; LANES];
        last[..rest.len()].copy_from_slice(rest);
        add_products::<L, T, G>(&mut sums, L::load(&last), &a[whole.len()]);
    }
    let mut g = 0;
    while g < G {
        h[g] = sums[g].sum();
        g += 1;
    }
}

#[inline(always)]
fn add_products<L: Lanes, T: Element, const G: usize>(sums: &mut [L; G], x: L, a: &[[T; LANES]; G]) {
    let mut g = 0;
    while g < G {
        sums[g] = sums[g].plus_product(x, T::lanes(&a[g]));
        g += 1;
    }
}

#[inline(always)]
fn up_values<L: Lanes, T: Element>(y: &mut [f32], h: &[f32], b: &[[T; LANES]], first: usize) {
    let rank = h.len();
    let (whole, rest) = y.as_chunks_mut::<LANES>();
    let b = &b[first * rank..];
    let last = whole.len();
    let mut i = 0;
    while i < last {
        updated::<L, T>(L::load(&whole[i]), h, &b[i * rank..(i + 1) * rank]).store(&mut whole[i]);
        i += 1;
    }
    if !rest.is_empty() {
        let mut lanes = [0f32; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        updated::<L, T>(L::load(&lanes), h, &b[last * rank..][..rank]).store(&mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

/// y + hᵀ b
#[inline(always)]
fn updated<L: Lanes, T: Element>(y: L, h: &[f32], b: &[[T; LANES]]) -> L {
    let (mut sum, mut r) = (y, 0);
    while r < h.len() && r < b.len() {
        sum = sum.plus_product(L::splat(h[r]), T::lanes(&b[r]));
        r += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn each_row_gets_its_own_adapters_update() {
        for rows in [6, 7, 200] {
            check(rows);
        }
    }

    fn check(rows: usize) {
        let (inputs, width) = (40, 70);
        let x = wave(rows * inputs, 0.31);
        let (a, b, c, d) = (wave(9 * inputs, 0.7), wave(37 * 9, 0.3), wave(3 * inputs, 0.5), wave(20 * 3, 0.9));
        for (precision, tolerance) in [(Precision::Full, 1e-4), (Precision::Half, 3e-1)] {
            let pairs = [Pair { a: &a, b: &b, rank: 9, scale: 0.5, column: 0 }, Pair { a: &c, b: &d, rank: 3, scale: 2.0, column: 50 }];
            let (both, second) = (LowRank::new(inputs, &pairs, precision), LowRank::new(inputs, &pairs[1..], precision));
            let mut y = vec![1.0; rows * width];
            let adapted = [(1..4, &both), (5..rows, &second)];
            pool::Pool::new(3).expect("a pool").install(|| add(&mut y, width, &x, &adapted, &mut Vec::new()));
            for (i, y) in y.iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let update = |pair: &Pair<'_>| -> f32 {
                    let outputs = pair.b.len() / pair.rank;
                    if column < pair.column || column >= pair.column + outputs {
                        return 0.0;
                    }
                    let h = |r: usize| (0..inputs).map(|k| x[row * inputs + k] * pair.a[r * inputs + k]).sum::<f32>();
                    (0..pair.rank).map(|r| pair.scale * h(r) * pair.b[(column - pair.column) * pair.rank + r]).sum()
                };
                let expected = match row {
                    1..4 => update(&pairs[0]) + update(&pairs[1]),
                    0 | 4 => 0.0,
                    _ => update(&pairs[1]),
                };
                assert!((y - 1.0 - expected).abs() < tolerance, "{precision:?} ({row}, {column}): {y} against 1 + {expected}");
            }
        }
    }
}
