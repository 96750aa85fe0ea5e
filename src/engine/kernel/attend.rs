//! Attention of an inference step (grouped heads: Ainslie et al. 2023, arXiv 2305.13245) to keys and values in half precision, with
//! a running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over chunks of 64 positions. Query heads that share a key head
//! are computed together, up to eight lines (a row's query head) at a time, but each line's arithmetic is its own: chunks begin at
//! position 0 whatever is new in this step.
#![expect(unsafe_code, reason = "threads write disjoint heads of the same rows")]

use super::dots::Dots;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;
use super::shared::Shared;
use half::f16;

/// Positions of a block of the cache.
pub const POSITIONS: usize = LANES;
/// Blocks of a chunk of the running softmax.
const BLOCKS: usize = 4;
/// Positions of a chunk.
const CHUNK: usize = BLOCKS * POSITIONS;
/// Most lines of a task.
const LINES: usize = 8;

/// Head counts and widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Elements of a head.
    pub width: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub fn group(self) -> usize {
        self.queries / self.keys
    }

    /// Factor on the scores.
    pub fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Elements of a row of keys (or values).
    pub fn key_width(self) -> usize {
        self.keys * self.width
    }

    /// Elements of a row of queries.
    pub fn query_width(self) -> usize {
        self.queries * self.width
    }

    /// Elements of a head in the cache: whole registers.
    pub fn padded(self) -> usize {
        self.width.next_multiple_of(LANES)
    }
}

/// One sequence's part of a step.
#[derive(Clone, Copy)]
pub struct Attended<'a> {
    /// First row of the batch.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Positions before the first row.
    pub past: usize,
    /// Positions that a row sees, itself and those before it (sliding window: Beltagy et al. 2020, arXiv 2004.05150); `usize::MAX`: all.
    pub window: usize,
    /// Keys: for each block of sixteen positions, for each key head, (padded width, 16).
    pub keys: &'a [f16],
    /// Values: for each block, for each key head, (16, padded width).
    pub values: &'a [f16],
}

/// Rotary embedding of a step: cosines, then sines, for each row (rows, width).
pub type Angles<'a> = &'a [f32];

/// Queries of a step: rows `stride` apart that begin with the query heads, not yet rotated.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// The rows.
    pub rows: &'a [f32],
    /// Elements between two rows.
    pub stride: usize,
    /// How they are rotated.
    pub angles: Angles<'a>,
    /// Factor on the scores.
    pub scale: f32,
}

/// A piece of work: some lines of one key head of one sequence.
struct Task {
    sequence: usize,
    head: usize,
    /// Line `l` is query head `l % group` of row `l / group`.
    lines: std::ops::Range<usize>,
}

/// Writes what each row attends to, (rows, query heads · width).
pub fn attend(out: &mut [f32], queries: Queries<'_>, heads: Heads, sequences: &[Attended<'_>]) {
    by(Isa::best(), out, queries, heads, sequences);
}

fn by(isa: Isa, out: &mut [f32], queries: Queries<'_>, heads: Heads, sequences: &[Attended<'_>]) {
    let threads = pool::threads();
    let mut tasks = Vec::new();
    for (sequence, attended) in sequences.iter().enumerate() {
        let lines = attended.rows * heads.group();
        // Few lines are cut finer, so that every thread has some.
        let per = if sequences.len() * heads.keys < 3 * threads { lines.div_ceil(2).min(LINES) } else { lines.min(LINES) };
        for head in 0..heads.keys {
            tasks.extend((0..lines).step_by(per).map(|l| Task { sequence, head, lines: l..(l + per).min(lines) }));
        }
    }
    let shared = Shared::new(out);
    pool::each(tasks.len(), |i| run(isa, &tasks[i], queries, heads, (&sequences[tasks[i].sequence], shared)));
}

compiled! {
    fn run(task: &Task, queries: Queries<'_>, heads: Heads, target: (&Attended<'_>, Shared<'_, f32>)) = run_body
}

#[inline(always)]
fn run_body<D: Dots>(task: &Task, queries: Queries<'_>, heads: Heads, (sequence, out): (&Attended<'_>, Shared<'_, f32>)) {
    let mut lines = task.lines.clone();
    while !lines.is_empty() {
        let work = Work { first: lines.start, head: task.head, queries, heads, sequence, out };
        let most = if D::Floats::WIDE { 8 } else { 4 };
        let count = match lines.len().min(most) {
            8 => lines_body::<D::Floats, 8>(work),
            4..8 => lines_body::<D::Floats, 4>(work),
            3 => lines_body::<D::Floats, 3>(work),
            2 => lines_body::<D::Floats, 2>(work),
            _ => lines_body::<D::Floats, 1>(work),
        };
        lines.start += count;
    }
}

/// Some lines, from `first` on, of one key head.
#[derive(Clone, Copy)]
struct Work<'a> {
    first: usize,
    head: usize,
    queries: Queries<'a>,
    heads: Heads,
    sequence: &'a Attended<'a>,
    out: Shared<'a, f32>,
}

