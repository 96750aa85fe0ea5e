//! Products of bytes, sixteen rows of weights at a time: for each row, four weights times four activations are added to a 32-bit sum.
//! AVX-512 VNNI and AVX-VNNI have an instruction for it; AVX2 takes two or three; the portable twin is plain loops.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "processor intrinsics; every type is used only in functions compiled for its features, after detection")
)]

use super::lanes::{self, LANES, Lanes};

/// Values in a block that shares a scale.
pub(super) const BLOCK: usize = 32;

/// Sixteen rows at once on one instruction set. Weights come in lines of 64 bytes: four consecutive weights of each of sixteen rows.
pub(super) trait Dots: Copy {
    /// Floats of the sixteen rows.
    type Floats: Lanes;
    /// Sums of the sixteen rows.
    type Ints: Copy;
    /// Sums of products with 4-bit weights, over one block of 32; narrower than [`Dots::Ints`] where that is faster.
    type Narrow: Copy;
    /// 64 weights.
    type Line: Copy;
    /// What [`Dots::bytes`] adds to a weight; the sum must begin with as much less.
    const BYTE_OFFSET: i32;

    /// All sums the same.
    fn ints(x: i32) -> Self::Ints;
    /// Zero sums for 4-bit weights.
    fn narrow() -> Self::Narrow;
    /// The low and the high halves of 64 bytes: weights from 0 to 15.
    fn nibbles(packed: &[u8; 64]) -> [Self::Line; 2];
    /// 64 weights from -127 to 127, stored with 128 added.
    fn bytes(stored: &[u8; 64]) -> Self::Line;
    /// Adds products of 4-bit weights.
    fn plus_nibbles(sums: Self::Narrow, line: Self::Line, activations: &[i8; 4]) -> Self::Narrow;
    /// Adds products of 8-bit weights.
    fn plus_bytes(sums: Self::Ints, line: Self::Line, activations: &[i8; 4]) -> Self::Ints;
    /// `start` plus the sums of 4-bit products.
    fn wide(start: Self::Ints, sums: Self::Narrow) -> Self::Ints;
    /// The sums as floats.
    fn floats(sums: Self::Ints) -> Self::Floats;
    /// Asks for the cache lines of `items`, `ahead` items further on, which may lie past their end.
    #[inline(always)]
    fn prefetch<T>(items: &[T], ahead: usize) {
        let _ = (items, ahead);
    }
    /// Asks for the cache line at an address, into the second-level cache; nothing is read.
    #[inline(always)]
    fn fetch(address: usize) {
        let _ = address;
    }
    /// Rounds a block of floats from -127 to 127 to the nearest whole numbers, ties to even; returns their sum.
    fn rounded(low: Self::Floats, high: Self::Floats, out: &mut [i8; BLOCK]) -> i32;
}

