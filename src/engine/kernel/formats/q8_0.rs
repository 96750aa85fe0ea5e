//! Q8_0: scale · signed byte, 34 bytes for 32 weights (ggml's `block_q8_0`). Tiles keep bytes with 128 added.

use super::{Block, Format, half_at};
use crate::engine::kernel::tiles::Layout;
use half::f16;

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const LAYOUT: Layout = Layout::Bytes;
    const BYTES: usize = 34;

    fn read(bytes: &[u8], _: usize) -> Block {
        let mut codes = [0; 32];
        for (code, byte) in codes.iter_mut().zip(&bytes[2..34]) {
            *code = byte ^ 0x80;
        }
        Block { codes, scale: half_at(bytes, 0), min: f16::ZERO }
    }
}
