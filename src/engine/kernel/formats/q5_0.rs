//! Q5_0: scale · (code − 16), 22 bytes for 32 weights (ggml's `block_q5_0`).

use super::{Block, Format, fives, half_at, high_bits};
use crate::engine::kernel::tiles::Layout;
use half::f16;

pub(super) struct Q5_0;

impl Format for Q5_0 {
    const LAYOUT: Layout = Layout::Bytes;
    const BYTES: usize = 22;

    fn read(bytes: &[u8], _: usize) -> Block {
        let mut codes = fives(high_bits(bytes, 2), &bytes[6..22]);
        codes.iter_mut().for_each(|code| *code += 128 - 16);
        Block { codes, scale: half_at(bytes, 0), min: f16::ZERO }
    }
}
