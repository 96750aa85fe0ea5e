//! Q4_1: scale · code + min, 20 bytes for 32 weights (ggml's `block_q4_1`).

use super::{Block, Format, half_at};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q4_1;

impl Format for Q4_1 {
    const LAYOUT: Layout = Layout::NibblesMin;
    const BYTES: usize = 20;

    fn read(bytes: &[u8], _: usize) -> Block {
        let mut codes = [0; 32];
        codes[..16].copy_from_slice(&bytes[4..20]);
        Block { codes, scale: half_at(bytes, 0), min: half_at(bytes, 2) }
    }
}
