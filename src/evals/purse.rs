//! What a run may cost. The most that a call can cost is set aside before it is made, and what it did cost takes that place afterwards: so
//! calls at the same time never spend together what none of them would alone.

use crate::types::money::MicroUsd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Money of a run; without a limit it only counts.
pub(super) struct Purse {
    limit: Option<i64>,
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    spent: i64,
    held: i64,
    calls: usize,
    is_empty: bool,
}

/// Money that is set aside for a call.
pub(super) struct Held<'p> {
    purse: &'p Purse,
    most: i64,
    cost: i64,
}

impl Purse {
    /// A purse from which so much was taken before.
    pub(super) fn new(limit: Option<MicroUsd>, spent: i64) -> Self {
        Purse { limit: limit.map(|limit| limit.0), state: Mutex::new(State { spent, ..State::default() }), settled: Notify::new() }
    }

    /// Sets the most aside that a call may cost; waits for calls under way, which may turn out cheaper. None where there is not enough,
    /// and then for nobody any more.
    pub(super) async fn reserve(&self, most: Option<MicroUsd>) -> Option<Held<'_>> {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            {
                let mut state = self.lock();
                let most = most.map_or(0, |most| most.0);
                let fits = self.limit.is_none_or(|limit| state.spent.saturating_add(state.held).saturating_add(most) <= limit);
                if fits && !state.is_empty {
                    state.held += most;
                    state.calls += 1;
                    // A call that is given up cost as much as was set aside.
                    return Some(Held { purse: self, most, cost: most });
                }
                if state.is_empty || state.calls == 0 {
                    state.is_empty = true;
                    self.settled.notify_waiters();
                    return None;
                }
            }
            settled.await;
        }
    }

    /// Whether there is a limit.
    pub(super) fn is_bounded(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether there was not enough for a call.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held<'_> {
    /// The call is done, for what is returned. Where nobody knows what it cost, it cost as much as was set aside.
    pub(super) fn settle(mut self, cost_micro_usd: Option<i64>) -> i64 {
        self.cost = cost_micro_usd.unwrap_or(self.most);
        self.cost
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.purse.lock();
            state.held -= self.most;
            state.spent = state.spent.saturating_add(self.cost);
            state.calls -= 1;
        }
        self.purse.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_set_aside_is_not_spent_twice() {
        let purse = Purse::new(Some(MicroUsd(100)), 10);
        let first = purse.reserve(Some(MicroUsd(60))).await.expect("enough");
        let (second, ()) = tokio::join!(purse.reserve(Some(MicroUsd(60))), async { assert_eq!(first.settle(Some(20)), 20) });
        second.expect("the first was cheaper").settle(None);
        assert!(purse.reserve(Some(MicroUsd(11))).await.is_none() && purse.is_empty());
        assert!(purse.reserve(Some(MicroUsd(1))).await.is_none(), "what is over is over");
        assert!(Purse::new(None, 5).reserve(None).await.is_some());
    }
}
