//! What the cases of an execution share: the plan, its calls, and what is under way. An execution that ends early takes no new cases and
//! waits for those under way, because they are paid for.

use super::calls::{Calls, Leave};
use super::order::{Answered, Place};
use super::paid::Spent;
use super::prepare::Plan;
use super::scorers::seam::SCORER_ERROR;
use crate::store::runs::CaseRecord;
use crate::types::Code;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What cases share.
pub(super) struct Work<'p> {
    /// Run.
    pub(super) run: &'p str,
    /// What is asked.
    pub(super) plan: &'p Plan,
    /// What was answered before.
    pub(super) answered: &'p Answered,
    /// How it is asked.
    pub(super) calls: Calls,
    /// Cases under way.
    under_way: Mutex<HashMap<Place, UnderWay>>,
}

/// A case under way.
#[derive(Default)]
struct UnderWay {
    /// What its calls have cost or may cost.
    cost: i64,
    /// Its answer, while scorers look at it.
    answered: Option<CaseRecord>,
    scoring: Arc<Spent>,
}

impl<'p> Work<'p> {
    /// Nothing is under way yet.
    pub(super) fn new(run: &'p str, plan: &'p Plan, answered: &'p Answered, spent: i64) -> Self {
        let calls = Calls::new(plan.suite.concurrency, plan.suite.bounds.cost, spent);
        Work { run, plan, answered, calls, under_way: Mutex::default() }
    }

    /// Waits until the call of a case may be made; none where it is not to be made.
    pub(super) async fn begin(&self, place: Place, most: Option<MicroUsd>) -> Option<Leave<'_>> {
        let begun = self.calls.begin(&self.plan.targets[place.target].manifest.model, most).await?;
        self.lock().entry(place).or_default().cost += most.map_or(0, |most| most.0);
        Some(begun)
    }

    /// What the calls of a case have cost so far.
    pub(super) fn cost(&self, place: Place, paid: i64) {
        self.lock().entry(place).or_default().cost = paid;
    }

    /// A case has its answer, and scorers begin to look at it.
    pub(super) fn scoring(&self, place: Place, case: &CaseRecord, scoring: Arc<Spent>) {
        let mut all = self.lock();
        let under_way = all.entry(place).or_default();
        (under_way.answered, under_way.scoring) = (Some(case.clone()), scoring);
    }

    /// A case has its outcome.
    pub(super) fn end(&self, place: Place) {
        self.lock().remove(&place);
    }

    /// Cases that were given up. What has its answer keeps it, and is only scored by a later execution. Where there is a bound of money
    /// the others cost what was set aside for them, so that no later execution spends it again.
    pub(super) fn given_up(&self) -> Vec<CaseRecord> {
        let lost = |place: &Place, cost: i64| CaseRecord {
            target: self.plan.targets[place.target].name.clone(),
            sample: self.plan.samples.get(place.position).map(|sample| sample.id).unwrap_or_default(),
            position: place.position,
            repeat: place.repeat,
            scores: json!({}),
            error: Some(format!("{}: the run ended before this call did", Code::CANCELLED.name)),
            cost_micro_usd: Some(cost),
            scoring_cost_micro_usd: Some(0),
            finished_at: now_ms(),
            ..CaseRecord::default()
        };
        let is_bounded = self.calls.purse.is_bounded();
        let kept = |(place, under_way): (&Place, &UnderWay)| match &under_way.answered {
            Some(case) => Some(CaseRecord {
                error: Some(format!("{SCORER_ERROR}{}: the run ended before the scorers did", Code::CANCELLED.name)),
                scoring_cost_micro_usd: under_way.scoring.known(),
                finished_at: now_ms(),
                ..case.clone()
            }),
            None => is_bounded.then(|| lost(place, under_way.cost)),
        };
        self.lock().iter().filter_map(kept).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Place, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
