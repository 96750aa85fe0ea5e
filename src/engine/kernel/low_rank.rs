//! Low-rank updates of adapters at serving: y += (x Aᵀ) Bᵀ, each range of rows through its own adapter. The two halves read each of an
//! adapter's values once for a row, which is what decoding with many adapters is bound by; bfloat16 halves that.
#![expect(unsafe_code, reason = "threads write disjoint columns of the same rows")]

use super::dots::Dots;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;
use super::shared::Shared;
use half::bf16;
use std::ops::Range;

/// Rows of the down half that are computed together.
const GROUP: usize = 8;

/// Rows for each thread from which on both halves are shared out by rows.
const MANY: usize = 16;

/// How adapters are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bfloat16: half the memory.
    #[default]
    Half,
    /// f32, as trained.
    Full,
}

/// Values in either precision.
#[derive(Debug)]
enum Values {
    Half(Vec<bf16>),
    Full(Vec<f32>),
}

impl Values {
    fn new(values: Vec<f32>, precision: Precision) -> Self {
        match precision {
            Precision::Half => Values::Half(values.into_iter().map(bf16::from_f32).collect()),
            Precision::Full => Values::Full(values),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Values::Half(values) => values.len() * 2,
            Values::Full(values) => values.len() * 4,
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

/// The updates of an adapter for layers that are computed side by side (q, k and v; gate and up).
#[derive(Debug)]
pub struct LowRank {
    inputs: usize,
    /// All down projections, one below the other (rank, inputs).
    down: Values,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// Rows of `down`.
    ranks: Range<usize>,
    column: usize,
    outputs: usize,
    /// scale · Bᵀ (rank, outputs).
    up: Values,
}

/// An adapter's rows in a step.
pub type Adapted<'a> = (Range<usize>, &'a LowRank);

impl LowRank {
    /// Packs the pairs of layers with the same input of width `inputs`.
    pub fn new(inputs: usize, pairs: &[Pair<'_>], precision: Precision) -> Self {
        let (mut down, mut parts, mut rank) = (Vec::new(), Vec::new(), 0);
        for pair in pairs {
            down.extend_from_slice(pair.a);
            let outputs = pair.b.len() / pair.rank;
            let up = (0..pair.b.len()).map(|i| pair.scale * pair.b[i % outputs * pair.rank + i / outputs]).collect();
            let up = Values::new(up, precision);
            parts.push(Part { ranks: rank..rank + pair.rank, column: pair.column, outputs, up });
            rank += pair.rank;
        }
        LowRank { inputs, down: Values::new(down, precision), parts }
    }

    /// Ranks of all layers together.
    fn rank(&self) -> usize {
        self.parts.last().map_or(0, |part| part.ranks.end)
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        self.down.bytes() + self.parts.iter().map(|part| part.up.bytes()).sum::<usize>()
    }
}

/// Adds each adapter's update to its rows of `y` (rows, `width`), for rows `x` (rows, inputs). `scratch` is kept from call to call.
pub fn add(y: &mut [f32], width: usize, x: &[f32], adapted: &[Adapted<'_>], scratch: &mut Vec<f32>) {
    let isa = Isa::best();
    let stride = adapted.iter().map(|(_, update)| update.rank()).max().unwrap_or(0);
    if stride == 0 {
        return;
    }
    // One row of scratch for each adapted row; a task is some of the ranks of one of them.
    let rows: Vec<(usize, &LowRank)> = adapted.iter().flat_map(|(rows, update)| rows.clone().map(move |row| (row, *update))).collect();
    scratch.resize(rows.len() * stride, 0.0);
    let y = Shared::new(y);
    let downs = |first: usize, h: &mut [f32]| {
        for ((row, update), h) in rows[first..].iter().zip(h.chunks_exact_mut(stride)) {
            down(isa, &mut h[..update.rank()], &x[row * update.inputs..][..update.inputs], &update.down);
        }
    };
    let ups = |first: usize, h: &[f32], columns: Range<usize>| {
        for ((row, update), h) in rows[first..].iter().zip(h.chunks_exact(stride)) {
            for part in &update.parts {
                let own = columns.start.max(part.column)..columns.end.min(part.column + part.outputs);
                if !own.is_empty() {
                    // SAFETY: threads have different rows, or else different columns.
                    let y = unsafe { y.part(row * width + own.start, own.len()) };
                    up(isa, y, &h[part.ranks.clone()], &part.up, (own.start - part.column, part.outputs));
                }
            }
        }
    };
    if rows.len() >= MANY * pool::threads() {
        pool::chunks(scratch, stride, usize::MAX, |first, h| {
            downs(first, h);
            ups(first, h, 0..width);
        });
        return;
    }
    pool::chunks(scratch, stride, usize::MAX, downs);
    let h = &scratch[..];
    pool::ranges(width.div_ceil(LANES), usize::MAX, |columns| ups(0, h, columns.start * LANES..(columns.end * LANES).min(width)));
}

compiled! {
    /// `h[r] = a[r] · x` for a (rank, inputs).
    fn down(h: &mut [f32], x: &[f32], a: &Values) = down_body
}
compiled! {
    /// `y += hᵀ b`, for columns of b (rank, outputs); `at` is the first one and `outputs`.
    fn up(y: &mut [f32], h: &[f32], b: &Values, at: (usize, usize)) = up_body
}

#[inline(always)]
fn down_body<D: Dots>(h: &mut [f32], x: &[f32], a: &Values) {
    match a {
        Values::Half(a) => down_values::<D::Floats, bf16>(h, x, a),
        Values::Full(a) => down_values::<D::Floats, f32>(h, x, a),
    }
}

#[inline(always)]
fn up_body<D: Dots>(y: &mut [f32], h: &[f32], b: &Values, at: (usize, usize)) {
    match b {
        Values::Half(b) => up_values::<D::Floats, bf16>(y, h, b, at),
        Values::Full(b) => up_values::<D::Floats, f32>(y, h, b, at),
    }
}

/// An element of an adapter.
trait Element: Copy {
    fn lanes<L: Lanes>(x: &[Self; LANES]) -> L;
    fn one(self) -> f32;
}

impl Element for bf16 {
    #[inline(always)]
    fn lanes<L: Lanes>(x: &[bf16; LANES]) -> L {
        L::load_bf16(x)
    }
    #[inline(always)]
    fn one(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn lanes<L: Lanes>(x: &[f32; LANES]) -> L {
        L::load(x)
    }
    #[inline(always)]
    fn one(self) -> f32 {
        self
    }
}

#[inline(always)]
fn down_values<L: Lanes, T: Element>(h: &mut [f32], x: &[f32], a: &[T]) {
    let inputs = x.len();
    let mut rank = 0;
    while rank < h.len() {
        if rank + GROUP <= h.len() {
            dots::<L, T, GROUP>(&mut h[rank..], x, &a[rank * inputs..]);
            rank += GROUP;
        } else {
            dots::<L, T, 1>(&mut h[rank..], x, &a[rank * inputs..]);
            rank += 1;
        }
    }
}

#[inline(always)]
fn dots<L: Lanes, T: Element, const G: usize>(h: &mut [f32], x: &[f32], a: &[T]) {
    let inputs = x.len();
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [L::splat(0.0); G];
    for (i, x) in chunks.iter().enumerate() {
        let x = L::load(x);
        let mut g = 0;
        while g < G {
            let a = a[g * inputs + i * LANES..][..LANES].as_array::<LANES>().expect("whole lanes");
            sums[g] = sums[g].plus_product(x, T::lanes(a));
            g += 1;
        }
    }
    let done = chunks.len() * LANES;
    let mut g = 0;
    while g < G {
        let mut sum = sums[g].sum();
        for (x, a) in rest.iter().zip(&a[g * inputs + done..]) {
            sum += x * a.one();
        }
        h[g] = sum;
        g += 1;
    }
}

#[inline(always)]
fn up_values<L: Lanes, T: Element>(y: &mut [f32], h: &[f32], b: &[T], (first, outputs): (usize, usize)) {
    let (chunks, rest) = y.as_chunks_mut::<LANES>();
    let done = chunks.len() * LANES;
    for (i, y) in chunks.iter_mut().enumerate() {
        let mut sum = L::load(y);
        for (r, h) in h.iter().enumerate() {
            let b = b[r * outputs + first + i * LANES..][..LANES].as_array::<LANES>().expect("whole lanes");
            sum = sum.plus_product(L::splat(*h), T::lanes(b));
        }
        sum.store(y);
    }
    for (i, y) in rest.iter_mut().enumerate() {
        for (r, h) in h.iter().enumerate() {
            *y += h * b[r * outputs + first + done + i].one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn each_row_gets_its_own_adapters_update() {
        for rows in [7, 200] {
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
