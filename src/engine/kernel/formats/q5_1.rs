//! Q5_1: scale · code + min, 24 bytes for 32 weights (ggml's `block_q5_1`).

use super::{Block, Format, fives, half_at, high_bits};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q5_1;

impl Format for Q5_1 {
    const LAYOUT: Layout = Layout::BytesMin;
    const BYTES: usize = 24;

    fn read(bytes: &[u8], _: usize) -> Block {
        let mut codes = fives(high_bits(bytes, 4), &bytes[8..24]);
        codes.iter_mut().for_each(|code| *code += 128);
        Block { codes, scale: half_at(bytes, 0), min: half_at(bytes, 2) }
    }
}
