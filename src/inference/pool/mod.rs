//! What is known of the targets: whether they answer, how soon, how much they have to do. It belongs to the process, not to the
//! configuration, so that reading that again forgets nothing. A call is a [`Trial`] of its target from its beginning to its end.

mod breaker;
mod budget;
mod gate;
mod window;

use breaker::State;
pub(super) use budget::Budget;
pub(super) use gate::{Gate, NoPlace, Permit};

use crate::config::{Config, ProviderConfig, ResilienceConfig};
use breaker::{Breaker, Pass};
use gate::Bounds;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Targets that are kept; callers may make names up.
const MAX_TARGETS: usize = 10_000;
/// Time after which half of a measured latency is forgotten, so that a target that was slow is tried again.
const HALF_LIFE_MS: f64 = 10_000.0;
/// Longest time that a target is left alone because it said so; then one call finds out whether it still wants to be.
const LONGEST_QUIET_S: u64 = 300;
/// Share of the newest measurement in the average.
const NEWEST: f64 = 0.3;

/// Milliseconds of this process.
pub(super) fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What a call waits for: each has a latency of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole reply.
    Whole,
    /// The first piece of a streamed one.
    Stream,
    /// Something beside replies, which says nothing about their latency.
    Other,
}

/// The targets, the gates before them and the retry budgets.
#[derive(Default)]
pub(super) struct Pool {
    targets: RwLock<HashMap<String, Arc<Target>>>,
    gates: RwLock<HashMap<GateName, Arc<Gate>>>,
    budgets: RwLock<HashMap<String, Arc<Budget>>>,
    /// Targets of routes that cannot be called and were reported.
    reported: Mutex<HashSet<String>>,
}

/// A provider's gate, or that of one target of one route.
type GateName = (Option<String>, String);

/// What is known of one target.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    breaker: Breaker,
    in_flight: AtomicU32,
    queued: AtomicU32,
    /// Said `Retry-After`: not to be chosen before.
    quiet_until_ms: AtomicU64,
    /// By [`Kind`]: the average in milliseconds, as bits, 0 for none; and when it was last measured.
    latency: [(AtomicU64, AtomicU64); 2],
    answered: AtomicU64,
    failed: AtomicU64,
}

/// A target as it is now, for operators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetStatus {
    /// `provider/model`.
    pub target: String,
    /// `closed`, `open` or `half_open`: the circuit breaker.
    pub state: &'static str,
    /// Milliseconds until an open breaker lets a probe through.
    pub opens_in_ms: Option<u64>,
    /// Milliseconds until the target may be chosen again, where it said `Retry-After`.
    pub quiet_for_ms: Option<u64>,
    /// Calls under way.
    pub in_flight: u32,
    /// Calls that wait for their turn.
    pub queued: u32,
    /// Average of late, milliseconds to the first piece of a streamed reply.
    pub first_byte_ms: Option<f64>,
    /// Average of late, milliseconds to a whole reply.
    pub whole_reply_ms: Option<f64>,
    /// Calls that were answered since the start.
    pub answered: u64,
    /// Calls that failed by the target's fault since the start.
    pub failed: u64,
    /// Share of failures in the breaker's window, 0 to 1; none without calls.
    pub recent_failure_share: Option<f64>,
}

