//! Q2_K: scale · code − min for each 16 weights, 84 bytes for 256 (ggml's `block_q2_K`).

use super::{Block, Format, half_at, rounded};
use crate::engine::kernel::tiles::Layout;

pub(super) struct Q2K;

impl Format for Q2K {
    const LAYOUT: Layout = Layout::Bytes;
    const PARTS: usize = 8;
    const BYTES: usize = 84;

    fn read(bytes: &[u8], part: usize) -> Block {
        let low = &bytes[16 + part / 4 * 32..][..32];
        let (unit, least) = (half_at(bytes, 80).to_f32(), half_at(bytes, 82).to_f32());
        let mut values = [0f32; 32];
        for (i, value) in values.iter_mut().enumerate() {
            let scales = bytes[2 * part + i / 16];
            *value = unit * f32::from((scales & 15) * (low[i] >> (part % 4 * 2) & 3)) - least * f32::from(scales >> 4);
        }
        rounded(&values)
    }
}
