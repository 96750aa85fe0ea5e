//! Element types of model files, and how each becomes [tiles](super::tiles). One file each and one line in [`packer`].
//!
//! Q4_0, Q4_1 and Q8_0 are kept bit by bit. All other quantised types are dequantised and brought to 8 bits for each block of 32, as
//! activations are: their own step is 4 to 64 times as wide as the one that this rounds to.

mod q4_0;
mod q4_1;
mod q8_0;

use super::dots::BLOCK;
use super::tiles::{Layout, Packer, pack};
use candle_core::quantized::GgmlDType;
use half::f16;

/// A block of 32 weights as tiles keep it: weight = scale · (code − offset of the layout) + min.
pub(super) struct Block {
    /// One code a weight; with 4-bit layouts the first 16 bytes, weight i in the low half of byte i, weight 16 + i in the high half.
    pub(super) codes: [u8; BLOCK],
    pub(super) scale: f16,
    /// Only read where the layout has minima.
    pub(super) min: f16,
}

/// An element type that is kept as it is.
pub(super) trait Format {
    /// How its tiles are laid out.
    const LAYOUT: Layout;
    /// Bytes of a block of 32 in the file.
    const BYTES: usize;

    /// Reads one block from that many bytes.
    fn read(bytes: &[u8]) -> Block;
}

/// What packs an element type, if it is kept as it is.
pub(super) fn packer(dtype: GgmlDType) -> Option<Packer> {
    match dtype {
        GgmlDType::Q4_0 => Some(pack::<q4_0::Q4_0>),
        GgmlDType::Q4_1 => Some(pack::<q4_1::Q4_1>),
        GgmlDType::Q8_0 => Some(pack::<q8_0::Q8_0>),
        _ => None,
    }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}
