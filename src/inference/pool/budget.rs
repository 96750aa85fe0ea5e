//! A retry budget: calls that are made again are a bounded share of the requests of the last ten seconds, so that an outage is not
//! made twice as bad by those who wait for its end.

use super::window::{Sums, Window};
use crate::config::ResilienceConfig;
use std::sync::{Mutex, PoisonError};

const LENGTH_MS: u64 = 10_000;

/// The budget of one route.
#[derive(Debug, Default)]
pub(in crate::inference) struct Budget {
    window: Window,
    /// Held while a call is paid for: the last one is not paid twice.
    paying: Mutex<()>,
}

impl Budget {
    /// A request came in.
    pub(in crate::inference) fn earn(&self, now_ms: u64) {
        self.window.add(now_ms, LENGTH_MS, Sums { all: 1, marked: 0 });
    }

    /// Pays for a call that is made again, if there is enough left.
    pub(in crate::inference) fn spend(&self, rules: &ResilienceConfig, now_ms: u64) -> bool {
        let _paying = self.paying.lock().unwrap_or_else(PoisonError::into_inner);
        let Sums { all, marked } = self.window.sums(now_ms, LENGTH_MS);
        let allowed = u64::from(rules.retry_budget_min) + all * u64::from(rules.retry_budget_percent) / 100;
        if marked >= allowed {
            return false;
        }
        self.window.add(now_ms, LENGTH_MS, Sums { all: 0, marked: 1 });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_again_is_a_share_of_what_was_asked() {
        let (budget, rules) = (Budget::default(), ResilienceConfig::default());
        (0..100).for_each(|_| budget.earn(0));
        assert_eq!((0..100).filter(|_| budget.spend(&rules, 5)).count(), 30, "10, and 20 % of 100");
        assert_eq!((0..100).filter(|_| budget.spend(&rules, 20_000)).count(), 10, "later there is the least again");
    }
}