impl<'a> Work<'a> {
    /// Row of the sequence, and query head, of a line.
    fn place(&self, line: usize) -> (usize, usize) {
        let group = self.heads.group();
        ((self.first + line) / group, self.head * group + (self.first + line) % group)
    }

    /// Rotated and scaled queries, (width, N).
    #[inline(always)]
    fn rotated<const N: usize>(&self) -> Vec<[f32; N]> {
        let (width, half) = (self.heads.width, self.heads.width / 2);
        let mut turned = vec![[0f32; N]; width];
        let mut line_of = vec![0f32; width];
        for line in 0..N {
            let (row, head) = self.place(line);
            let row = self.sequence.first + row;
            let (low, high) = self.queries.rows[row * self.queries.stride + head * width..][..width].split_at(half);
            let (cos, sin) = self.queries.angles[row * width..][..width].split_at(half);
            let (out_low, out_high) = line_of.split_at_mut(half);
            for ((((out, low), high), cos), sin) in out_low.iter_mut().zip(low).zip(high).zip(cos).zip(sin) {
                *out = (low * cos - high * sin) * self.queries.scale;
            }
            for ((((out, low), high), cos), sin) in out_high.iter_mut().zip(low).zip(high).zip(cos).zip(sin) {
                *out = (high * cos + low * sin) * self.queries.scale;
            }
            for (turned, x) in turned.iter_mut().zip(&line_of) {
                turned[line] = *x;
            }
        }
        turned
    }

    /// This head's part of a block of the cache.
    #[inline(always)]
    fn block(&self, cache: &'a [f16], index: usize) -> &'a [[f16; LANES]] {
        let size = self.heads.padded() * POSITIONS;
        cache[(index * self.heads.keys + self.head) * size..][..size].as_chunks::<LANES>().0
    }
}

/// The running softmax of one line.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    total: f32,
    /// The line sees positions from this one on.
    from: usize,
    /// It sees them up to this one, which it does not see.
    seen: usize,
}

#[inline(always)]
fn lines_body<L: Lanes, const N: usize>(work: Work<'_>) -> usize {
    let padded = work.heads.padded();
    let query = work.rotated::<N>();
    let mut sums = vec![0f32; N * padded];
    let mut running = [Running { max: f32::NEG_INFINITY, total: 0.0, from: 0, seen: 0 }; N];
    for (line, running) in running.iter_mut().enumerate() {
        running.seen = work.sequence.past + work.place(line).0 + 1;
        running.from = running.seen.saturating_sub(work.sequence.window);
    }
    let most = running[N - 1].seen;
    // The first line sees farthest back; a chunk that a line does not see changes nothing of it.
    let mut start = running[0].from / CHUNK * CHUNK;
    while start < most {
        let mut scores = [[0f32; CHUNK]; N];
        let blocks = (most - start).div_ceil(POSITIONS).min(BLOCKS);
        for b in 0..blocks {
            let found = block_scores::<L, N>(&query, work.block(work.sequence.keys, start / POSITIONS + b));
            let mut n = 0;
            while n < N {
                found[n].store(scores[n][b * POSITIONS..][..LANES].as_mut_array::<LANES>().expect("a block of the chunk"));
                n += 1;
            }
        }
        let mut decays = [1f32; N];
        for n in 0..N {
            decays[n] = soften::<L>(&mut running[n], &mut scores[n], start);
        }
        let mut n = 0;
        while n < N {
            let take = if N - n >= 4 { 4 } else { N - n };
            let part = Part { scores: &scores[n..], decays: &decays[n..], start, blocks };
            let sums = &mut sums[n * padded..];
            match take {
                4 => weigh::<L, 4>(work, part, sums),
                3 => weigh::<L, 3>(work, part, sums),
                2 => weigh::<L, 2>(work, part, sums),
                _ => weigh::<L, 1>(work, part, sums),
            }
            n += take;
        }
        start += CHUNK;
    }
    for line in 0..N {
        let (row, head) = work.place(line);
        let at = (work.sequence.first + row) * work.heads.queries * work.heads.width + head * work.heads.width;
        // SAFETY: each (row, query head) belongs to one line of one task.
        let out = unsafe { work.out.part(at, work.heads.width) };
        let inverse = 1.0 / running[line].total;
        for (out, sum) in out.iter_mut().zip(&sums[line * padded..]) {
            *out = sum * inverse;
        }
    }
    N
}