impl Pool {
    /// Takes over the bounds of a configuration: gates that stay keep who is inside.
    pub(super) fn apply(&self, config: &Config) {
        let mut wanted: HashMap<GateName, Bounds> = HashMap::new();
        let default = ProviderConfig::new("", "");
        let of = |name: &str| config.providers.iter().find(|provider| provider.name == name);
        let bounds = |concurrency, provider: &ProviderConfig| Bounds {
            concurrency,
            queue: provider.max_queue,
            patience: Duration::from_millis(provider.queue_timeout_ms),
        };
        for provider in &config.providers {
            if let Some(limit) = provider.max_concurrency {
                wanted.insert((None, provider.name.clone()), bounds(limit, provider));
            }
        }
        for route in &config.routes {
            for target in route.targets.iter().chain(&route.fallbacks) {
                let provider = target.model.split_once('/').and_then(|(provider, _)| of(provider)).unwrap_or(&default);
                if let Some(limit) = target.max_concurrency {
                    wanted.insert((Some(route.name.clone()), target.model.clone()), bounds(limit, provider));
                }
            }
        }
        let mut gates = self.gates.write().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|name, _| wanted.contains_key(name));
        for (name, bounds) in wanted {
            match gates.get(&name) {
                Some(gate) => gate.set(bounds),
                None => drop(gates.insert(name, Arc::new(Gate::new(bounds)))),
            }
        }
    }

    /// The gate of a provider, where it has one.
    pub(super) fn provider_gate(&self, provider: &str) -> Option<Arc<Gate>> {
        self.gate((None, provider.to_string()))
    }

    /// The gate of a route's target, where it has one.
    pub(super) fn target_gate(&self, route: &str, target: &str) -> Option<Arc<Gate>> {
        self.gate((Some(route.to_string()), target.to_string()))
    }

    fn gate(&self, name: GateName) -> Option<Arc<Gate>> {
        self.gates.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// The retry budget of a route; the empty name is for calls of no route.
    pub(super) fn budget(&self, route: &str) -> Arc<Budget> {
        keyed(&self.budgets, route, |_| Arc::default())
    }

    /// The target of this name.
    pub(super) fn target(&self, name: &str) -> Arc<Target> {
        let held = self.targets.read().unwrap_or_else(PoisonError::into_inner).len();
        if held >= MAX_TARGETS {
            self.forget(now_ms());
        }
        keyed(&self.targets, name, |name| Arc::new(Target::new(name)))
    }

    /// Forgets targets that nobody uses and that nothing is to be remembered of; all that nobody uses, if that does not make room.
    fn forget(&self, now_ms: u64) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, target| {
            Arc::strong_count(target) > 1 || target.breaker.state(now_ms) != State::Closed || target.quiet_for(now_ms) > 0
        });
        if targets.len() >= MAX_TARGETS {
            targets.retain(|_, target| Arc::strong_count(target) > 1);
        }
    }

    /// Whether a target that cannot be called has not been reported yet.
    pub(super) fn reports(&self, target: &str) -> bool {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(target.to_string())
    }

    /// A target can be called: the next time that it cannot is reported again.
    pub(super) fn works(&self, target: &str) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
    }

    /// All targets that were called, by name.
    pub(super) fn status(&self, rules: &ResilienceConfig) -> Vec<TargetStatus> {
        let now = now_ms();
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = targets.values().map(|target| target.status(rules, now)).collect();
        all.sort_by(|a, b| a.target.cmp(&b.target));
        all
    }
}

fn keyed<V: Clone, K>(map: &RwLock<HashMap<K, V>>, name: &str, make: impl FnOnce(&str) -> V) -> V
where
    K: Eq + Hash + std::borrow::Borrow<str> + for<'n> From<&'n str>,
{
    if let Some(found) = map.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return found.clone();
    }
    map.write().unwrap_or_else(PoisonError::into_inner).entry(name.into()).or_insert_with(|| make(name)).clone()
}

