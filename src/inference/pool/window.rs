//! Two counts over the last while, without a lock: how much there was of something, and how much of it is marked.

use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 10;
/// Bits of each count in a slot; the rest holds which slot of time it is.
const BITS: u32 = 20;
const MAX: u64 = (1 << BITS) - 1;

/// A ring of slots of time.
#[derive(Debug, Default)]
pub(super) struct Window {
    slots: [AtomicU64; SLOTS],
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) all: u64,
    pub(super) marked: u64,
}

/// Which slot of time a moment is in, and its stamp; no stamp is 0, which is what an empty slot holds.
fn slot(now_ms: u64, length_ms: u64) -> (u64, u64) {
    let tick = now_ms / (length_ms / SLOTS as u64).max(1);
    (tick, (tick + 1) & (u64::MAX >> (2 * BITS)))
}

impl Window {
    /// Counts one, marked or not.
    pub(super) fn add(&self, now_ms: u64, length_ms: u64, more: Sums) {
        let (tick, stamp) = slot(now_ms, length_ms);
        let cell = &self.slots[(tick % SLOTS as u64) as usize];
        let step = |was: u64| {
            let (all, marked) = if was >> (2 * BITS) == stamp { ((was >> BITS) & MAX, was & MAX) } else { (0, 0) };
            Some(stamp << (2 * BITS) | (all + more.all).min(MAX) << BITS | (marked + more.marked).min(MAX))
        };
        // The step never refuses.
        let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// What there was in the last `length_ms`.
    pub(super) fn sums(&self, now_ms: u64, length_ms: u64) -> Sums {
        let (tick, _) = slot(now_ms, length_ms);
        let mut sums = Sums::default();
        for back in 0..(SLOTS as u64).min(tick + 1) {
            let tick = tick - back;
            let stamp = (tick + 1) & (u64::MAX >> (2 * BITS));
            let held = self.slots[(tick % SLOTS as u64) as usize].load(Ordering::Relaxed);
            if held >> (2 * BITS) == stamp {
                sums.all += (held >> BITS) & MAX;
                sums.marked += held & MAX;
            }
        }
        sums
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let window = Window::default();
        let one = Sums { all: 1, marked: 0 };
        for at in [0, 500, 9_999] {
            window.add(at, 10_000, one);
        }
        window.add(9_999, 10_000, Sums { all: 1, marked: 1 });
        assert_eq!(window.sums(9_999, 10_000), Sums { all: 4, marked: 1 });
        assert_eq!(window.sums(10_000, 10_000), Sums { all: 2, marked: 1 });
        assert_eq!(window.sums(40_000, 10_000), Sums::default());
        window.add(40_000, 10_000, one);
        assert_eq!(window.sums(40_000, 10_000), one);
        window.clear();
        assert_eq!(window.sums(40_000, 10_000), Sums::default());
    }
}
