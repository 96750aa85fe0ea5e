//! What Q4_K and Q5_K have in common: two half floats for 256 weights, and for each 32 of them a scale and a minimum of six bits.

use super::half_at;
use half::f16;

/// Scale and minimum of a block of 32: weight = scale · code + min. The bytes begin with the two half floats; twelve bytes hold the rest
/// (ggml's `get_scale_min_k4`).
pub(super) fn of(bytes: &[u8], part: usize) -> (f16, f16) {
    let packed = &bytes[4..16];
    let (scale, min) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        (packed[part + 4] & 15 | packed[part - 4] >> 6 << 4, packed[part + 4] >> 4 | packed[part] >> 6 << 4)
    };
    let product = |at: usize, factor: u8| half_at(bytes, at).to_f32() * f32::from(factor);
    (f16::from_f32(product(0, scale)), f16::from_f32(-product(2, min)))
}
