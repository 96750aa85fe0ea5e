//! How many calls a provider gets at once: as many as the suite says, fewer once it says that these are too many, and slowly more again.
//!
//! Source: additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
//! Avoidance", Computer Networks and ISDN Systems 17, 1989). A `Retry-After` is a pause, not a new bound: after it, and after a minute in
//! any case, the provider is asked again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Longest pause before a provider is asked again, whatever it says.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// First pause after a refusal that names none; it doubles with each further one.
const FIRST_REST: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_OWN_REST: Duration = Duration::from_secs(10);

/// The calls of one provider.
pub(super) struct Pace {
    most: f64,
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    /// Calls that may be under way; the whole part counts.
    limit: f64,
    inside: usize,
    rest_until: Option<Instant>,
    /// When the limit was lowered last.
    lowered: Option<Instant>,
    refusals: u32,
}

/// A call under way.
pub(super) struct Permit {
    pace: Arc<Pace>,
    began: Instant,
}

impl Pace {
    /// Begins with as many calls as there may ever be.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        let state = State { limit: most, inside: 0, rest_until: None, lowered: None, refusals: 0 };
        Pace { most, state: Mutex::new(state), freed: Notify::new() }
    }

    /// Waits until a call may be made.
    pub(super) async fn enter(self: &Arc<Self>) -> Permit {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Whoever leaves from here on is heard.
            freed.as_mut().enable();
            match self.try_enter() {
                Ok(permit) => return permit,
                Err(Some(until)) => sleep_until(until).await,
                Err(None) => freed.await,
            }
        }
    }

    /// A permit, or until when nobody gets one.
    fn try_enter(self: &Arc<Self>) -> Result<Permit, Option<Instant>> {
        let (mut state, now) = (self.lock(), Instant::now());
        if let Some(until) = state.rest_until.filter(|until| *until > now) {
            return Err(Some(until));
        }
        if state.inside >= state.limit as usize {
            return Err(None);
        }
        state.inside += 1;
        Ok(Permit { pace: self.clone(), began: now })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a few assignments: there is no half-changed state that a panic could leave.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The provider answered: with as many answers as there are calls under way, one more call is allowed.
    pub(super) fn answered(self) {
        let grew = {
            let mut state = self.pace.lock();
            state.refusals = 0;
            let before = state.limit as usize;
            state.limit = (state.limit + 1.0 / state.limit).min(self.pace.most);
            state.limit as usize > before
        };
        if grew {
            self.pace.freed.notify_one();
        }
    }

    /// The provider had too much to do. Calls that began before the limit was lowered say nothing about the lower one.
    pub(super) fn refused(self, retry_after: Option<Duration>) {
        let (mut state, now) = (self.pace.lock(), Instant::now());
        if state.lowered.is_none_or(|lowered| self.began >= lowered) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.lowered = Some(now);
            state.refusals += 1;
        }
        let own = FIRST_REST.saturating_mul(1 << state.refusals.saturating_sub(1).min(10)).min(LONGEST_OWN_REST);
        let rest = retry_after.map_or(own, |asked| asked.min(LONGEST_REST));
        state.rest_until = state.rest_until.max(Some(now + rest));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pace.lock().inside -= 1;
        self.pace.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(pace: &Arc<Pace>) -> usize {
        pace.lock().limit as usize
    }

    #[tokio::test]
    async fn refusals_halve_once_and_answers_bring_the_limit_back() {
        let pace = Arc::new(Pace::new(8));
        let mut inside = Vec::new();
        for _ in 0..8 {
            inside.push(pace.enter().await);
        }
        // All eight were under way when the limit was lowered: it is lowered once.
        inside.into_iter().for_each(|permit| permit.refused(Some(Duration::from_secs(3600))));
        assert_eq!(limit(&pace), 4);
        let until = pace.try_enter().err().flatten().expect("it rests");
        assert!(until <= Instant::now() + LONGEST_REST, "an hour is not believed");
        pace.lock().rest_until = None;
        for _ in 0..60 {
            pace.enter().await.answered();
        }
        assert_eq!(limit(&pace), 8);
    }

    #[tokio::test]
    async fn everybody_gets_in_and_never_more_than_may() {
        let pace = Arc::new(Pace::new(2));
        let calls = (0..50).map(|_| {
            let pace = pace.clone();
            tokio::spawn(async move {
                let permit = pace.enter().await;
                assert!(pace.lock().inside <= 2);
                tokio::task::yield_now().await;
                permit.answered();
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.expect("ends");
        }
        assert_eq!(pace.lock().inside, 0);
    }
}
