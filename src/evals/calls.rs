//! What the calls of an execution share: the money, the pace of each provider, and how many may be made at once. Calls of targets and
//! calls of scorers go through here alike.

use super::pace::{Pace, Permit};
use super::purse::{Held, Purse};
use crate::types::money::MicroUsd;
use crate::types::{Code, Failure};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// What calls share.
pub(super) struct Calls {
    /// What they may cost.
    pub(super) purse: Purse,
    concurrency: usize,
    /// Calls at once, over all providers; who waits longest comes first, so that no provider is far ahead of another.
    slots: Semaphore,
    paces: Mutex<HashMap<String, Arc<Pace>>>,
    closed: watch::Sender<bool>,
}

/// A call that may be made.
pub(super) struct Leave<'c> {
    /// Its place at the provider.
    pub(super) permit: Permit,
    /// Its money.
    pub(super) held: Held<'c>,
    _slot: SemaphorePermit<'c>,
}

impl Calls {
    /// So many at once at most, for so much money, of which some is spent.
    pub(super) fn new(concurrency: usize, limit: Option<MicroUsd>, spent: i64) -> Self {
        let slots = Semaphore::new(concurrency.max(1));
        Calls { purse: Purse::new(limit, spent), concurrency, slots, paces: Mutex::default(), closed: watch::Sender::new(false) }
    }

    /// No call begins any more.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether calls may still begin.
    pub(super) fn is_open(&self) -> bool {
        !*self.closed.borrow() && !self.purse.is_empty()
    }

    /// Waits for a place at the provider of a model, for a slot and for the money of the call; none where it is not to be made. A
    /// provider that rests keeps only its own calls waiting: they take no slot.
    pub(super) async fn begin(&self, model: &str, most: Option<MicroUsd>) -> Option<Leave<'_>> {
        let mut closed = self.closed.subscribe();
        let pace = self.pace(provider_of(model));
        tokio::select! {
            biased;
            // The sender is alive as long as this borrow.
            _ = closed.wait_for(|closed| *closed) => None,
            begun = async {
                let permit = pace.enter().await;
                let slot = self.slots.acquire().await.ok()?;
                Some(Leave { permit, held: self.purse.reserve(most).await?, _slot: slot })
            } => begun,
        }
    }

    /// Why a call was not made.
    pub(super) fn why_not(&self) -> Failure {
        match self.purse.is_empty() {
            true => Failure::new(Code::BUDGET, "what is left of max_cost is too little for this call"),
            false => Failure::new(Code::CANCELLED, "the run ended before this call was made"),
        }
    }

    fn pace(&self, provider: &str) -> Arc<Pace> {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        match paces.get(provider) {
            Some(pace) => pace.clone(),
            None => paces.entry(provider.to_string()).or_insert_with(|| Arc::new(Pace::new(self.concurrency))).clone(),
        }
    }
}

/// The provider of a `provider/model`; a route is one of its own.
pub(super) fn provider_of(model: &str) -> &str {
    model.split('/').next().unwrap_or_default()
}

/// Whether a provider says that it has too much to do.
pub(super) fn is_busy(failure: &Failure) -> bool {
    matches!(failure.code(), Code::RATE_LIMIT | Code::OVERLOADED | Code::UNAVAILABLE | Code::UPSTREAM_OVERLOADED)
}

/// What a call that failed cost, where anybody counted: none is counted of most, also where the provider worked.
pub(super) fn cost_of_failure(failure: &Failure) -> Option<i64> {
    let counted = failure.about().and_then(|told| told.cost.micro_usd()).filter(|cost| *cost > 0);
    counted.or(used_nothing(failure).then_some(0))
}

/// Whether a call that failed is known to have used nothing: nobody was asked, or the provider refused to work.
fn used_nothing(failure: &Failure) -> bool {
    let code = failure.code();
    let refused = code.status < 499 && code != Code::CONTENT_FILTER;
    let away = matches!(code, Code::UPSTREAM_OVERLOADED | Code::UNAVAILABLE);
    failure.about().is_none_or(|told| told.attempts.unwrap_or(0) == 0) || refused || away
}
