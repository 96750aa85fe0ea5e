//! A circuit breaker: closed while a target answers, open after too many failures, half-open when its time is over, so that a few
//! probes find out whether it answers again. While it is closed, a call costs an atomic load before and an atomic addition after.

use super::window::{Sums, Window};
use crate::config::BreakerConfig;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The breaker of one target.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Not closed: only then is the lock taken before a call.
    tripped: AtomicBool,
    in_a_row: AtomicU32,
    window: Window,
    phase: Mutex<Phase>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Closed,
    /// Until then; `times` it has been opened in a row.
    Open { until_ms: u64, times: u32 },
    /// So many probes are out, the newest since then.
    HalfOpen { probes: u32, since_ms: u64, times: u32 },
}

/// Under which terms a call was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Plain,
    Probe,
}

/// What a breaker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls go through.
    Closed,
    /// No call goes through for so many milliseconds.
    Open(u64),
    /// Its time is over: probes go through.
    HalfOpen,
}

impl Breaker {
    /// Lets a call through, or says how many milliseconds none will be.
    pub(super) fn admit(&self, rules: &BreakerConfig, now_ms: u64) -> Result<Pass, u64> {
        if !rules.enabled || !self.tripped.load(Ordering::Acquire) {
            return Ok(Pass::Plain);
        }
        let mut phase = self.lock();
        match &mut *phase {
            Phase::Closed => Ok(Pass::Plain),
            Phase::Open { until_ms, .. } if *until_ms > now_ms => Err(*until_ms - now_ms),
            Phase::Open { times, .. } => {
                *phase = Phase::HalfOpen { probes: 1, since_ms: now_ms, times: *times };
                Ok(Pass::Probe)
            }
            Phase::HalfOpen { probes, since_ms, .. } => match for_probes(rules, (*probes, *since_ms), now_ms) {
                Some(ms) => Err(ms),
                None => {
                    (*probes, *since_ms) = (*probes + 1, now_ms);
                    Ok(Pass::Probe)
                }
            },
        }
    }

