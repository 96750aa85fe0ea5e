//! Element types of model files, and how each becomes [tiles](super::tiles). One file each and one line in [`packer`].
//!
//! | type | kept | off by, at most |
//! |---|---|---|
//! | Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 | bit by bit | nothing |
//! | Q4_K, Q5_K | codes bit by bit, the block's scale and minimum as half floats | 2⁻¹² of the scale for each unit of the code |
//! | Q6_K, Q3_K | 8 bits, with the larger of the block's two scales | 2⁻¹² of the scale in the half with that scale; a quarter (Q6_K), a 32nd (Q3_K) of that half's step in the other |
//! | Q2_K | 8 bits, rounded as activations are | a 254th of the block's largest weight |

mod k_scales;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
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

/// An element type of files.
pub(super) trait Format {
    /// How its tiles are laid out.
    const LAYOUT: Layout;
    /// Blocks of 32 that the file keeps together.
    const PARTS: usize = 1;
    /// Bytes of those in the file.
    const BYTES: usize;

    /// Reads the block of 32 at `part` from that many bytes.
    fn read(bytes: &[u8], part: usize) -> Block;
}

/// What packs an element type, if it is known.
pub(super) fn packer(dtype: GgmlDType) -> Option<Packer> {
    match dtype {
        GgmlDType::Q4_0 => Some(pack::<q4_0::Q4_0>),
        GgmlDType::Q4_1 => Some(pack::<q4_1::Q4_1>),
        GgmlDType::Q5_0 => Some(pack::<q5_0::Q5_0>),
        GgmlDType::Q5_1 => Some(pack::<q5_1::Q5_1>),
        GgmlDType::Q8_0 => Some(pack::<q8_0::Q8_0>),
        GgmlDType::Q2K => Some(pack::<q2_k::Q2K>),
        GgmlDType::Q3K => Some(pack::<q3_k::Q3K>),
        GgmlDType::Q4K => Some(pack::<q4_k::Q4K>),
        GgmlDType::Q5K => Some(pack::<q5_k::Q5K>),
        GgmlDType::Q6K => Some(pack::<q6_k::Q6K>),
        _ => None,
    }
}

/// A block in 8 bits whose halves have scales of their own: weight = unit · scales\[half\] · q, |q| at most 128 / `steps`.
fn halves(unit: f32, scales: [i32; 2], steps: i32, q: impl Fn(usize) -> i32) -> Block {
    let largest = if scales[0].abs() >= scales[1].abs() { scales[0] } else { scales[1] };
    // In units of the larger half's step, divided by `steps`, that half is whole numbers.
    let ratio = scales.map(|scale| if largest == 0 { 0.0 } else { steps as f32 * scale as f32 / largest as f32 });
    let mut codes = [0; BLOCK];
    for (i, code) in codes.iter_mut().enumerate() {
        *code = (q(i) as f32 * ratio[i / 16]).round() as i8 as u8 ^ 0x80;
    }
    Block { codes, scale: f16::from_f32(unit * largest as f32 / steps as f32), min: f16::ZERO }
}

/// A block of floats, rounded to 8 bits as Q8_0 does.
pub(super) fn rounded(values: &[f32]) -> Block {
    let largest = values.iter().fold(0f32, |a, x| a.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
    let mut codes = [0; BLOCK];
    for (code, x) in codes.iter_mut().zip(values) {
        *code = ((x * inverse).round().clamp(-127.0, 127.0) as i8 as u8) ^ 0x80;
    }
    Block { codes, scale, min: f16::ZERO }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The fifth bits of Q5_0 and Q5_1, one a weight.
fn high_bits(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Codes of Q5_0 and Q5_1, 0 to 31: low halves of 16 bytes, then high halves, each with its fifth bit.
fn fives(high: u32, low: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (i, code) in codes.iter_mut().enumerate() {
        let four = if i < 16 { low[i] & 15 } else { low[i - 16] >> 4 };
        *code = four | ((high >> i & 1) as u8) << 4;
    }
    codes
}
