//! Calls that a place works on at once, and a queue before it: first come, first served, of bounded length and patience. The bounds
//! may change while calls are inside.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The bounds of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) concurrency: usize,
    pub(super) queue: usize,
    pub(super) patience: Duration,
}

/// A gate.
#[derive(Debug)]
pub(in crate::inference) struct Gate {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Permits that are out beyond a bound that has become lower; taken in when they come back.
    debt: AtomicUsize,
    queue: AtomicUsize,
    patience_ms: AtomicU64,
    concurrency: Mutex<usize>,
}

/// A place inside, given back on drop.
#[derive(Debug)]
pub(in crate::inference) struct Permit {
    inner: Option<OwnedSemaphorePermit>,
    gate: Arc<Gate>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inference) enum NoPlace {
    /// As many wait as may.
    Full,
    /// None became free in time.
    TooLate,
}

impl Gate {
    pub(super) fn new(bounds: Bounds) -> Self {
        Gate {
            free: Arc::new(Semaphore::new(bounds.concurrency)),
            waiting: AtomicUsize::new(0),
            debt: AtomicUsize::new(0),
            queue: AtomicUsize::new(bounds.queue),
            patience_ms: AtomicU64::new(millis(bounds.patience)),
            concurrency: Mutex::new(bounds.concurrency),
        }
    }

    /// Other bounds from now on; who is inside stays.
    pub(super) fn set(&self, bounds: Bounds) {
        self.queue.store(bounds.queue, Ordering::Relaxed);
        self.patience_ms.store(millis(bounds.patience), Ordering::Relaxed);
        let mut was = self.concurrency.lock().unwrap_or_else(PoisonError::into_inner);
        if bounds.concurrency < *was {
            let fewer = *was - bounds.concurrency;
            let taken = self.free.forget_permits(fewer);
            self.debt.fetch_add(fewer - taken, Ordering::AcqRel);
        }
        for _ in *was..bounds.concurrency {
            if !self.pay() {
                self.free.add_permits(1);
            }
        }
        *was = bounds.concurrency;
    }

    /// Takes one off the debt, if there is any.
    fn pay(&self) -> bool {
        self.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| debt.checked_sub(1)).is_ok()
    }

    /// Whether a call would go in without waiting.
    pub(in crate::inference) fn has_room(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Goes in, if there is room now.
    pub(in crate::inference) fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        let inner = self.free.clone().try_acquire_owned().ok()?;
        Some(Permit { inner: Some(inner), gate: self.clone() })
    }

    /// Goes in, waiting for a place until the deadline or as long as the gate's patience lasts.
    pub(in crate::inference) async fn enter(self: &Arc<Self>, deadline: Option<Instant>) -> Result<Permit, NoPlace> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        let _place = self.line_up().ok_or(NoPlace::Full)?;
        let patience = Instant::now() + Duration::from_millis(self.patience_ms.load(Ordering::Relaxed));
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        match timeout_at(until, self.free.clone().acquire_owned()).await {
            Ok(Ok(inner)) => Ok(Permit { inner: Some(inner), gate: self.clone() }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(NoPlace::TooLate),
        }
    }

    fn line_up(&self) -> Option<Place<'_>> {
        let queue = self.queue.load(Ordering::Relaxed);
        let step = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok().then_some(Place(&self.waiting))
    }
}

/// A place in the queue, given up on drop.
struct Place<'g>(&'g AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.gate.debt.load(Ordering::Acquire) > 0
            && self.gate.pay()
            && let Some(inner) = self.inner.take()
        {
            inner.forget();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(concurrency: usize, queue: usize) -> Bounds {
        Bounds { concurrency, queue, patience: Duration::from_millis(20) }
    }

    #[tokio::test]
    async fn a_full_queue_turns_away_and_patience_ends() {
        let gate = Arc::new(Gate::new(bounds(1, 1)));
        let held = gate.try_enter().expect("room");
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(None).await.map(drop) }
        });
        while gate.waiting.load(Ordering::Acquire) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter(None).await.map(drop), Err(NoPlace::Full));
        assert_eq!(waiting.await.expect("ends"), Err(NoPlace::TooLate));
        drop(held);
        assert!(gate.enter(None).await.is_ok());
    }

    #[tokio::test]
    async fn bounds_change_while_calls_are_inside() {
        let gate = Arc::new(Gate::new(bounds(3, 0)));
        let inside: Vec<_> = (0..3).map(|_| gate.try_enter().expect("room")).collect();
        gate.set(bounds(1, 0));
        let mut inside = inside.into_iter();
        drop(inside.next());
        drop(inside.next());
        assert!(!gate.has_room(), "one is inside, one may be");
        drop(inside.next());
        let one = gate.try_enter().expect("room");
        assert!(gate.try_enter().is_none());
        gate.set(bounds(2, 0));
        let two = gate.try_enter().expect("room");
        gate.set(bounds(1, 0));
        gate.set(bounds(2, 0));
        assert!(gate.try_enter().is_none());
        drop((one, two));
        assert!(gate.try_enter().is_some());
    }
}