impl Target {
    fn new(name: &str) -> Self {
        Target {
            name: name.to_string(),
            breaker: Breaker::default(),
            in_flight: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            quiet_until_ms: AtomicU64::new(0),
            latency: Default::default(),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// `provider/model`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Calls under way.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Milliseconds for which its breaker lets no call through; 0 when it does.
    pub(super) fn open_for(&self, rules: &ResilienceConfig, now_ms: u64) -> u64 {
        self.breaker.peek(&rules.breaker, now_ms).err().unwrap_or(0)
    }

    /// Milliseconds for which it wants to be left alone.
    pub(super) fn quiet_for(&self, now_ms: u64) -> u64 {
        self.quiet_until_ms.load(Ordering::Relaxed).saturating_sub(now_ms)
    }

    /// It said `Retry-After`.
    pub(super) fn quiet(&self, now_ms: u64, seconds: u64) {
        self.quiet_until_ms.fetch_max(now_ms.saturating_add(seconds.min(LONGEST_QUIET_S) * 1_000), Ordering::Relaxed);
    }

    /// What it is expected to take, in milliseconds: the average, forgotten with time. None where it was never measured.
    pub(super) fn latency(&self, kind: Kind, now_ms: u64) -> Option<f64> {
        let (average, measured) = self.measured(kind)?;
        let age = now_ms.saturating_sub(measured) as f64;
        Some(average * (-age / HALF_LIFE_MS).exp2())
    }

    fn measured(&self, kind: Kind) -> Option<(f64, u64)> {
        let (average, measured) = &self.latency[kind as usize % 2];
        let average = f64::from_bits(average.load(Ordering::Relaxed));
        (average > 0.0).then(|| (average, measured.load(Ordering::Relaxed)))
    }

    /// Takes a latency into the average. Two at once may lose one, which an average survives.
    fn measure(&self, kind: Kind, took: Duration, now_ms: u64) {
        if kind == Kind::Other {
            return;
        }
        let ms = (took.as_secs_f64() * 1e3).max(1e-3);
        let average = self.measured(kind).map_or(ms, |(average, _)| average + NEWEST * (ms - average));
        let (cell, measured) = &self.latency[kind as usize % 2];
        cell.store(average.to_bits(), Ordering::Relaxed);
        measured.store(now_ms, Ordering::Relaxed);
    }

    /// Begins a call; none while the breaker lets none through.
    pub(super) fn admit(self: &Arc<Self>, rules: &Arc<ResilienceConfig>, now_ms: u64) -> Option<Trial> {
        let pass = self.breaker.admit(&rules.breaker, now_ms).ok()?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Trial { target: self.clone(), rules: rules.clone(), pass, settled: false })
    }

    /// Counts as waiting for its turn until dropped.
    pub(super) fn queue(&self) -> Queued<'_> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        Queued(&self.queued)
    }

    fn status(&self, rules: &ResilienceConfig, now_ms: u64) -> TargetStatus {
        let state = self.breaker.state(now_ms);
        let sums = self.breaker.sums(&rules.breaker, now_ms);
        let average = |kind| self.measured(kind).map(|(average, _)| average);
        TargetStatus {
            target: self.name.clone(),
            state: match state {
                State::Closed => "closed",
                State::Open(_) => "open",
                State::HalfOpen => "half_open",
            },
            opens_in_ms: if let State::Open(ms) = state { Some(ms) } else { None },
            quiet_for_ms: Some(self.quiet_for(now_ms)).filter(|ms| *ms > 0),
            in_flight: self.in_flight(),
            queued: self.queued.load(Ordering::Relaxed),
            first_byte_ms: average(Kind::Stream),
            whole_reply_ms: average(Kind::Whole),
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            recent_failure_share: (sums.all > 0).then(|| sums.marked as f64 / sums.all as f64),
        }
    }
}

/// Counts a call in a queue.
pub(super) struct Queued<'t>(&'t AtomicU32);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call of a target, from its beginning to its last byte. One that is dropped without a word was cancelled: it says nothing about
/// the target.
#[derive(Debug)]
pub(super) struct Trial {
    target: Arc<Target>,
    rules: Arc<ResilienceConfig>,
    pass: Pass,
    settled: bool,
}

impl Trial {
    /// The reply has begun, or is there.
    pub(super) fn answered(&mut self, kind: Kind, took: Duration) {
        self.settled = true;
        let now = now_ms();
        self.target.answered.fetch_add(1, Ordering::Relaxed);
        self.target.measure(kind, took, now);
        if self.target.breaker.answered(&self.rules.breaker, now, self.pass) {
            tracing::info!(target_name = self.target.name, "the target answers again: its breaker is closed");
        }
    }

