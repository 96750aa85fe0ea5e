//! Waiting for what comes soon. A loop with nothing to do lets its core sleep, and waking it costs more than a short answer takes to come,
//! in a virtual machine several times more. So one who waits, and the last time did not wait long, looks again for a moment before the
//! loop may sleep; whatever else comes meanwhile is served as ever. Where answers take their time, as a model's do, nobody looks twice.

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

/// Waits of one kind on one thread.
#[derive(Debug)]
pub struct Waits {
    /// How many there are now. More than one is work enough: what comes is then read in larger batches.
    now: Cell<usize>,
    /// Whether the last one was short.
    short: Cell<bool>,
}

impl Waits {
    /// None yet.
    pub const fn new() -> Self {
        Waits { now: Cell::new(0), short: Cell::new(false) }
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
        self.0.with(|waits| waits.short.get() && waits.now.get() == 1)
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
    waits.with(|waits| waits.short.set(began.elapsed() < SOON));
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
    async fn only_one_who_did_not_wait_long_looks_again() {
        let long = || tokio::time::sleep(Duration::from_millis(30));
        let few = 2..=4;
        assert!(few.contains(&looks(long()).await), "nobody knows how long");
        // The machine may have something else to do for just that long.
        let mut most = 0;
        for _ in 0..20 {
            assert_eq!(looks(std::future::ready(())).await, 1);
            most = most.max(looks(long()).await);
        }
        assert!(most > 10, "{most}: the wait before was none");
        assert!(few.contains(&looks(long()).await), "the wait before was long");
        looks(std::future::ready(())).await;
        let (one, other) = tokio::join!(looks(long()), looks(long()));
        assert!(one + other <= 10, "{one} and {other}: two who wait are work enough");
    }
}
