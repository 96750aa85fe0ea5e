//! Q3_K: scale · (code − 4) for each 16 weights, 110 bytes for 256 (ggml's `block_q3_K`).

use super::{Block, Format, half_at, halves};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q3K;

impl Format for Q3K {
    const LAYOUT: Layout = Layout::Bytes;
    const PARTS: usize = 8;
    const BYTES: usize = 110;

    fn read(bytes: &[u8], part: usize) -> Block {
        let (high, low, scales) = (&bytes[..32], &bytes[32 + part / 4 * 32..][..32], &bytes[96..108]);
        // Six bits each: four in the halves of eight bytes, two in the quarters of the last four.
        let scale = |i: usize| {
            let four = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
            i32::from(four | (scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32
        };
        let code = |i: usize| i32::from(low[i] >> (part % 4 * 2) & 3 | (high[i] >> part & 1) << 2) - 4;
        halves(half_at(bytes, 108).to_f32(), [scale(2 * part), scale(2 * part + 1)], 16, code)
    }
}
