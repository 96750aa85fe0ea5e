//! Q4_0: scale · (code − 8), 18 bytes for 32 weights (ggml's `block_q4_0`).

use super::{Block, Format, half_at};
use crate::engine::kernel::tiles::Layout;
use half::f16;

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const LAYOUT: Layout = Layout::Nibbles;
    const BYTES: usize = 18;

    fn read(bytes: &[u8], _: usize) -> Block {
        let mut codes = [0; 32];
        codes[..16].copy_from_slice(&bytes[2..18]);
        Block { codes, scale: half_at(bytes, 0), min: f16::ZERO }
    }
}
