//! Which instructions the kernels use, found once at run time, so that a binary built for plain x86-64 (or ARM) runs at speed.

use std::sync::OnceLock;

/// A set of instructions that this processor was found to have: holding one is the proof that its kernels may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// AVX-512 with VNNI: 64 products of bytes in an instruction.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX2 with AVX-VNNI: 32 of them.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Safe Rust that the compiler makes vector instructions of.
    Portable,
}

impl Isa {
    /// The best that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All that this processor has, best first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512vnni") {
                found.push(Isa(Kind::Avx512Vnni));
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                found.push(Isa(Kind::AvxVnni));
            }
            if avx2 {
                found.push(Isa(Kind::Avx2));
            }
        }
        found.push(Isa(Kind::Portable));
        found
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }
}

/// Defines `$name(isa, …)`: one of several compilations of the generic `$body::<D>`, by instruction set. `D` implements
/// [`Dots`](super::dots::Dots). The bodies must be `#[inline(always)]`, all the way down to the intrinsics.
macro_rules! compiled {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls what was compiled for features that were detected"))]
        $vis fn $name(isa: $crate::engine::kernel::isa::Isa, $($arg: $type),*) $(-> $ret)? {
            use $crate::engine::kernel::{dots, isa::Kind};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn avx512_vnni($($arg: $type),*) $(-> $ret)? { $body::<dots::Avx512Vnni>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
            fn avx_vnni($($arg: $type),*) $(-> $ret)? { $body::<dots::AvxVnni>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) $(-> $ret)? { $body::<dots::Avx2>($($arg),*) }
            match isa.kind() {
                // SAFETY: an `Isa` of a kind exists only where every feature of that kind was detected; likewise below.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512Vnni => unsafe { avx512_vnni($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Kind::AvxVnni => unsafe { avx_vnni($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => unsafe { avx2($($arg),*) },
                Kind::Portable => $body::<dots::Portable>($($arg),*),
            }
        }
    };
}
pub(super) use compiled;
