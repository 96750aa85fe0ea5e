//! Q6_K: scale · (code − 32) for each 16 weights, 210 bytes for 256 (ggml's `block_q6_K`).

use super::{Block, Format, half_at, halves};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q6K;

impl Format for Q6K {
    const LAYOUT: Layout = Layout::Bytes;
    const PARTS: usize = 8;
    const BYTES: usize = 210;

    fn read(bytes: &[u8], part: usize) -> Block {
        // 128 weights are 64 bytes of low bits, 32 bytes of high bits and eight scales.
        let (half, quarter) = (part / 4, part % 4);
        let low = &bytes[half * 64 + quarter % 2 * 32..][..32];
        let high = &bytes[128 + half * 32..][..32];
        let scale = |i: usize| i32::from(bytes[192 + 2 * part + i] as i8);
        let code = |i: usize| i32::from(low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (2 * quarter) & 3) << 4) - 32;
        halves(half_at(bytes, 208).to_f32(), [scale(0), scale(1)], 4, code)
    }
}