    /// It failed by the target's fault; a stream may do so after it has begun.
    pub(super) fn failed(&mut self, code: &'static str) {
        let pass = if std::mem::replace(&mut self.settled, true) { Pass::Plain } else { self.pass };
        self.target.failed.fetch_add(1, Ordering::Relaxed);
        if let Some(open_ms) = self.target.breaker.failed(&self.rules.breaker, now_ms(), pass) {
            tracing::warn!(target_name = self.target.name, code, open_ms, "the target keeps failing: its breaker is open");
        }
    }

    /// It was refused for a reason that is not the target's: at least somebody is there.
    pub(super) fn refused(&mut self) {
        self.settled = true;
        if self.pass == Pass::Probe {
            self.target.breaker.close();
        }
    }

    /// Another target was faster: this one takes at least as long as it has had.
    pub(super) fn outrun(&self, kind: Kind, took: Duration) {
        let now = now_ms();
        if self.target.latency(kind, now).is_none_or(|average| took.as_secs_f64() * 1e3 > average) {
            self.target.measure(kind, took, now);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.settled && self.pass == Pass::Probe {
            self.target.breaker.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_tells_how_it_is() {
        let (pool, rules) = (Pool::default(), Arc::<ResilienceConfig>::default());
        let target = pool.target("up/m");
        let mut trial = target.admit(&rules, now_ms()).expect("closed");
        assert_eq!(pool.status(&rules)[0].in_flight, 1);
        trial.answered(Kind::Stream, Duration::from_millis(80));
        drop(trial);
        for _ in 0..5 {
            target.admit(&rules, now_ms()).expect("closed").failed("upstream_error");
        }
        target.quiet(now_ms(), 7);
        let [status] = &pool.status(&rules)[..] else { panic!("one target") };
        assert_eq!((status.target.as_str(), status.state, status.in_flight), ("up/m", "open", 0));
        assert_eq!((status.answered, status.failed, status.first_byte_ms), (1, 5, Some(80.0)));
        assert!(status.opens_in_ms.is_some_and(|ms| ms > 1_000) && status.quiet_for_ms.is_some_and(|ms| ms > 6_000), "{status:?}");
        assert!(target.admit(&rules, now_ms()).is_none());
    }

    #[test]
    fn another_configuration_changes_the_bounds_and_forgets_nothing() {
        let of = |limits: &str| {
            let text = format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://x\"\n{limits}\n");
            Config::parse(&text, std::path::Path::new("refit.toml")).expect("valid")
        };
        let pool = Pool::default();
        pool.apply(&of("max_concurrency = 1"));
        let gate = pool.provider_gate("up").expect("a gate");
        let inside = gate.try_enter().expect("room");
        pool.target("up/m").admit(&Arc::default(), now_ms()).expect("closed").failed("upstream_error");
        pool.apply(&of("max_concurrency = 2"));
        let same = pool.provider_gate("up").expect("a gate");
        assert!(Arc::ptr_eq(&gate, &same) && same.try_enter().is_some());
        drop(inside);
        pool.apply(&of(""));
        assert!(pool.provider_gate("up").is_none() && pool.status(&ResilienceConfig::default())[0].failed == 1);
    }

    #[test]
    fn a_measured_latency_is_an_average_that_fades() {
        let target = Target::new("up/m");
        assert_eq!(target.latency(Kind::Whole, 0), None);
        target.measure(Kind::Whole, Duration::from_millis(100), 0);
        target.measure(Kind::Whole, Duration::from_millis(200), 0);
        assert_eq!(target.latency(Kind::Whole, 0), Some(130.0));
        assert_eq!(target.latency(Kind::Whole, 10_000), Some(65.0));
        assert_eq!(target.latency(Kind::Stream, 0), None, "streams have their own");
    }

    #[test]
    fn names_that_callers_make_up_do_not_pile_up() {
        let pool = Pool::default();
        let kept = pool.target("kept");
        (0..MAX_TARGETS + 10).for_each(|n| drop(pool.target(&n.to_string())));
        assert!(pool.targets.read().expect("a map").len() < MAX_TARGETS);
        assert!(Arc::ptr_eq(&kept, &pool.target("kept")));
    }
}