/// Plain loops.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Dots for Portable {
    type Floats = lanes::Portable;
    type Ints = [i32; 16];
    type Narrow = [i32; 16];
    type Line = [i16; 64];
    const BYTE_OFFSET: i32 = 0;

    #[inline(always)]
    fn ints(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn narrow() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    fn nibbles(packed: &[u8; 64]) -> [[i16; 64]; 2] {
        [packed.map(|x| i16::from(x & 15)), packed.map(|x| i16::from(x >> 4))]
    }
    #[inline(always)]
    fn bytes(stored: &[u8; 64]) -> [i16; 64] {
        stored.map(|x| i16::from(x) - 128)
    }
    #[inline(always)]
    fn plus_nibbles(sums: [i32; 16], line: [i16; 64], activations: &[i8; 4]) -> [i32; 16] {
        Self::plus_bytes(sums, line, activations)
    }
    #[inline(always)]
    fn plus_bytes(mut sums: [i32; 16], line: [i16; 64], activations: &[i8; 4]) -> [i32; 16] {
        let [a, b, c, d] = activations.map(i32::from);
        for (sum, w) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
            *sum += i32::from(w[0]) * a + i32::from(w[1]) * b + i32::from(w[2]) * c + i32::from(w[3]) * d;
        }
        sums
    }
    #[inline(always)]
    fn wide(start: [i32; 16], sums: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| start[i] + sums[i])
    }
    #[inline(always)]
    fn floats(sums: [i32; 16]) -> lanes::Portable {
        lanes::Portable::load(&sums.map(|x| x as f32))
    }
    #[inline(always)]
    fn rounded(low: lanes::Portable, high: lanes::Portable, out: &mut [i8; BLOCK]) -> i32 {
        // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer, ties to even.
        const ROUND: f32 = 12_582_912.0;
        let mut floats = [[0f32; LANES]; 2];
        low.store(&mut floats[0]);
        high.store(&mut floats[1]);
        let mut sum = 0;
        for (out, x) in out.iter_mut().zip(floats.as_flattened()) {
            *out = (x + ROUND - ROUND) as i8;
            sum += i32::from(*out);
        }
        sum
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512Vnni, AvxVnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, Dots, lanes};
    use std::arch::x86_64::*;

    #[inline(always)]
    fn prefetch<T>(items: &[T], ahead: usize) {
        let start: *const i8 = items.as_ptr().wrapping_add(ahead).cast();
        let mut at = 0;
        while at < size_of_val(items) {
            // SAFETY: a prefetch reads nothing and never faults, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at)) };
            at += 64;
        }
    }

    #[inline(always)]
    fn fetch(address: usize) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
    }

    /// Four bytes as they lie in memory. Byte by byte: `map` is a function of its own here, compiled for no instruction set, and a call
    /// in the innermost loop makes everything ten times slower.
    #[inline(always)]
    fn word(bytes: &[i8; 4]) -> i32 {
        i32::from_ne_bytes([bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8])
    }

    /// One register for sixteen rows.
    #[derive(Clone, Copy)]
    pub struct Avx512Vnni;

    // SAFETY (every block below): the type is only used in functions compiled for avx512f, bw, dq, vl and vnni, called after detection;
    // loads and stores go through references to arrays of exactly the bytes that are read or written.
    impl Dots for Avx512Vnni {
        type Floats = lanes::Avx512;
        type Ints = __m512i;
        type Narrow = __m512i;
        type Line = __m512i;
        const BYTE_OFFSET: i32 = 128;

        #[inline(always)]
        fn ints(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        fn narrow() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        fn nibbles(packed: &[u8; 64]) -> [__m512i; 2] {
            unsafe {
                let (both, low) = (_mm512_loadu_si512(packed.as_ptr().cast()), _mm512_set1_epi8(15));
                [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
            }
        }
        #[inline(always)]
        fn bytes(stored: &[u8; 64]) -> __m512i {
            unsafe { _mm512_loadu_si512(stored.as_ptr().cast()) }
        }
        #[inline(always)]
        fn plus_nibbles(sums: __m512i, line: __m512i, activations: &[i8; 4]) -> __m512i {
            Self::plus_bytes(sums, line, activations)
        }
        #[inline(always)]
        fn plus_bytes(sums: __m512i, line: __m512i, activations: &[i8; 4]) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sums, line, _mm512_set1_epi32(word(activations))) }
        }
        #[inline(always)]
        fn wide(start: __m512i, sums: __m512i) -> __m512i {
            unsafe { _mm512_add_epi32(start, sums) }
        }
        #[inline(always)]
        fn floats(sums: __m512i) -> lanes::Avx512 {
            lanes::Avx512(unsafe { _mm512_cvtepi32_ps(sums) })
        }
        #[inline(always)]
        fn prefetch<T>(items: &[T], ahead: usize) {
            prefetch(items, ahead);
        }
        #[inline(always)]
        fn fetch(address: usize) {
            fetch(address);
        }
        #[inline(always)]
        fn rounded(low: lanes::Avx512, high: lanes::Avx512, out: &mut [i8; BLOCK]) -> i32 {
            unsafe {
                let (low, high) = (_mm512_cvtps_epi32(low.0), _mm512_cvtps_epi32(high.0));
                // By way of 16 bits: the instruction that stores 32-bit lanes as bytes is slow on some processors.
                let both = _mm256_packs_epi16(_mm512_cvtsepi32_epi16(low), _mm512_cvtsepi32_epi16(high));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(both));
                _mm512_reduce_add_epi32(_mm512_add_epi32(low, high))
            }
        }
    }

    /// Two registers of 256 bits for sixteen rows: eight rows each.
    #[derive(Clone, Copy)]
    pub struct Pair(__m256i, __m256i);

    #[inline(always)]
    fn four(activations: &[i8; 4]) -> __m256i {
        // SAFETY: as for the types below, which call it.
        unsafe { _mm256_set1_epi32(word(activations)) }
    }

    /// Sums of four products of signed bytes. The sign moves to the second factor; 2 · 128 · 127 fits in 16 bits.
    #[inline(always)]
    fn products(w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: as for the types below, which call it.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), _mm256_set1_epi16(1)) }
    }

    /// AVX2 with the VNNI instructions in their 256-bit form.
    #[derive(Clone, Copy)]
    pub struct AvxVnni;

    // SAFETY (every block below): as above, for avx2, fma, f16c and avxvnni.
    impl Dots for AvxVnni {
        type Floats = lanes::Avx2;
        type Ints = Pair;
        type Narrow = Pair;
        type Line = Pair;
        const BYTE_OFFSET: i32 = 128;

        #[inline(always)]
        fn ints(x: i32) -> Pair {
            Avx2::ints(x)
        }
        #[inline(always)]
        fn narrow() -> Pair {
            Avx2::narrow()
        }
        #[inline(always)]
        fn nibbles(packed: &[u8; 64]) -> [Pair; 2] {
            Avx2::nibbles(packed)
        }
        #[inline(always)]
        fn bytes(stored: &[u8; 64]) -> Pair {
            let p: *const __m256i = stored.as_ptr().cast();
            unsafe { Pair(_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))) }
        }
        #[inline(always)]
        fn plus_nibbles(sums: Pair, line: Pair, activations: &[i8; 4]) -> Pair {
            Self::plus_bytes(sums, line, activations)
        }
        #[inline(always)]
        fn plus_bytes(sums: Pair, line: Pair, activations: &[i8; 4]) -> Pair {
            let a = four(activations);
            unsafe { Pair(_mm256_dpbusd_avx_epi32(sums.0, line.0, a), _mm256_dpbusd_avx_epi32(sums.1, line.1, a)) }
        }
        #[inline(always)]
        fn wide(start: Pair, sums: Pair) -> Pair {
            unsafe { Pair(_mm256_add_epi32(start.0, sums.0), _mm256_add_epi32(start.1, sums.1)) }
        }
        #[inline(always)]
        fn floats(sums: Pair) -> lanes::Avx2 {
            Avx2::floats(sums)
        }
        #[inline(always)]
        fn prefetch<T>(items: &[T], ahead: usize) {
            prefetch(items, ahead);
        }
        #[inline(always)]
        fn fetch(address: usize) {
            fetch(address);
        }
        #[inline(always)]
        fn rounded(low: lanes::Avx2, high: lanes::Avx2, out: &mut [i8; BLOCK]) -> i32 {
            Avx2::rounded(low, high, out)
        }
    }

    /// AVX2 alone: products in pairs to 16 bits, then to 32.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    // SAFETY (every block below): as above, for avx2, fma and f16c.
    impl Dots for Avx2 {
        type Floats = lanes::Avx2;
        type Ints = Pair;
        /// 16 bits hold a block's sums of pairs: at most 8 · 2 · 15 · 127 = 30480.
        type Narrow = Pair;
        type Line = Pair;
        const BYTE_OFFSET: i32 = 0;

        #[inline(always)]
        fn ints(x: i32) -> Pair {
            unsafe { Pair(_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
        }
        #[inline(always)]
        fn narrow() -> Pair {
            unsafe { Pair(_mm256_setzero_si256(), _mm256_setzero_si256()) }
        }
        #[inline(always)]
        fn nibbles(packed: &[u8; 64]) -> [Pair; 2] {
            let p: *const __m256i = packed.as_ptr().cast();
            unsafe {
                let (a, b, low) = (_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)), _mm256_set1_epi8(15));
                let (c, d) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
                [Pair(_mm256_and_si256(a, low), _mm256_and_si256(b, low)), Pair(_mm256_and_si256(c, low), _mm256_and_si256(d, low))]
            }
        }
        #[inline(always)]
        fn bytes(stored: &[u8; 64]) -> Pair {
            let p: *const __m256i = stored.as_ptr().cast();
            unsafe {
                let offset = _mm256_set1_epi8(-128);
                Pair(_mm256_xor_si256(_mm256_loadu_si256(p), offset), _mm256_xor_si256(_mm256_loadu_si256(p.add(1)), offset))
            }
        }
        #[inline(always)]
        fn plus_nibbles(sums: Pair, line: Pair, activations: &[i8; 4]) -> Pair {
            let a = four(activations);
            unsafe {
                Pair(_mm256_add_epi16(sums.0, _mm256_maddubs_epi16(line.0, a)), _mm256_add_epi16(sums.1, _mm256_maddubs_epi16(line.1, a)))
            }
        }
        #[inline(always)]
        fn plus_bytes(sums: Pair, line: Pair, activations: &[i8; 4]) -> Pair {
            let a = four(activations);
            unsafe { Pair(_mm256_add_epi32(sums.0, products(line.0, a)), _mm256_add_epi32(sums.1, products(line.1, a))) }
        }
        #[inline(always)]
        fn wide(start: Pair, sums: Pair) -> Pair {
            unsafe {
                let ones = _mm256_set1_epi16(1);
                Pair(_mm256_add_epi32(start.0, _mm256_madd_epi16(sums.0, ones)), _mm256_add_epi32(start.1, _mm256_madd_epi16(sums.1, ones)))
            }
        }
        #[inline(always)]
        fn floats(sums: Pair) -> lanes::Avx2 {
            unsafe { lanes::Avx2(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
        }
        #[inline(always)]
        fn prefetch<T>(items: &[T], ahead: usize) {
            prefetch(items, ahead);
        }
        #[inline(always)]
        fn fetch(address: usize) {
            fetch(address);
        }
        #[inline(always)]
        fn rounded(low: lanes::Avx2, high: lanes::Avx2, out: &mut [i8; BLOCK]) -> i32 {
            unsafe {
                let (a, b) = (_mm256_cvtps_epi32(low.0), _mm256_cvtps_epi32(low.1));
                let (c, d) = (_mm256_cvtps_epi32(high.0), _mm256_cvtps_epi32(high.1));
                // Packing works within halves of a register: fours of a, b, c and d come out in turns.
                let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(bytes, order));
                let eight = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
                let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
                let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
            }
        }
    }
}
