//! Q4_K: scale · code + min for each 32 weights, 144 bytes for 256 (ggml's `block_q4_K`).

use super::{Block, Format, k_scales};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q4K;

impl Format for Q4K {
    const LAYOUT: Layout = Layout::NibblesMin;
    const PARTS: usize = 8;
    const BYTES: usize = 144;

    fn read(bytes: &[u8], part: usize) -> Block {
        let (scale, min) = k_scales::of(bytes, part);
        // 32 bytes hold two blocks: one in their low halves, one in their high halves.
        let pair = &bytes[16 + part / 2 * 32..][..32];
        let code = |i: usize| pair[i] >> (part % 2 * 4) & 15;
        let mut codes = [0; 32];
        for (i, both) in codes.iter_mut().take(16).enumerate() {
            *both = code(i) | code(16 + i) << 4;
        }
        Block { codes, scale, min }
    }
}
