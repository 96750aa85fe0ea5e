//! What the cases of an execution share: the plan, the pace of each provider, the purse, and what is under way. An execution that ends
//! early takes no new cases and waits for those under way, because they are paid for.

use super::order::{Answered, Place};
use super::pace::{Pace, Permit};
use super::prepare::{Plan, PlanTarget};
use super::purse::{Held, Purse};
use crate::store::runs::CaseRecord;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What cases share.
pub(super) struct Work<'p> {
    /// Run.
    pub(super) run: &'p str,
    /// What is asked.
    pub(super) plan: &'p Plan,
    /// What was answered before.
    pub(super) answered: &'p Answered,
    /// What it may cost.
    pub(super) purse: Purse,
    paces: HashMap<String, Arc<Pace>>,
    closed: watch::Sender<bool>,
    /// Cases under way, with what their calls have cost or may cost.
    under_way: Mutex<HashMap<Place, i64>>,
}

impl<'p> Work<'p> {
    /// Nothing is under way yet.
    pub(super) fn new(run: &'p str, plan: &'p Plan, answered: &'p Answered, spent: i64) -> Self {
        let providers = plan.targets.iter().map(|target| provider(target).to_string());
        let paces = providers.map(|name| (name, Arc::new(Pace::new(plan.suite.concurrency)))).collect();
        let purse = Purse::new(plan.suite.bounds.cost, spent);
        Work { run, plan, answered, purse, paces, closed: watch::Sender::new(false), under_way: Mutex::default() }
    }

    /// No call begins any more.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether calls may still begin.
    pub(super) fn is_open(&self) -> bool {
        !*self.closed.borrow() && !self.purse.is_empty()
    }

    /// Waits for a place at the target's provider and for the money of a call; none where the call is not to be made.
    pub(super) async fn begin(&self, target: &PlanTarget, place: Place, most: Option<MicroUsd>) -> Option<(Permit, Held<'_>)> {
        let mut closed = self.closed.subscribe();
        let begun = tokio::select! {
            biased;
            // The sender is alive as long as this borrow.
            _ = closed.wait_for(|closed| *closed) => None,
            begun = async {
                let permit = self.paces.get(provider(target))?.enter().await;
                Some((permit, self.purse.reserve(most).await?))
            } => begun,
        }?;
        *self.lock().entry(place).or_default() += most.map_or(0, |most| most.0);
        Some(begun)
    }

    /// What the calls of a case have cost so far.
    pub(super) fn cost(&self, place: Place, paid: i64) {
        self.lock().insert(place, paid);
    }

    /// A case has its outcome.
    pub(super) fn end(&self, place: Place) {
        self.lock().remove(&place);
    }

    /// Cases whose calls were given up. Where there is a bound they cost what was set aside for them, so that no later execution
    /// spends it again.
    pub(super) fn given_up(&self) -> Vec<CaseRecord> {
        let lost = |(place, cost): (&Place, &i64)| CaseRecord {
            target: self.plan.targets[place.target].name.clone(),
            sample: self.plan.samples.get(place.position).map(|sample| sample.id).unwrap_or_default(),
            position: place.position,
            repeat: place.repeat,
            scores: json!({}),
            error: Some(format!("{}: the run ended before this call did", Code::CANCELLED.name)),
            cost_micro_usd: Some(*cost),
            finished_at: now_ms(),
            ..CaseRecord::default()
        };
        if self.purse.is_bounded() { self.lock().iter().map(lost).collect() } else { Vec::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Place, i64>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn provider(target: &PlanTarget) -> &str {
    target.manifest.model.split('/').next().unwrap_or_default()
}

/// Whether a call that failed is known to have used nothing: nobody was asked, or the provider refused to work.
pub(super) fn used_nothing(failure: &Failure) -> bool {
    let code = failure.code();
    let refused = code.status < 499 && code != Code::CONTENT_FILTER;
    let away = matches!(code, Code::UPSTREAM_OVERLOADED | Code::UNAVAILABLE);
    failure.about().is_none_or(|told| told.attempts.unwrap_or(0) == 0) || refused || away
}
