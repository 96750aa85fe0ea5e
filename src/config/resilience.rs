//! `[resilience]`: when a failed call is made again, and when a target is left alone for a while. Holds for every target; a route says
//! where else to go ([`routes`](super::routes)).

use super::raw::{Problems, Section};
use std::time::Duration;

/// Settings of retries and circuit breakers.
#[derive(Debug, Clone, PartialEq)]
pub struct ResilienceConfig {
    /// Calls for a request on a name that is no route (`provider/model`): client SDKs retry by themselves.
    pub attempts: u32,
    /// Longest pause before a target is asked for the second time; it doubles with each further time. The pause is drawn at random
    /// between nothing and this (full jitter).
    pub backoff: Duration,
    /// Longest pause in all.
    pub max_backoff: Duration,
    /// Longest `Retry-After` that is waited for; beyond it the caller is told to come back.
    pub max_retry_wait: Duration,
    /// Calls of a target's provider that may be made again, as a percentage of the requests of ten seconds.
    pub retry_budget_percent: u32,
    /// Calls that may be made again in ten seconds, whatever the percentage says.
    pub retry_budget_min: u32,
    /// Circuit breakers.
    pub breaker: BreakerConfig,
}

/// `[resilience.breaker]`: when a target that fails is left alone.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// Whether there are breakers at all.
    pub enabled: bool,
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// Share of failures in the window that opens it.
    pub failure_percent: u32,
    /// Calls in the window below which the share says nothing.
    pub min_calls: u32,
    /// The window.
    pub window: Duration,
    /// How long it stays open the first time; doubled each time that a probe fails.
    pub open: Duration,
    /// How long it stays open at most.
    pub max_open: Duration,
    /// Probes that are let through at once when the time is over.
    pub probes: u32,
}

impl Default for ResilienceConfig {
    fn default() -> Self {
        ResilienceConfig {
            attempts: 1,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            max_retry_wait: Duration::from_secs(10),
            retry_budget_percent: 20,
            retry_budget_min: 10,
            breaker: BreakerConfig::default(),
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            enabled: true,
            consecutive_failures: 5,
            failure_percent: 50,
            min_calls: 20,
            window: Duration::from_secs(30),
            open: Duration::from_secs(2),
            max_open: Duration::from_secs(60),
            probes: 1,
        }
    }
}

impl ResilienceConfig {
    /// As a file would say it.
    pub(super) fn shown(&self) -> toml::Table {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX).into();
        let BreakerConfig { enabled, consecutive_failures, failure_percent, min_calls, window, open, max_open, probes } = &self.breaker;
        let breaker: [(&str, toml::Value); 8] = [
            ("enabled", (*enabled).into()),
            ("consecutive_failures", (*consecutive_failures).into()),
            ("failure_percent", (*failure_percent).into()),
            ("min_calls", (*min_calls).into()),
            ("window_s", i64::try_from(window.as_secs()).unwrap_or(i64::MAX).into()),
            ("open_ms", ms(*open)),
            ("max_open_ms", ms(*max_open)),
            ("probes", (*probes).into()),
        ];
        let breaker: toml::Table = breaker.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let keys: [(&str, toml::Value); 7] = [
            ("attempts", self.attempts.into()),
            ("backoff_ms", ms(self.backoff)),
            ("max_backoff_ms", ms(self.max_backoff)),
            ("max_retry_wait_ms", ms(self.max_retry_wait)),
            ("retry_budget_percent", self.retry_budget_percent.into()),
            ("retry_budget_min", self.retry_budget_min.into()),
            ("breaker", breaker.into()),
        ];
        keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> ResilienceConfig {
    let default = ResilienceConfig::default();
    let breaker = section.section("breaker", problems).map(|section| read_breaker(section, problems));
    let config = ResilienceConfig {
        attempts: small(&mut section, ("attempts", 1..=10), default.attempts, problems),
        backoff: millis(&mut section, ("backoff_ms", 0..=60_000), default.backoff, problems),
        max_backoff: millis(&mut section, ("max_backoff_ms", 0..=600_000), default.max_backoff, problems),
        max_retry_wait: millis(&mut section, ("max_retry_wait_ms", 0..=600_000), default.max_retry_wait, problems),
        retry_budget_percent: small(&mut section, ("retry_budget_percent", 0..=1_000), default.retry_budget_percent, problems),
        retry_budget_min: small(&mut section, ("retry_budget_min", 0..=100_000), default.retry_budget_min, problems),
        breaker: breaker.unwrap_or_default(),
    };
    section.finish(problems);
    config
}

fn read_breaker(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> BreakerConfig {
    let default = BreakerConfig::default();
    let window = section.integer("window_s", 1..=3_600, default.window.as_secs(), problems);
    let config = BreakerConfig {
        enabled: section.switch("enabled", default.enabled, problems),
        consecutive_failures: small(&mut section, ("consecutive_failures", 1..=1_000_000), default.consecutive_failures, problems),
        failure_percent: small(&mut section, ("failure_percent", 1..=100), default.failure_percent, problems),
        min_calls: small(&mut section, ("min_calls", 1..=1_000_000), default.min_calls, problems),
        window: Duration::from_secs(window),
        open: millis(&mut section, ("open_ms", 1..=3_600_000), default.open, problems),
        max_open: millis(&mut section, ("max_open_ms", 1..=86_400_000), default.max_open, problems),
        probes: small(&mut section, ("probes", 1..=1_000), default.probes, problems),
    };
    section.finish(problems);
    config
}

/// A key and the numbers that it takes.
type Key = (&'static str, std::ops::RangeInclusive<u64>);

fn small(section: &mut Section<'_, '_>, (key, range): Key, default: u32, problems: &mut Problems<'_>) -> u32 {
    u32::try_from(section.integer(key, range, default.into(), problems)).unwrap_or(default)
}

fn millis(section: &mut Section<'_, '_>, (key, range): Key, default: Duration, problems: &mut Problems<'_>) -> Duration {
    let default = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(section.integer(key, range, default, problems))
}
