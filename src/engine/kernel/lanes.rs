//! Sixteen floats at a time: AVX-512 and AVX2 registers behind one small trait, and a portable twin that the others are tested against.
//! Hot loops are written over this trait; relying on the compiler to find the lanes by itself was measured to be fifteen
//! times slower in some builds.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "processor intrinsics; every type is used only in functions compiled for its features, after detection")
)]

use half::{bf16, f16};

/// Lanes of one value.
pub(in crate::engine) const LANES: usize = 16;

/// Sixteen floats.
pub(in crate::engine) trait Lanes: Copy {
    /// Whether the processor multiplies and adds in one instruction.
    const FMA: bool;
    /// Whether there are 32 registers of sixteen lanes; otherwise tiles are smaller.
    const WIDE: bool = false;
    /// All lanes the same.
    fn splat(x: f32) -> Self;
    /// Reads sixteen floats.
    fn load(x: &[f32; LANES]) -> Self;
    /// Reads sixteen floats of half precision.
    fn load_f16(x: &[f16; LANES]) -> Self;
    /// Writes them.
    fn store(self, out: &mut [f32; LANES]);
    /// Writes them in half precision, rounded to nearest.
    fn store_f16(self, out: &mut [f16; LANES]);
    /// `self + a · b`
    fn plus_product(self, a: Self, b: Self) -> Self;
    /// `self + a`
    fn plus(self, a: Self) -> Self;
    /// `self · a`
    fn times(self, a: Self) -> Self;
    /// `self / a`
    fn over(self, a: Self) -> Self;
    /// The larger of each lane.
    fn max(self, a: Self) -> Self;
    /// The smaller of each lane.
    fn min(self, a: Self) -> Self;
    /// Magnitudes.
    fn abs(self) -> Self;
    /// `self · 2ⁿ` for whole n in [-126, 127].
    fn scaled(self, n: Self) -> Self;
    /// Sum of all lanes.
    fn sum(self) -> f32;
    /// The largest lane.
    fn largest(self) -> f32;

    /// Reads sixteen bfloat16.
    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        let mut wide = [0f32; LANES];
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
        Self::load(&wide)
    }

    /// Reads sixteen pairs of bfloat16: those in the lower halves, and those in the upper ones.
    #[inline(always)]
    fn load_bf16_pairs(x: &[u32; LANES]) -> [Self; 2] {
        let mut wide = [[0f32; LANES]; 2];
        let mut i = 0;
        while i < LANES {
            wide[0][i] = f32::from_bits(x[i] << 16);
            wide[1][i] = f32::from_bits(x[i] & 0xffff_0000);
            i += 1;
        }
        [Self::load(&wide[0]), Self::load(&wide[1])]
    }

    /// e^x with a relative error under 2e-7, x held in [-87, 88] (range reduction by ln 2 and a degree-6 polynomial, after Cephes `expf`).
    #[inline(always)]
    fn exp(self) -> Self {
        // ln 2 in two parts, so that the reduction loses no bits (Cody and Waite).
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
        let n = Self::splat(ROUND).plus_product(x, Self::splat(std::f32::consts::LOG2_E)).plus(Self::splat(-ROUND));
        let r = x.plus_product(n, Self::splat(-LN2_HIGH)).plus_product(n, Self::splat(-LN2_LOW));
        let mut p = Self::splat(1.987_569_1e-4);
        p = Self::splat(1.398_2e-3).plus_product(p, r);
        p = Self::splat(8.333_452e-3).plus_product(p, r);
        p = Self::splat(4.166_579_6e-2).plus_product(p, r);
        p = Self::splat(1.666_666_5e-1).plus_product(p, r);
        p = Self::splat(0.5).plus_product(p, r);
        let e = r.plus_product(p.times(r), r).plus(Self::splat(1.0));
        e.scaled(n)
    }
}

/// Plain arrays, for every processor.
#[derive(Clone, Copy)]
pub(in crate::engine) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn each(self, a: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], a.0[i])))
    }
}

impl Lanes for Portable {
    const FMA: bool = false;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Portable(*x)
    }
    #[inline(always)]
    fn load_f16(x: &[f16; LANES]) -> Self {
        Portable(std::array::from_fn(|i| widened(x[i])))
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [f16; LANES]) {
        *out = self.0.map(f16::from_f32);
    }
    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    fn plus(self, a: Self) -> Self {
        self.each(a, |x, a| x + a)
    }
    #[inline(always)]
    fn times(self, a: Self) -> Self {
        self.each(a, |x, a| x * a)
    }
    #[inline(always)]
    fn over(self, a: Self) -> Self {
        self.each(a, |x, a| x / a)
    }
    #[inline(always)]
    fn max(self, a: Self) -> Self {
        self.each(a, |x, a| if x > a { x } else { a })
    }
    #[inline(always)]
    fn min(self, a: Self) -> Self {
        self.each(a, |x, a| if x < a { x } else { a })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Portable(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn scaled(self, n: Self) -> Self {
        self.each(n, |x, n| x * f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.iter().sum()
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))
    }
}

