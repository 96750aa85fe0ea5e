//! Parts of a thing that all threads share, one for each thread, so that they do not wait for each other.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many parts there are; threads beyond that share them.
pub const SHARDS: usize = 16;

/// The part of the thread that asks.
pub fn of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    MINE.with(|mine| *mine)
}
