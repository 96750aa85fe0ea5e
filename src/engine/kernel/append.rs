//! New keys and values on their way into the cache: keys rotated (Su et al. 2021, arXiv 2104.09864), both rounded to half precision and
//! laid out as [attention](super::attend) reads them.
#![expect(unsafe_code, reason = "threads write disjoint blocks of two slices")]

use super::attend::{Angles, Heads, POSITIONS};
use super::dots::Dots;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;
use super::shared::Shared;
use half::f16;

/// Rows of queries, keys and values side by side, `stride` apart; keys are not yet rotated.
#[derive(Clone, Copy)]
pub struct NewRows<'a> {
    /// The rows of one sequence.
    pub rows: &'a [f32],
    /// Elements between two rows.
    pub stride: usize,
    /// How each row is rotated.
    pub angles: Angles<'a>,
    /// Position of the first row.
    pub past: usize,
}

/// Writes rows into the blocks of one layer of a sequence, which reach far enough.
pub fn append(keys: &mut [f16], values: &mut [f16], new: NewRows<'_>, heads: Heads) {
    let (isa, size) = (Isa::best(), heads.padded() * POSITIONS * heads.keys);
    let count = new.rows.len() / new.stride;
    let blocks = new.past / POSITIONS..(new.past + count).div_ceil(POSITIONS);
    let values = Shared::new(&mut values[blocks.start * size..blocks.end * size]);
    pool::chunks(&mut keys[blocks.start * size..blocks.end * size], size, usize::MAX, |first, keys| {
        // SAFETY: the same blocks of both, and parts of one are disjoint.
        let values = unsafe { values.part(first * size, keys.len()) };
        write(isa, keys, values, new, (heads, blocks.start + first));
    });
}

compiled! {
    /// Writes the rows that lie in these blocks; `at` is the heads and the first block.
    fn write(keys: &mut [f16], values: &mut [f16], new: NewRows<'_>, at: (Heads, usize)) = write_body
}

#[inline(always)]
fn write_body<D: Dots>(keys: &mut [f16], values: &mut [f16], new: NewRows<'_>, (heads, first): (Heads, usize)) {
    let (width, padded) = (heads.width, heads.padded());
    let size = padded * POSITIONS;
    let mut row = vec![0f32; 2 * padded];
    let mut halves = [f16::ZERO; LANES];
    for (b, (keys, values)) in keys.chunks_exact_mut(size * heads.keys).zip(values.chunks_exact_mut(size * heads.keys)).enumerate() {
        let start = (first + b) * POSITIONS;
        let count = new.rows.len() / new.stride;
        for position in start.max(new.past)..(start + POSITIONS).min(new.past + count) {
            let (index, lane) = (position - new.past, position % POSITIONS);
            let all = &new.rows[index * new.stride..][heads.queries * width..];
            let angles = &new.angles[index * width..][..width];
            for head in 0..heads.keys {
                let (key, value) = row.split_at_mut(padded);
                turn(&mut key[..width], &all[head * width..][..width], angles);
                value[..width].copy_from_slice(&all[(heads.keys + head) * width..][..width]);
                let (keys, values) = (&mut keys[head * size..][..size], &mut values[head * size + lane * padded..][..padded]);
                for (d, chunk) in key.as_chunks::<LANES>().0.iter().enumerate() {
                    held::<D::Floats>(chunk).store_f16(&mut halves);
                    for (i, half) in halves.iter().enumerate() {
                        keys[(d * LANES + i) * POSITIONS + lane] = *half;
                    }
                }
                for (out, chunk) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(value.as_chunks::<LANES>().0) {
                    held::<D::Floats>(chunk).store_f16(out);
                }
            }
        }
    }
}

/// Sixteen floats, held to what half precision can say.
#[inline(always)]
fn held<L: Lanes>(x: &[f32; LANES]) -> L {
    L::load(x).max(L::splat(-65504.0)).min(L::splat(65504.0))
}

/// Element j of a head turns together with element j + width/2.
#[inline(always)]
fn turn(out: &mut [f32], x: &[f32], angles: &[f32]) {
    let half = x.len() / 2;
    let ((low, high), (cos, sin)) = (x.split_at(half), angles.split_at(half));
    let (out_low, out_high) = out.split_at_mut(half);
    for i in 0..half {
        out_low[i] = low[i] * cos[i] - high[i] * sin[i];
        out_high[i] = high[i] * cos[i] + low[i] * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_land_in_their_blocks_rotated_and_others_stay() {
        let heads = Heads { queries: 4, keys: 2, width: 24 };
        let (stride, padded) = ((4 + 2 * 2) * 24, 32);
        let (past, count) = (13, 22);
        let rows: Vec<f32> = (0..count * stride).map(|i| (i as f32 * 0.37).sin()).collect();
        let angles: Vec<f32> = (0..count * 24).map(|i| if i % 24 < 12 { 0.6 } else { 0.8 }).collect();
        let size = 3 * 2 * padded * POSITIONS;
        for isa in Isa::available() {
            let (mut keys, mut values) = (vec![f16::ONE; size], vec![f16::ONE; size]);
            write(isa, &mut keys, &mut values, NewRows { rows: &rows, stride, angles: &angles, past }, (heads, 0));
            for position in 0..48 {
                for head in 0..2 {
                    for d in 0..24 {
                        let block = (position / 16 * 2 + head) * padded * 16;
                        let key = keys[block + d * 16 + position % 16].to_f32();
                        let value = values[block + position % 16 * padded + d].to_f32();
                        if position < past || position >= past + count {
                            assert_eq!((key, value), (1.0, 1.0), "{isa:?} position {position} was not to be written");
                            continue;
                        }
                        let row = &rows[(position - past) * stride..][..stride];
                        let k = |d: usize| row[(4 + head) * 24 + d];
                        let expected = if d < 12 { k(d) * 0.6 - k(d + 12) * 0.8 } else { k(d) * 0.6 + k(d - 12) * 0.8 };
                        assert!((key - expected).abs() < 1e-3, "{isa:?} key ({position}, {head}, {d}): {key} for {expected}");
                        assert!((value - row[(6 + head) * 24 + d]).abs() < 1e-3, "{isa:?} value ({position}, {head}, {d})");
                    }
                }
            }
        }
    }
}