/// Scores of sixteen positions, a register for each line.
#[inline(always)]
fn block_scores<L: Lanes, const N: usize>(query: &[[f32; N]], keys: &[[f16; LANES]]) -> [L; N] {
    // Two sums, of even and odd elements, so that few lines do not wait for each other's additions.
    let (mut even, mut odd) = ([L::splat(0.0); N], [L::splat(0.0); N]);
    let (queries, last) = query.as_chunks::<2>();
    let (pairs, _) = keys.as_chunks::<2>();
    for (query, keys) in queries.iter().zip(pairs) {
        let (a, b) = (L::load_f16(&keys[0]), L::load_f16(&keys[1]));
        let mut n = 0;
        while n < N {
            even[n] = even[n].plus_product(a, L::splat(query[0][n]));
            odd[n] = odd[n].plus_product(b, L::splat(query[1][n]));
            n += 1;
        }
    }
    debug_assert!(last.is_empty(), "rotary heads have an even width");
    let mut n = 0;
    while n < N {
        even[n] = even[n].plus(odd[n]);
        n += 1;
    }
    even
}

/// Turns a chunk's scores into weights relative to the new maximum; returns what earlier sums are to be multiplied with.
#[inline(always)]
fn soften<L: Lanes>(running: &mut Running, scores: &mut [f32; CHUNK], start: usize) -> f32 {
    let (from, seen) = (running.from.saturating_sub(start).min(CHUNK), running.seen.saturating_sub(start).min(CHUNK));
    if from >= seen {
        scores.fill(0.0);
        return 1.0;
    }
    scores[..from].fill(f32::NEG_INFINITY);
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut max = L::splat(running.max);
    for chunk in scores.as_chunks::<LANES>().0 {
        max = max.max(L::load(chunk));
    }
    let max = max.largest();
    let mut total = L::splat(0.0);
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        L::load(chunk).plus(L::splat(-max)).exp().store(chunk);
    }
    scores[..from].fill(0.0);
    scores[seen..].fill(0.0);
    for chunk in scores.as_chunks::<LANES>().0 {
        total = total.plus(L::load(chunk));
    }
    let mut decay = [0f32; LANES];
    L::splat(running.max - max).exp().store(&mut decay);
    let decay = if running.total == 0.0 { 0.0 } else { decay[0] };
    (running.max, running.total) = (max, running.total * decay + total.sum());
    decay
}

/// A chunk's weights for some lines.
#[derive(Clone, Copy)]
struct Part<'a> {
    scores: &'a [[f32; CHUNK]],
    decays: &'a [f32],
    start: usize,
    blocks: usize,
}

/// sums = sums · decay + weights · values, for `P` lines.
#[inline(always)]
fn weigh<L: Lanes, const P: usize>(work: Work<'_>, part: Part<'_>, sums: &mut [f32]) {
    let registers = work.heads.padded() / LANES;
    let mut at = 0;
    if L::WIDE {
        while at + 4 <= registers {
            columns::<L, P, 4>(work, part, sums, at);
            at += 4;
        }
    }
    while at < registers {
        columns::<L, P, 1>(work, part, sums, at);
        at += 1;
    }
}