/// f32 of a finite f16, without a branch or a call, so that loops over it become vector instructions.
#[inline(always)]
pub(in crate::engine) fn widened(x: f16) -> f32 {
    // The exponent's bias goes from 15 to 127 by a product, which makes normal numbers of subnormal ones, too.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(x.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(target_arch = "x86_64")]
pub(in crate::engine) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes, bf16, f16};
    use std::arch::x86_64::*;

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub(in crate::engine::kernel) __m512);

    // SAFETY (every block below): the type is only used by functions compiled for avx512f, bw, dq and vl that are called after the
    // features were detected, and loads and stores go through references to exactly sixteen elements.
    impl Lanes for Avx512 {
        const FMA: bool = true;
        const WIDE: bool = true;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn load_f16(x: &[f16; LANES]) -> Self {
            Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) })
        }
        #[inline(always)]
        fn load_bf16(x: &[bf16; LANES]) -> Self {
            let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) };
            Avx512(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)) })
        }
        #[inline(always)]
        fn load_bf16_pairs(x: &[u32; LANES]) -> [Self; 2] {
            unsafe {
                let both = _mm512_loadu_si512(x.as_ptr().cast());
                let (low, high) = (_mm512_slli_epi32::<16>(both), _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
                [Avx512(_mm512_castsi512_ps(low)), Avx512(_mm512_castsi512_ps(high))]
            }
        }
        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn store_f16(self, out: &mut [f16; LANES]) {
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
        }
        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        fn plus(self, a: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, a.0) })
        }
        #[inline(always)]
        fn times(self, a: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, a.0) })
        }
        #[inline(always)]
        fn over(self, a: Self) -> Self {
            Avx512(unsafe { _mm512_div_ps(self.0, a.0) })
        }
        #[inline(always)]
        fn max(self, a: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, a.0) })
        }
        #[inline(always)]
        fn min(self, a: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, a.0) })
        }
        #[inline(always)]
        fn abs(self) -> Self {
            Avx512(unsafe { _mm512_abs_ps(self.0) })
        }
        #[inline(always)]
        fn scaled(self, n: Self) -> Self {
            Avx512(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            unsafe { _mm512_reduce_max_ps(self.0) }
        }
    }

    /// Two AVX registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(pub(in crate::engine::kernel) __m256, pub(in crate::engine::kernel) __m256);

    // SAFETY (every block below): as above, for avx2, fma and f16c; `x` and `out` hold sixteen elements, so eight from the eighth on are
    // in bounds.
    impl Lanes for Avx2 {
        const FMA: bool = true;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }
        #[inline(always)]
        fn load_f16(x: &[f16; LANES]) -> Self {
            let p: *const __m128i = x.as_ptr().cast();
            unsafe { Avx2(_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))) }
        }
        #[inline(always)]
        fn load_bf16_pairs(x: &[u32; LANES]) -> [Self; 2] {
            let p: *const __m256i = x.as_ptr().cast();
            unsafe {
                let (a, b, upper) = (_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)), _mm256_set1_epi32(0xffff_0000_u32 as i32));
                let (low, other_low) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let (high, other_high) = (_mm256_and_si256(a, upper), _mm256_and_si256(b, upper));
                [
                    Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(other_low)),
                    Avx2(_mm256_castsi256_ps(high), _mm256_castsi256_ps(other_high)),
                ]
            }
        }
        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
        }
        #[inline(always)]
        fn store_f16(self, out: &mut [f16; LANES]) {
            let p: *mut __m128i = out.as_mut_ptr().cast();
            unsafe {
                _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
                _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
            }
        }
        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        fn plus(self, a: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, a.0), _mm256_add_ps(self.1, a.1)) }
        }
        #[inline(always)]
        fn times(self, a: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, a.0), _mm256_mul_ps(self.1, a.1)) }
        }
        #[inline(always)]
        fn over(self, a: Self) -> Self {
            unsafe { Avx2(_mm256_div_ps(self.0, a.0), _mm256_div_ps(self.1, a.1)) }
        }
        #[inline(always)]
        fn max(self, a: Self) -> Self {
            unsafe { Avx2(_mm256_max_ps(self.0, a.0), _mm256_max_ps(self.1, a.1)) }
        }
        #[inline(always)]
        fn min(self, a: Self) -> Self {
            unsafe { Avx2(_mm256_min_ps(self.0, a.0), _mm256_min_ps(self.1, a.1)) }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                Avx2(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
            }
        }
        #[inline(always)]
        fn scaled(self, n: Self) -> Self {
            unsafe {
                let bias = _mm256_set1_epi32(127);
                let (a, b) = (_mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias), _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias));
                let (a, b) = (_mm256_castsi256_ps(_mm256_slli_epi32::<23>(a)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(b)));
                Avx2(_mm256_mul_ps(self.0, a), _mm256_mul_ps(self.1, b))
            }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe {
                let eight = _mm256_add_ps(self.0, self.1);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            unsafe {
                let eight = _mm256_max_ps(self.0, self.1);
                let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }
}
