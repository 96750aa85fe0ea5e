//! Q5_K: scale · code + min for each 32 weights, 176 bytes for 256 (ggml's `block_q5_K`).

use super::{Block, Format, k_scales};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q5K;

impl Format for Q5K {
    const LAYOUT: Layout = Layout::BytesMin;
    const PARTS: usize = 8;
    const BYTES: usize = 176;

    fn read(bytes: &[u8], part: usize) -> Block {
        let (scale, min) = k_scales::of(bytes, part);
        let (high, pair) = (&bytes[16..48], &bytes[48 + part / 2 * 32..][..32]);
        let mut codes = [0; 32];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = 128 + (pair[i] >> (part % 2 * 4) & 15 | (high[i] >> part & 1) << 4);
        }
        Block { codes, scale, min }
    }
}