/// `J` registers of columns, from register `at` on.
#[inline(always)]
fn columns<L: Lanes, const P: usize, const J: usize>(work: Work<'_>, part: Part<'_>, sums: &mut [f32], at: usize) {
    let padded = work.heads.padded();
    let mut totals = [[L::splat(0.0); J]; P];
    let mut p = 0;
    while p < P {
        let old = sums[p * padded + at * LANES..][..J * LANES].as_chunks::<LANES>().0;
        let mut j = 0;
        while j < J {
            totals[p][j] = L::load(&old[j]).times(L::splat(part.decays[p]));
            j += 1;
        }
        p += 1;
    }
    let scores = part.scores[..P].as_array::<P>().expect("a line of weights each");
    for b in 0..part.blocks {
        let values = work.block(work.sequence.values, part.start / POSITIONS + b);
        for (position, values) in values.chunks_exact(padded / LANES).enumerate() {
            let values = values[at..at + J].as_array::<J>().expect("J registers");
            let mut p = 0;
            let mut loaded = [L::splat(0.0); J];
            let mut j = 0;
            while j < J {
                loaded[j] = L::load_f16(&values[j]);
                j += 1;
            }
            while p < P {
                let weight = L::splat(scores[p][b * POSITIONS + position]);
                let mut j = 0;
                while j < J {
                    totals[p][j] = totals[p][j].plus_product(weight, loaded[j]);
                    j += 1;
                }
                p += 1;
            }
        }
    }
    let mut p = 0;
    while p < P {
        let out = sums[p * padded + at * LANES..][..J * LANES].as_chunks_mut::<LANES>().0;
        let mut j = 0;
        while j < J {
            totals[p][j].store(&mut out[j]);
            j += 1;
        }
        p += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 2.0).collect()
    }

    /// Keys and values (positions, keys · width) in the cache's blocks.
    fn blocks(x: &[f32], heads: Heads, transposed: bool) -> Vec<f16> {
        let (row, padded) = (heads.keys * heads.width, heads.padded());
        let positions = x.len() / row;
        let mut out = vec![f16::ZERO; positions.div_ceil(POSITIONS) * POSITIONS * heads.keys * padded];
        for (i, x) in x.iter().enumerate() {
            let (position, head, d) = (i / row, i % row / heads.width, i % heads.width);
            let block = (position / POSITIONS * heads.keys + head) * padded * POSITIONS;
            let inside = if transposed { d * POSITIONS + position % POSITIONS } else { position % POSITIONS * padded + d };
            out[block + inside] = f16::from_f32(*x);
        }
        out
    }

    #[test]
    fn attention_equals_the_plain_formula_and_a_row_is_the_same_in_any_company() {
        let all = usize::MAX;
        for (queries, keys, width, past, rows, window) in [
            (4, 2, 8, 0, 5, all),
            (9, 3, 64, 70, 1, all),
            (6, 2, 80, 130, 9, all),
            (2, 2, 16, 15, 70, all),
            (4, 1, 256, 300, 70, 100),
            (4, 2, 16, 0, 40, 7),
            (3, 1, 16, 191, 1, 64),
        ] {
            let heads = Heads { queries, keys, width };
            let positions = past + rows;
            let (k, v) = (wave(positions * keys * width, 0.21), wave(positions * keys * width, 0.47));
            let q = wave(rows * queries * width, 0.93);
            // No rotation: cosines 1, sines 0.
            let angles: Vec<f32> = (0..rows * width).map(|i| if i % width < width / 2 { 1.0 } else { 0.0 }).collect();
            let (kb, vb) = (blocks(&k, heads, true), blocks(&v, heads, false));
            let attended = Attended { first: 0, rows, past, window, keys: &kb, values: &vb };
            let given = Queries { rows: &q, stride: queries * width, angles: &angles, scale: 0.2 };
            for isa in Isa::available() {
                let mut out = vec![0.0; rows * queries * width];
                pool::Pool::new(2).expect("a pool").install(|| by(isa, &mut out, given, heads, &[attended]));
                for row in 0..rows {
                    let mut alone = vec![0.0; queries * width];
                    let part = Queries { rows: &q[row * queries * width..], angles: &angles[row * width..], ..given };
                    by(isa, &mut alone, part, heads, &[Attended { rows: 1, past: past + row, ..attended }]);
                    assert_eq!(alone, out[row * queries * width..][..queries * width], "{isa:?} row {row} alone");
                    for head in 0..queries {
                        let of = |x: &[f32], p: usize, d: usize| {
                            f64::from(f16::from_f32(x[(p * keys + head / (queries / keys)) * width + d]).to_f32())
                        };
                        let query = |d: usize| f64::from(q[(row * queries + head) * width + d]);
                        let score = |p: usize| (0..width).map(|d| query(d) * of(&k, p, d)).sum::<f64>() * 0.2;
                        let first = (past + row + 1).saturating_sub(window);
                        let scores: Vec<f64> = (first..=past + row).map(score).collect();
                        let max = scores.iter().copied().fold(f64::MIN, f64::max);
                        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                        for d in 0..width {
                            let expected: f64 =
                                scores.iter().enumerate().map(|(p, s)| (s - max).exp() / total * of(&v, first + p, d)).sum();
                            let found = f64::from(out[(row * queries + head) * width + d]);
                            assert!((found - expected).abs() < 1e-4, "{isa:?} ({row}, {head}, {d}): {found} against {expected}");
                        }
                    }
                }
            }
        }
    }
}
