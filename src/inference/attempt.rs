//! Trying targets until one answers: the chosen one, then others, then the same again after a pause; a second beside the first where
//! the route hedges. It ends with the first byte: what a stream does later is told to the caller as it is. Everything happens in the
//! caller's own task, so that a caller who leaves takes every call along.

use super::Inference;
use super::choice::{Places, can_be_asked, pick};
use super::plan::Plan;
use super::pool::{Kind, Trial, now_ms};
use super::road::{Permits, Road};
use super::said::Says;
use super::ticket::Ticket;
use super::verdict::{self, Again, Refusal};
use crate::types::Failure;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// One call of one target; made anew for each try.
pub(super) type Try<'a, T> = dyn Fn(&Arc<Plan>, Turn) -> BoxFuture<'a, Result<T, Failure>> + Send + Sync + 'a;

/// Whether anybody may be asked after this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The request may be needed again.
    MayRepeat,
    /// Nobody needs the request any more.
    Last,
}

impl Inference {
    /// Calls the road's targets until one answers. Returns the answer and the target that gave it.
    pub(super) async fn attempt<'a, T: Says + 'a>(
        &self,
        ticket: &mut Ticket,
        road: &Road,
        kind: Kind,
        call: &Try<'a, T>,
    ) -> Result<(T, Arc<Plan>), Failure> {
        if ticket.redacts() {
            Box::pin(ticket.redact_large()).await;
        }
        let rules = &road.rules;
        if let Some(budget) = &rules.budget {
            budget.earn(now_ms());
        }
        let own = rules.total_timeout.filter(|_| !road.is_route()).map(|time| Instant::now() + time);
        let deadline = [ticket.due(), own].into_iter().flatten().min();
        let left = rules.attempts;
        let search = Search {
            ticket,
            road,
            kind,
            call,
            left,
            deadline,
            failed: Vec::new(),
            places: Met::default(),
            last: None,
            waited: Duration::ZERO,
        };
        search.run().await
    }
}

/// Targets that a request has met.
#[derive(Default)]
struct Met {
    asked: Places,
    /// Would say the same again.
    out: Places,
    /// Had no place.
    full: Places,
}

/// A call that failed and may be made again.
struct Failed {
    place: usize,
    times: u32,
    not_before: Instant,
}

/// The search for an answer.
struct Search<'s, 'a, T> {
    ticket: &'s mut Ticket,
    road: &'s Road,
    kind: Kind,
    call: &'s Try<'a, T>,
    /// Calls that may still be made.
    left: u32,
    deadline: Option<Instant>,
    failed: Vec<Failed>,
    places: Met,
    last: Option<Failure>,
    /// Pauses so far.
    waited: Duration,
}

/// A target that may be called now.
struct Slot {
    place: usize,
    permits: Permits,
    trial: Trial,
}

/// A call under way.
struct Flight<'a, T> {
    slot: Slot,
    began: Instant,
    limit: Option<Limit>,
    answer: BoxFuture<'a, Result<T, Failure>>,
}

/// The time that a call gets.
#[derive(Clone, Copy)]
struct Limit {
    time: Duration,
    /// For what.
    what: &'static str,
    /// Whether a target that needs more is to blame. Not where others, or a queue, have used up what the request had.
    is_fair: bool,
}

/// The least share of a request's time that is fair to a target.
const FAIR_SHARE: f64 = 0.9;

impl<'a, T: Says + 'a> Search<'_, 'a, T> {
    async fn run(mut self) -> Result<(T, Arc<Plan>), Failure> {
        loop {
            let slot = self.next().await?;
            match self.fly(slot).await {
                Ok(won) => return Ok(won),
                Err((failure, Again::Never)) => return Err(failure),
                Err((failure, _)) => self.last = Some(failure),
            }
        }
    }

