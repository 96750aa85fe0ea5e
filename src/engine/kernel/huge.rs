//! Memory on huge pages, for what is read whole for every token: weights, keys and values. With pages of 4 KiB the processor spends
//! a quarter of that time on finding them (measured: 169 tokens a second without, 222 with).
#![expect(unsafe_code, reason = "plain values are laid out in anonymous mappings")]

use super::{bf16, tiles::Line};
use half::f16;
use memmap2::{MmapMut, MmapRaw};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of a mapping that weights share; larger ones have one of their own.
const CHUNK: usize = 32 << 20;
/// Bytes of a huge page, on most processors.
const HUGE_PAGE: usize = 2 << 20;
/// Beginning of each part: a cache line.
const ALIGNMENT: usize = 64;

/// Values that any bytes are valid for, without padding, aligned to 64 bytes at most.
///
/// # Safety
/// All of the above holds.
pub(in crate::engine) unsafe trait Plain: Copy + Send + Sync {}
// SAFETY: numbers and arrays of them.
unsafe impl Plain for f16 {}
// SAFETY: likewise.
unsafe impl Plain for Line {}
// SAFETY: likewise.
unsafe impl Plain for [f16; 16] {}
// SAFETY: likewise.
unsafe impl Plain for [half::bf16; 16] {}
// SAFETY: likewise.
unsafe impl Plain for bf16::Line {}
// SAFETY: likewise.
unsafe impl Plain for [f32; 16] {}
// SAFETY: likewise.
unsafe impl Plain for [[f32; 16]; 2] {}

/// A slice in a mapping, which it may share with others: no two of them overlap.
pub(in crate::engine) struct Buffer<T> {
    map: Arc<MmapRaw>,
    offset: usize,
    length: usize,
    values: PhantomData<T>,
}

/// The mapping that is being filled, as long as somebody has a part of it, and how far it is filled.
static CURRENT: Mutex<(Weak<MmapRaw>, usize)> = Mutex::new((Weak::new(), 0));

/// A place for `bytes` in the mapping that everybody fills.
fn shared_place(bytes: usize) -> (Arc<MmapRaw>, usize) {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let (map, offset) = match current.0.upgrade() {
        Some(map) if current.1 + bytes <= map.len() => (map, current.1),
        _ => (mapped(bytes.max(CHUNK)).expect("memory for an anonymous mapping"), 0),
    };
    *current = (Arc::downgrade(&map), (offset + bytes).next_multiple_of(ALIGNMENT));
    (map, offset)
}

fn mapped(bytes: usize) -> std::io::Result<Arc<MmapRaw>> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    // Where the system has none, the small ones do.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Arc::new(MmapRaw::from(map)))
}

impl<T: Plain> Buffer<T> {
    /// Zeros in a mapping of their own.
    ///
    /// # Panics
    /// When there is no memory, as with any other allocation.
    pub(in crate::engine) fn zeroed(length: usize) -> Self {
        let map = mapped(length * size_of::<T>()).expect("memory for an anonymous mapping");
        Buffer { map, offset: 0, length, values: PhantomData }
    }

    /// Zeros in a mapping of their own that is whole huge pages if it is no small one: values that are thrown away together, and give
    /// their memory back then.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub(in crate::engine) fn alone(length: usize) -> Self {
        let bytes = length * size_of::<T>();
        // The system puts only mappings of whole huge pages where such pages begin.
        let whole = if bytes > HUGE_PAGE / 2 { bytes.next_multiple_of(HUGE_PAGE) } else { bytes };
        let map = mapped(whole).expect("memory for an anonymous mapping");
        Buffer { map, offset: 0, length, values: PhantomData }
    }

    /// Zeros to be filled with values that stay, where others like them are.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub(in crate::engine) fn shared(length: usize) -> Self {
        let bytes = length * size_of::<T>();
        // A part is handed out once, so that nobody else has a reference to its bytes, which the system made zero.
        let (map, offset) = shared_place(bytes);
        Buffer { map, offset, length, values: PhantomData }
    }

    /// Moves values that stay to where others like them are.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`].
    pub(in crate::engine) fn keep(values: &[T]) -> Self {
        let mut kept = Self::shared(values.len());
        kept.copy_from_slice(values);
        kept
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the part was laid out for `length` values of T, aligned, initialised (by copy, or by the system with zeros), lives as
        // long as the mapping that this holds, and is written only through the exclusive borrow below.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset).cast(), self.length) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; parts of one mapping never overlap, and this one is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.offset).cast(), self.length) }
    }
}

impl<T: Plain> Default for Buffer<T> {
    fn default() -> Self {
        Buffer::keep(&[])
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_values_and_do_not_overlap() {
        let values = |i: usize| (0..1000 * i).map(|x| f16::from_f32((x % 97 + i) as f32)).collect::<Vec<_>>();
        let kept: Vec<Buffer<f16>> = (0..20).map(|i| Buffer::keep(&values(i))).collect();
        let mut own = Buffer::<f16>::zeroed(5000);
        assert!(own.iter().all(|x| *x == f16::ZERO));
        own.fill(f16::ONE);
        let large = Buffer::keep(&vec![[f16::ONE; 16]; CHUNK / 32 + 1]);
        for (i, kept) in kept.iter().enumerate() {
            assert!(**kept == values(i)[..], "part {i}");
            assert_eq!(kept.as_ptr() as usize % ALIGNMENT, 0);
        }
        assert!(large.iter().all(|x| *x == [f16::ONE; 16]) && own.iter().all(|x| *x == f16::ONE));
    }

    #[test]
    fn what_is_alone_shares_its_mapping_with_nothing_and_fills_huge_pages_if_it_is_large() {
        let mut alone = [10, HUGE_PAGE / 64 * 3 / 2].map(Buffer::<[f32; 16]>::alone);
        for alone in &mut alone {
            assert!(alone.iter().all(|x| *x == [0.0; 16]));
            alone.fill([1.0; 16]);
        }
        let shared = Buffer::keep(&[[2f32; 16]; 3]);
        assert!(alone.iter().all(|alone| !Arc::ptr_eq(&alone.map, &shared.map) && alone.iter().all(|x| *x == [1.0; 16])));
        assert_eq!(alone.map(|alone| alone.map.len()), [640, 2 * HUGE_PAGE]);
    }
}
