//! Sixteen floats at a time: AVX-512 and AVX2 registers behind one small trait, and a portable twin that the others are tested against.
//! The loops in `simd.rs` are written over this trait; relying on the compiler to find the lanes by itself was measured to be fifteen
//! times slower in some builds.
#![expect(unsafe_code, reason = "processor intrinsics; every type is used only in functions compiled for its features, after detection")]

/// Lanes of one value.
pub(super) const LANES: usize = 16;

/// Sixteen floats.
pub(super) trait Lanes: Copy {
    /// Whether the processor multiplies and adds in one instruction.
    const FMA: bool;
    /// All lanes the same.
    fn splat(x: f32) -> Self;
    /// Reads sixteen floats.
    fn load(x: &[f32; LANES]) -> Self;
    /// Writes them.
    fn store(self, out: &mut [f32; LANES]);
    /// `self + a · b`
    fn plus_product(self, a: Self, b: Self) -> Self;
    /// Sum of all lanes.
    fn sum(self) -> f32;
}

/// Plain arrays, for every processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

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
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }
    #[inline(always)]
    fn plus_product(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY (every block below): the type is only used by functions compiled for avx512f that are called after the feature was
    // detected, and loads and stores go through references to exactly sixteen floats.
    impl Lanes for Avx512 {
        const FMA: bool = true;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    /// Two AVX registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY (every block below): as above, for avx2 and fma; `x` and `out` hold sixteen floats, so eight from the eighth on are in bounds.
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
        fn store(self, out: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
        }
        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
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
    }
}