    /// The next target, once it may be called.
    async fn next(&mut self) -> Result<Slot, Failure> {
        while self.left > 0 && self.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let met = self.places.asked.and(self.places.out).and(self.places.full);
            let place = match pick(self.road, met, self.kind, self.ticket.stays_with()) {
                Some(place) if self.pays(place) => place,
                Some(_) => break,
                None => {
                    let Some((place, pause)) = self.later() else { break };
                    if !self.pays(place) {
                        break;
                    }
                    self.waited += pause;
                    sleep(pause).await;
                    place
                }
            };
            if let Some(slot) = self.enter(place).await {
                return Ok(slot);
            }
        }
        Err(self.give_up())
    }

    /// Whether the call is free or the budget pays for it: one of a provider that this request has asked already is made again.
    fn pays(&self, place: usize) -> bool {
        let Some(budget) = &self.road.rules.budget else { return true };
        let provider = |place: usize| &self.road.targets[place].provider_name;
        let again = (0..self.road.targets.len()).any(|other| self.places.asked.has(other) && provider(other) == provider(place));
        !again || budget.spend(&self.road.rules.resilience, now_ms())
    }

    /// Which target may be asked soonest, and after which pause, where none can be now.
    fn later(&self) -> Option<(usize, Duration)> {
        let (now, resilience) = (now_ms(), &self.road.rules.resilience);
        let pause = |place: usize| {
            let target = &self.road.lanes[place].target;
            let quiet = if self.road.is_route() || self.places.asked.has(place) { target.quiet_for(now) } else { 0 };
            let backoff = self.failed.iter().find(|failed| failed.place == place);
            let backoff = backoff.map_or(Duration::ZERO, |failed| failed.not_before.saturating_duration_since(Instant::now()));
            // Those who wait for the same moment do not all come in the same moment.
            let spread = if quiet > 0 { jitter(resilience.backoff) } else { Duration::ZERO };
            backoff.max(Duration::from_millis(quiet) + spread)
        };
        let met = self.places.out.and(self.places.full);
        let candidates = (0..self.road.lanes.len())
            .filter(|place| !met.has(*place) && self.road.lanes[*place].target.open_for(resilience, now) == 0)
            .filter(|place| self.places.asked.has(*place) || !can_be_asked(self.road, *place, now));
        let (place, pause) = candidates.map(|place| (place, pause(place))).min_by_key(|(_, pause)| *pause)?;
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() + pause < deadline);
        // One who was asked once and no more does not wait for his turn, either.
        let may_wait = self.road.rules.attempts > 1 && self.waited + pause <= resilience.max_retry_wait;
        (in_time && may_wait).then_some((place, pause))
    }

    /// Takes a place at the target, in its queue if need be.
    async fn enter(&mut self, place: usize) -> Option<Slot> {
        let lane = &self.road.lanes[place];
        let permits = match lane.try_enter() {
            Some(permits) => permits,
            None => {
                let _queued = lane.target.queue();
                self.ticket.queues();
                let entered = lane.enter(self.deadline).await;
                self.ticket.leaves_queue();
                match entered {
                    Ok(permits) => permits,
                    Err(_) => {
                        self.places.full.add(place);
                        return None;
                    }
                }
            }
        };
        let trial = lane.target.admit(&self.road.rules.resilience, now_ms())?;
        Some(Slot { place, permits, trial })
    }

    /// Calls the target, and another beside it where the route hedges and the first is silent for too long.
    async fn fly(&mut self, slot: Slot) -> Result<(T, Arc<Plan>), (Failure, Again)> {
        let mut first = self.launch(slot);
        let hedge_after = self.road.rules.hedge_after.filter(|_| self.left > 0 && self.kind != Kind::Other);
        let Some(after) = hedge_after else {
            let answer = first.answer.as_mut().await;
            return self.land(first, answer);
        };
        tokio::select! {
            biased;
            answer = &mut first.answer => return self.land(first, answer),
            () = sleep(after) => {}
        }
        let Some(slot) = self.beside() else {
            let answer = first.answer.as_mut().await;
            return self.land(first, answer);
        };
        let mut second = self.launch(slot);
        let (answer, done, mut other) = tokio::select! {
            biased;
            answer = &mut first.answer => (answer, first, second),
            answer = &mut second.answer => (answer, second, first),
        };
        if answer.is_ok() {
            other.slot.trial.outrun(self.kind, other.began.elapsed());
            // The call that came too late is cancelled.
            drop(other);
            return self.land(done, answer);
        }
        match self.land(done, answer) {
            Err((failure, again)) if again != Again::Never => {
                self.last = Some(failure);
                self.ticket.calls(&self.road.targets[other.slot.place], 0);
                let answer = other.answer.as_mut().await;
                self.land(other, answer)
            }
            landed => landed,
        }
    }

    /// Another target with room, for a hedge; it is paid for.
    fn beside(&mut self) -> Option<Slot> {
        let met = self.places.asked.and(self.places.out).and(self.places.full);
        let place = pick(self.road, met, self.kind, self.ticket.stays_with())?;
        let lane = &self.road.lanes[place];
        let permits = lane.try_enter()?;
        let paid = self.road.rules.budget.as_ref().is_none_or(|budget| budget.spend(&self.road.rules.resilience, now_ms()));
        let trial = if paid { lane.target.admit(&self.road.rules.resilience, now_ms())? } else { return None };
        Some(Slot { place, permits, trial })
    }

    fn launch(&mut self, slot: Slot) -> Flight<'a, T> {
        let plan = &self.road.targets[slot.place];
        self.left -= 1;
        self.places.asked.add(slot.place);
        self.ticket.calls(plan, 1);
        let began = Instant::now();
        let turn = if self.left == 0 { Turn::Last } else { Turn::MayRepeat };
        let answer = (self.call)(plan, turn);
        let Some(limit) = self.limit(slot.place) else { return Flight { slot, began, limit: None, answer } };
        let target = self.road.lanes[slot.place].target.name().to_string();
        let late = Refusal::TooSlow { target, what: limit.what, limit_ms: limit.time.as_millis() };
        let answer = Box::pin(async move { timeout_at(began + limit.time, answer).await.unwrap_or_else(|_| Err(late.into())) });
        Flight { slot, began, limit: Some(limit), answer }
    }

    /// The time that a call gets, where there is a limit.
    fn limit(&self, place: usize) -> Option<Limit> {
        let own = |time: Option<Duration>, what| time.map(|time| Limit { time, what, is_fair: true });
        let first_byte = self.road.rules.first_byte_timeout.filter(|_| self.kind == Kind::Stream);
        let whole = self.road.lanes[place].total_timeout;
        let rest = self.deadline.map(|deadline| {
            let time = deadline.saturating_duration_since(Instant::now());
            let is_fair = self.road.rules.total_timeout.is_some_and(|all| time >= all.mul_f64(FAIR_SHARE));
            Limit { time, what: "whole reply", is_fair }
        });
        let limits = [own(first_byte, "first byte"), own(whole, "whole reply"), rest];
        limits.into_iter().flatten().min_by_key(|limit| limit.time)
    }

    /// Puts down how a call ended.
    fn land(&mut self, flight: Flight<'a, T>, answer: Result<T, Failure>) -> Result<(T, Arc<Plan>), (Failure, Again)> {
        let Flight { slot: Slot { place, permits, mut trial }, began, limit, .. } = flight;
        let (plan, lane) = (&self.road.targets[place], &self.road.lanes[place]);
        let took = began.elapsed();
        match answer {
            Ok(answer) => {
                trial.answered(self.kind, took);
                self.ticket.answers(plan);
                self.ticket.hears(plan, answer.says());
                if self.kind == Kind::Stream {
                    self.ticket.holds(trial, permits, lane.total_timeout.map(|limit| began + limit));
                }
                Ok((answer, plan.clone()))
            }
            Err(failure) => {
                let verdict = verdict::of(&failure);
                let cut_short = limit.is_some_and(|limit| !limit.is_fair && took >= limit.time);
                match verdict.blames_target && !cut_short {
                    true => trial.failed(failure.code().name),
                    false => trial.refused(),
                }
                if let (Again::Anywhere, Some(seconds)) = (verdict.again, failure.retry_after_s()) {
                    lane.target.quiet(now_ms(), seconds);
                }
                self.ticket.failed(lane.target.name(), failure.code(), took);
                self.put_off(place, verdict.again);
                Err((failure, verdict.again))
            }
        }
    }

    /// A target failed: not again, or not before a pause that doubles each time.
    fn put_off(&mut self, place: usize, again: Again) {
        if again != Again::Anywhere {
            self.places.out.add(place);
            return;
        }
        let resilience = &self.road.rules.resilience;
        let known = self.failed.iter().position(|failed| failed.place == place);
        let at = known.unwrap_or_else(|| {
            self.failed.push(Failed { place, times: 0, not_before: Instant::now() });
            self.failed.len() - 1
        });
        let failed = &mut self.failed[at];
        let longest = resilience.backoff.saturating_mul(1 << failed.times.min(16)).min(resilience.max_backoff);
        failed.times += 1;
        failed.not_before = Instant::now() + jitter(longest);
    }

    /// What the caller is told when nobody is asked any more: the last failure, or why nobody was asked at all.
    fn give_up(&mut self) -> Failure {
        if let Some(last) = self.last.take() {
            return last;
        }
        let (now, name) = (now_ms(), self.road.called());
        if !self.places.full.is_empty() {
            return Refusal::Full { name }.into();
        }
        let resilience = &self.road.rules.resilience;
        let targets = || self.road.lanes.iter().map(|lane| &lane.target);
        let seconds = |ms: u64| ms.div_ceil(1_000).max(1);
        let quiet = targets().filter(|target| target.open_for(resilience, now) == 0).map(|target| target.quiet_for(now)).min();
        match quiet {
            Some(ms) if ms > 0 => Refusal::Quiet { name, retry_after_s: seconds(ms) }.into(),
            Some(_) => Refusal::OutOfTime { name }.into(),
            None => {
                let soonest = targets().map(|target| target.open_for(resilience, now)).min().unwrap_or(0);
                Refusal::Resting { name, retry_after_s: seconds(soonest) }.into()
            }
        }
    }
}

/// A random part of a pause: those who failed together do not come back together.
fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(rand::random::<f64>())
}
