//! Waiting for what comes soon. A loop with nothing to do lets its core sleep, and waking it costs more than a short answer takes to come,
//! in a virtual machine several times more. So one who waits, and the last times did not wait long, looks again for a moment before the
//! loop may sleep; whatever else comes meanwhile is served as ever. Where answers take their time, as a model's do, nobody looks twice.
//!
//! One who looks again keeps his core, and whoever is to answer may have been woken on that very core: the system takes it that a
//! writer is about to sleep. To look in vain therefore costs all of the moment, and must stay rare.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::thread::LocalKey;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};

/// What is soon, and for how long it is looked again: as long as Linux polls in a virtual machine before it halts a core
/// (`guest_halt_poll_ns`), where that is on.
const SOON: Duration = Duration::from_micros(200);

/// So many waits in a row have to be short before one looks again.
const SHORT: u8 = 8;

/// Waits of one kind on one thread.
#[derive(Debug)]
pub struct Waits {
    /// How many there are now. More than one is work enough: what comes is then read in larger batches.
    now: Cell<usize>,
    /// How many of the last ones were short, up to [`SHORT`].
    short: Cell<u8>,
}

impl Waits {
    /// None yet.
    pub const fn new() -> Self {
        Waits { now: Cell::new(0), short: Cell::new(0) }
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

/// A wait, counted until it is dropped.
struct Counted(&'static LocalKey<Waits>);

impl Counted {
    fn is_alone(&self) -> bool {
        self.0.with(|waits| waits.short.get() == SHORT && waits.now.get() == 1)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.with(|waits| waits.now.set(waits.now.get().saturating_sub(1)));
    }
}

/// What comes of something that is waited for. Looks again on event loops of one thread only: there a look is one system call, and a
/// task stays where it is.
pub async fn soon<T>(waits: &'static LocalKey<Waits>, coming: impl Future<Output = T>) -> T {
    if Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
        return coming.await;
    }
    let mut coming = pin!(coming);
    waits.with(|waits| waits.now.set(waits.now.get() + 1));
    let counted = Counted(waits);
    let began = Instant::now();
    let come = loop {
        if let Poll::Ready(come) = poll_fn(|context| Poll::Ready(coming.as_mut().poll(context))).await {
            break come;
        }
        if !counted.is_alone() || began.elapsed() >= SOON {
            break coming.await;
        }
        // Behind a look at everything that the loop waits for.
        tokio::task::yield_now().await;
    };
    let is_short = began.elapsed() < SOON;
    waits.with(|waits| waits.short.set(if is_short { (waits.short.get() + 1).min(SHORT) } else { 0 }));
    come
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    thread_local!(static WAITS: Waits = const { Waits::new() });

    /// How often something that is waited for is looked at.
    async fn looks(coming: impl Future<Output = ()>) -> usize {
        let looks = AtomicUsize::new(0);
        let mut coming = pin!(coming);
        let looked = poll_fn(|context| {
            looks.fetch_add(1, Ordering::Relaxed);
            coming.as_mut().poll(context)
        });
        soon(&WAITS, looked).await;
        looks.into_inner()
    }

    #[tokio::test]
    async fn only_one_who_did_not_wait_long_for_a_while_looks_again() {
        let are_short = async || {
            for _ in 0..SHORT {
                assert_eq!(looks(std::future::ready(())).await, 1);
            }
        };
        let long = || tokio::time::sleep(Duration::from_millis(30));
        let few = 2..=4;
        assert!(few.contains(&looks(long()).await), "nobody knows how long");
        // The machine may have something else to do for just that long.
        let mut most = 0;
        for _ in 0..20 {
            are_short().await;
            most = most.max(looks(long()).await);
            for _ in 1..SHORT {
                looks(std::future::ready(())).await;
            }
            assert!(few.contains(&looks(long()).await), "a long wait is among the last ones");
        }
        assert!(most > 10, "{most}: the waits before were none");
        are_short().await;
        let (one, other) = tokio::join!(looks(long()), looks(long()));
        assert!(one + other <= 10, "{one} and {other}: two who wait are work enough");
    }
}