    /// Whether [`Breaker::admit`] would let a call through; else the milliseconds.
    pub(super) fn peek(&self, rules: &BreakerConfig, now_ms: u64) -> Result<(), u64> {
        if !rules.enabled || !self.tripped.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*self.lock() {
            Phase::Open { until_ms, .. } if *until_ms > now_ms => Err(*until_ms - now_ms),
            Phase::HalfOpen { probes, since_ms, .. } => for_probes(rules, (*probes, *since_ms), now_ms).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// The target answered. Says whether this closed the breaker.
    pub(super) fn answered(&self, rules: &BreakerConfig, now_ms: u64, pass: Pass) -> bool {
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
        self.window.add(now_ms, millis(rules.window), Sums { all: 1, marked: 0 });
        pass == Pass::Probe && self.close()
    }

    /// The target failed by its own fault. Gives the milliseconds for which this opened the breaker.
    pub(super) fn failed(&self, rules: &BreakerConfig, now_ms: u64, pass: Pass) -> Option<u64> {
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.window.add(now_ms, millis(rules.window), Sums { all: 1, marked: 1 });
        if !rules.enabled {
            return None;
        }
        let Sums { all, marked } = self.window.sums(now_ms, millis(rules.window));
        let mostly = all >= u64::from(rules.min_calls) && marked * 100 >= all * u64::from(rules.failure_percent);
        let mut phase = self.lock();
        let times = match &*phase {
            Phase::Closed if in_a_row >= rules.consecutive_failures || mostly => 1,
            Phase::HalfOpen { times, .. } if pass == Pass::Probe => times.saturating_add(1),
            // Calls that began before it opened say nothing new.
            _ => return None,
        };
        let open_ms = millis(rules.open).saturating_mul(1 << (times - 1).min(30)).min(millis(rules.max_open).max(millis(rules.open)));
        *phase = Phase::Open { until_ms: now_ms.saturating_add(open_ms), times };
        self.tripped.store(true, Ordering::Release);
        Some(open_ms)
    }

    /// A probe ended without saying anything about the target: another may go.
    pub(super) fn release(&self) {
        if let Phase::HalfOpen { probes, .. } = &mut *self.lock() {
            *probes = probes.saturating_sub(1);
        }
    }

    /// A probe showed that the target is there, whatever it answered.
    pub(super) fn close(&self) -> bool {
        let mut phase = self.lock();
        if !matches!(&*phase, Phase::HalfOpen { .. }) {
            return false;
        }
        *phase = Phase::Closed;
        self.in_a_row.store(0, Ordering::Relaxed);
        self.window.clear();
        self.tripped.store(false, Ordering::Release);
        true
    }

    pub(super) fn state(&self, now_ms: u64) -> State {
        match &*self.lock() {
            Phase::Closed => State::Closed,
            Phase::Open { until_ms, .. } if *until_ms > now_ms => State::Open(*until_ms - now_ms),
            _ => State::HalfOpen,
        }
    }

    /// Calls and failures of the window.
    pub(super) fn sums(&self, rules: &BreakerConfig, now_ms: u64) -> Sums {
        self.window.sums(now_ms, millis(rules.window))
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds until another probe may go. One that takes its time, such as a long reply, does not keep the others waiting for its
/// end: after the time of a first opening the next one goes.
fn for_probes(rules: &BreakerConfig, (probes, since_ms): (u32, u64), now_ms: u64) -> Option<u64> {
    let next_ms = since_ms.saturating_add(millis(rules.open));
    (probes >= rules.probes && now_ms < next_ms).then(|| next_ms - now_ms)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rules() -> BreakerConfig {
        BreakerConfig {
            consecutive_failures: 3,
            failure_percent: 50,
            min_calls: 10,
            open: Duration::from_secs(1),
            max_open: Duration::from_secs(3),
            ..BreakerConfig::default()
        }
    }

    fn open(rules: &BreakerConfig) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..3 {
            breaker.failed(rules, 0, Pass::Plain);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_in_between_does_not_let_them_add_up() {
        let (rules, breaker) = (rules(), Breaker::default());
        for failure in [true, true, false, true, true] {
            match failure {
                true => assert_eq!(breaker.failed(&rules, 0, Pass::Plain), None),
                false => assert!(!breaker.answered(&rules, 0, Pass::Plain)),
            }
        }
        assert_eq!(breaker.failed(&rules, 0, Pass::Plain), Some(1_000));
        assert_eq!(breaker.admit(&rules, 999), Err(1));
    }

    #[test]
    fn a_share_of_failures_opens_it_only_with_enough_calls() {
        let (rules, breaker) = (rules(), Breaker::default());
        for _ in 0..4 {
            breaker.failed(&rules, 0, Pass::Plain);
            breaker.answered(&rules, 0, Pass::Plain);
        }
        assert_eq!(breaker.admit(&rules, 0), Ok(Pass::Plain), "8 calls are not enough");
        assert_eq!(breaker.failed(&rules, 0, Pass::Plain), None);
        assert_eq!(breaker.failed(&rules, 0, Pass::Plain), Some(1_000));
    }

    #[test]
    fn one_probe_goes_when_the_time_is_over_and_decides() {
        let rules = rules();
        let breaker = open(&rules);
        assert_eq!(breaker.admit(&rules, 1_000), Ok(Pass::Probe));
        assert!(breaker.admit(&rules, 1_000).is_err() && breaker.peek(&rules, 1_000).is_err());
        breaker.release();
        assert_eq!(breaker.admit(&rules, 1_000), Ok(Pass::Probe), "a cancelled probe makes room for another");
        assert_eq!(breaker.failed(&rules, 1_000, Pass::Plain), None, "a call of before does not decide");
        assert!(breaker.answered(&rules, 1_000, Pass::Probe));
        assert_eq!((breaker.state(1_000), breaker.admit(&rules, 1_000)), (State::Closed, Ok(Pass::Plain)));
        assert_eq!(breaker.failed(&rules, 1_000, Pass::Plain), None, "what was before is forgotten");
    }

    #[test]
    fn a_probe_that_takes_its_time_does_not_block_the_next() {
        let rules = rules();
        let breaker = open(&rules);
        assert_eq!(breaker.admit(&rules, 1_000), Ok(Pass::Probe));
        assert_eq!((breaker.peek(&rules, 1_999), breaker.admit(&rules, 1_999)), (Err(1), Err(1)));
        assert_eq!((breaker.peek(&rules, 2_000), breaker.admit(&rules, 2_000)), (Ok(()), Ok(Pass::Probe)));
        assert!(breaker.answered(&rules, 2_500, Pass::Probe), "whichever answers first");
        assert_eq!(breaker.failed(&rules, 2_600, Pass::Probe), None, "the other is one call among many");
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_its_limit() {
        let rules = rules();
        let breaker = open(&rules);
        let mut now = 1_000;
        for open_ms in [2_000, 3_000, 3_000] {
            assert_eq!(breaker.admit(&rules, now), Ok(Pass::Probe));
            assert_eq!(breaker.failed(&rules, now, Pass::Probe), Some(open_ms));
            assert_eq!(breaker.state(now), State::Open(open_ms));
            now += open_ms;
        }
    }

    #[test]
    fn without_breakers_everything_goes() {
        let rules = BreakerConfig { enabled: false, ..rules() };
        assert_eq!(open(&rules).admit(&rules, 0), Ok(Pass::Plain));
    }
}
