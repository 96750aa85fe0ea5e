//! How long the request log keeps what it keeps. Old rows, or old bodies, go in short transactions with pauses between them, so that
//! whoever writes beside them waits for a moment at most. What was used by day stays: `usage_by_day` is not touched.

use crate::config::LogConfig;
use crate::store::{Store, StoreError, log};
use crate::types::time::now_ms;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rows that go in one transaction.
const BATCH: usize = 200;
/// Shortest pause between two transactions.
const PAUSE: Duration = Duration::from_millis(5);
/// Rows may reach the database so late, milliseconds: further back nothing is looked at twice.
const LATE_MS: i64 = 86_400_000;
const DAY_MS: i64 = 86_400_000;
/// How often [`keep`] looks whether something is due, and when it is.
const LOOK: Duration = Duration::from_secs(2);
const DUE: Duration = Duration::from_secs(600);

/// What is too old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Days after which rows go.
    pub rows_days: Option<u64>,
    /// Days after which bodies go.
    pub bodies_days: Option<u64>,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Requests that were deleted.
    pub requests: u64,
    /// Requests whose bodies were deleted.
    pub bodies: u64,
}

impl Rules {
    /// What a configuration says.
    pub fn of(config: &LogConfig) -> Self {
        let days = |days: u64| Some(days).filter(|days| *days > 0);
        Rules { rows_days: days(config.retention_days), bodies_days: days(config.bodies_retention_days) }
    }

    fn before(days: Option<u64>, now: i64) -> Option<i64> {
        Some(now.saturating_sub(i64::try_from(days?).unwrap_or(i64::MAX).saturating_mul(DAY_MS)))
    }
}

/// How much would go now. Blocking.
///
/// # Errors
/// When the database fails.
pub fn would_go(store: &Store, rules: Rules) -> Result<Pruned, StoreError> {
    let now = now_ms();
    let (rows, bodies) = (Rules::before(rules.rows_days, now), Rules::before(rules.bodies_days, now));
    let (requests, bodies) = log::count_before(store.db.as_ref(), rows, bodies)?;
    Ok(Pruned { requests, bodies })
}

/// Deletes what is too old, as long as it may go on. `done` is where bodies were deleted up to already; it is moved on. Blocking.
///
/// # Errors
/// When the database fails; what went is gone.
pub fn prune(store: &Store, rules: Rules, done: &mut i64, goes_on: impl Fn() -> bool) -> Result<Pruned, StoreError> {
    let (now, mut pruned) = (now_ms(), Pruned::default());
    if let Some(before) = Rules::before(rules.rows_days, now) {
        loop {
            let begun = Instant::now();
            let gone = log::delete_before(store.db.as_ref(), before, BATCH)?;
            pruned.requests += gone as u64;
            if !goes_on() {
                return Ok(pruned);
            }
            if gone < BATCH {
                break;
            }
            pause(begun);
        }
    }
    if let Some(before) = Rules::before(rules.bodies_days, now) {
        let mut last = (*done, String::new());
        loop {
            let begun = Instant::now();
            let cleared = log::clear_bodies(store.db.as_ref(), &last, before, BATCH)?;
            pruned.bodies += cleared.cleared as u64;
            if !goes_on() {
                return Ok(pruned);
            }
            match cleared.last {
                Some(reached) if cleared.looked_at == BATCH => last = reached,
                _ => break,
            }
            if cleared.cleared > 0 {
                pause(begun);
            }
        }
        *done = before.saturating_sub(LATE_MS);
    }
    Ok(pruned)
}

/// Whoever writes beside this gets at least as much time as it takes.
fn pause(begun: Instant) {
    std::thread::sleep(begun.elapsed().max(PAUSE));
}

/// Says that it is over when it is dropped.
#[derive(Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Prunes at once, whenever the rules have changed, and every ten minutes, until it is dropped; what is being deleted then ends with its
/// transaction.
pub async fn keep(store: Store, rules: impl Fn() -> Rules) {
    let over = Over::default();
    let mut done = 0;
    let mut last: Option<(Rules, Instant)> = None;
    loop {
        let now = rules();
        let due = last.is_none_or(|(rules, at)| rules != now || at.elapsed() >= DUE);
        if due && now != Rules::default() {
            let (of, from) = (store.clone(), if last.is_some_and(|(rules, _)| rules != now) { 0 } else { done });
            let stopped = over.0.clone();
            let pruned = tokio::task::spawn_blocking(move || {
                let mut done = from;
                prune(&of, now, &mut done, || !stopped.load(Ordering::Relaxed)).map(|pruned| (pruned, done))
            });
            match pruned.await {
                Ok(Ok((pruned, reached))) => {
                    done = reached;
                    if pruned != Pruned::default() {
                        tracing::info!(requests = pruned.requests, bodies = pruned.bodies, "old log rows were deleted");
                    }
                }
                Ok(Err(error)) => tracing::error!(%error, "old log rows could not be deleted; it is tried again"),
                Err(error) => tracing::error!(%error, "deleting old log rows broke off; it is tried again"),
            }
        }
        if due {
            last = Some((now, Instant::now()));
        }
        tokio::time::sleep(LOOK).await;
    }
}
