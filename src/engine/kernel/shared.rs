//! A matrix that several threads write at the same time, each to its own places.
#![expect(unsafe_code, reason = "threads write disjoint, interleaved parts of one slice, which the borrow checker cannot see")]

use std::marker::PhantomData;

/// A mutable slice in the hands of many threads.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    lives: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from an exclusive borrow that lasts as long as this value; access goes through `part`, whose callers
// promise to be the only ones at their place.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), length: slice.len(), lives: PhantomData }
    }

    /// `length` elements from `at` on.
    ///
    /// # Safety
    /// Nobody else may hold an overlapping part at the same time.
    ///
    /// # Panics
    /// When the part reaches past the end.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the part is its own")]
    pub(super) unsafe fn part(&self, at: usize, length: usize) -> &mut [T] {
        assert!(at <= self.length && length <= self.length - at, "a part past the end of a shared slice");
        // SAFETY: in bounds by the assertion, alive by the lifetime, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), length) }
    }

    /// `length` elements from `at` on, to be read.
    ///
    /// # Safety
    /// Nobody may write to an overlapping part at the same time.
    ///
    /// # Panics
    /// As [`Shared::part`].
    #[inline(always)]
    pub(super) unsafe fn read(&self, at: usize, length: usize) -> &[T] {
        assert!(at <= self.length && length <= self.length - at, "a part past the end of a shared slice");
        // SAFETY: in bounds by the assertion, alive by the lifetime, unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(at), length) }
    }
}
