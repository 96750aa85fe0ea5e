//! The figures of model calls, one [`Series`] for each set of labels. A call is counted with a few atomic additions on a series that is
//! found without a lock; what `/metrics` and OTLP show of them is put together when somebody asks.

use crate::store::requests::RequestRow;
use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Sets of labels that are told apart; further ones are counted together.
pub const MAX_SERIES: usize = 2_000;
/// Models of one provider that are told apart.
const MAX_MODELS: usize = 100;
/// What stands in the place of labels beyond that, and of models that never answered.
pub const OTHER: &str = "other";
/// Kinds of findings and error codes that one series tells apart.
const MAX_WORDS: usize = 64;

/// Seconds; from a cached answer to a long generation.
pub(super) const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Seconds of our own part; what is promised is tens of microseconds.
pub(super) const OWN_SECONDS: &[f64] = &[0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
/// Seconds, as the GenAI conventions advise.
pub(super) const GEN_AI_SECONDS: &[f64] = &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Tokens, as the GenAI conventions advise.
pub(super) const GEN_AI_TOKENS: &[f64] =
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

/// What a series is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// `chat.completions`, `eval`.
    pub endpoint: String,
    /// Project.
    pub project: String,
    /// Route that was called, or empty.
    pub route: String,
    /// The beginning of the release's digest, or empty.
    pub release: String,
    /// Provider; `none` when none was reached.
    pub provider: String,
    /// The provider's model; empty when no provider was reached.
    pub model: String,
}

/// Values by how many fell below each bound.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    buckets: Box<[AtomicU64]>,
    /// Of the values, in parts of which `scale` are one.
    sum: AtomicU64,
    scale: f64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Distribution {
    pub(super) bounds: &'static [f64],
    pub(super) buckets: Vec<u64>,
    pub(super) sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64], scale: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum: AtomicU64::new(0), scale }
    }

    /// In seconds, with a sum exact to the nanosecond.
    pub(super) fn seconds(bounds: &'static [f64]) -> Self {
        Histogram::new(bounds, 1e9)
    }

    pub(super) fn observe(&self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value.max(0.0) * self.scale).round() as u64, Ordering::Relaxed);
    }

    fn observe_ms(&self, ms: Option<f64>) {
        if let Some(ms) = ms {
            self.observe(ms / 1e3);
        }
    }

    pub(super) fn read(&self) -> Distribution {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Distribution { bounds: self.bounds, buckets, sum: self.sum.load(Ordering::Relaxed) as f64 / self.scale }
    }
}

impl Distribution {
    pub(super) fn add(&mut self, other: &Distribution) {
        if self.bounds.is_empty() {
            self.bounds = other.bounds;
            self.buckets = vec![0; other.buckets.len()];
        }
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(own, other)| *own += other);
        self.sum += other.sum;
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        struct Counters { $($name: AtomicU64,)* }
        /// Plain counts of a series.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub(super) struct Counts { $($(#[$doc])* pub(super) $name: u64,)* }
        impl Counters {
            fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
        impl Counts {
            pub(super) fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Tokens read, those of the provider's cache among them.
    input_tokens,
    /// Tokens written, those of reasoning among them.
    output_tokens,
    /// Of the tokens read, those that the provider had in its cache.
    cached_tokens,
    /// Of the tokens read, those that the provider put into its cache.
    cache_write_tokens,
    /// Of the tokens written, those of reasoning.
    reasoning_tokens,
    /// Micro-dollars.
    cost_micro_usd,
    /// Calls that a provider answered and whose price nobody knows.
    unpriced,
    /// Replies from the cache: the same request, and a similar one.
    cache_hits,
    cache_similar,
    /// Requests whose reply the cache did not have.
    cache_misses,
    /// Calls of providers.
    attempts,
    /// Calls that failed, where the same target was asked again.
    retries,
    /// Calls that failed, where another target answered or failed last.
    fallbacks,
}

/// The histograms that only OTLP shows.
#[derive(Debug)]
pub(super) struct GenAi {
    pub(super) duration: Histogram,
    pub(super) first_chunk: Histogram,
    pub(super) input_tokens: Histogram,
    pub(super) output_tokens: Histogram,
}

/// The figures of one set of labels.
#[derive(Debug)]
pub struct Series {
    pub(super) labels: Labels,
    /// The whole digest: its beginning is the label.
    release: Option<String>,
    /// By the first digit of the status.
    statuses: [AtomicU64; 6],
    counters: Counters,
    /// Micro-dollars; a cascade may save less than nothing.
    saved_micro_usd: AtomicI64,
    total: Histogram,
    first_token: Histogram,
    upstream: Histogram,
    queue: Histogram,
    own: Histogram,
    pub(super) gen_ai: Option<Box<GenAi>>,
    /// By error code.
    errors: Mutex<BTreeMap<String, u64>>,
    /// By detector and action.
    findings: Mutex<BTreeMap<(String, String), u64>>,
}

/// The names of the histograms of [`Figures`], in their order.
pub(super) const TIMES: [&str; 5] = ["request", "first_token", "upstream", "queue", "overhead"];

/// A series at one moment, or several added up.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) statuses: [u64; 6],
    pub(super) counts: Counts,
    pub(super) saved_micro_usd: i64,
    /// As [`TIMES`].
    pub(super) times: [Distribution; 5],
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) findings: BTreeMap<(String, String), u64>,
}

impl Figures {
    pub(super) fn add(&mut self, other: &Figures) {
        self.statuses.iter_mut().zip(other.statuses).for_each(|(own, other)| *own += other);
        self.counts.add(&other.counts);
        self.saved_micro_usd += other.saved_micro_usd;
        self.times.iter_mut().zip(&other.times).for_each(|(own, other)| own.add(other));
        other.errors.iter().for_each(|(code, count)| *self.errors.entry(code.clone()).or_default() += count);
        other.findings.iter().for_each(|(what, count)| *self.findings.entry(what.clone()).or_default() += count);
    }
}

impl Series {
    fn new(labels: Labels, release: Option<String>, otlp: bool) -> Self {
        let tokens = || Histogram::new(GEN_AI_TOKENS, 1.0);
        let gen_ai = || GenAi {
            duration: Histogram::seconds(GEN_AI_SECONDS),
            first_chunk: Histogram::seconds(GEN_AI_SECONDS),
            input_tokens: tokens(),
            output_tokens: tokens(),
        };
        Series {
            labels,
            release,
            statuses: Default::default(),
            counters: Counters::default(),
            saved_micro_usd: AtomicI64::new(0),
            total: Histogram::seconds(SECONDS),
            first_token: Histogram::seconds(SECONDS),
            upstream: Histogram::seconds(SECONDS),
            queue: Histogram::seconds(SECONDS),
            own: Histogram::seconds(OWN_SECONDS),
            gen_ai: otlp.then(|| Box::new(gen_ai())),
            errors: Mutex::default(),
            findings: Mutex::default(),
        }
    }

    fn is_of(&self, key: &Key<'_>) -> bool {
        let Labels { endpoint, project, route, provider, model, .. } = &self.labels;
        let own = (endpoint.as_str(), project.as_str(), route.as_str(), self.release.as_deref(), provider.as_str(), model.as_str());
        own == (key.endpoint, key.project, key.route, key.release, key.provider, key.model)
    }

    fn record(&self, row: &RequestRow) {
        let one = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let more = |counter: &AtomicU64, by: Option<u64>| {
            counter.fetch_add(by.unwrap_or(0), Ordering::Relaxed);
        };
        one(&self.statuses[usize::from(row.status / 100).min(5)]);
        self.total.observe(row.total_ms / 1e3);
        self.first_token.observe_ms(row.first_token_ms);
        self.upstream.observe_ms(row.upstream_ms);
        self.queue.observe_ms(row.queue_ms);
        self.own.observe_ms(row.overhead_ms);
        let counters = &self.counters;
        // The tokens of a kept reply were counted when it was given first.
        if !is_kept(row) {
            more(&counters.input_tokens, row.input_tokens);
            more(&counters.output_tokens, row.output_tokens);
            more(&counters.cached_tokens, row.cached_tokens);
            more(&counters.cache_write_tokens, row.cache_write_tokens);
            more(&counters.reasoning_tokens, row.reasoning_tokens);
        }
        more(&counters.attempts, row.attempts);
        match row.cost_micro_usd {
            Some(cost) => more(&counters.cost_micro_usd, u64::try_from(cost).ok()),
            None if row.status < 400 && !row.provider.is_empty() && !is_kept(row) => one(&counters.unpriced),
            None => {}
        }
        if let Some(saved) = row.saved_micro_usd {
            self.saved_micro_usd.fetch_add(saved, Ordering::Relaxed);
        }
        match row.cache.as_deref() {
            Some("hit") => one(&counters.cache_hits),
            Some("semantic") => one(&counters.cache_similar),
            Some("miss") => one(&counters.cache_misses),
            _ => {}
        }
        if let Some(gen_ai) = &self.gen_ai {
            gen_ai.record(row);
        }
        self.record_what_is_rare(row);
    }

    fn record_what_is_rare(&self, row: &RequestRow) {
        if let Some(attempted) = &row.attempted {
            let target = format!("{}/{}", row.provider, row.model);
            let (same, others) = failed_calls(attempted, &target);
            self.counters.retries.fetch_add(same, Ordering::Relaxed);
            self.counters.fallbacks.fetch_add(others, Ordering::Relaxed);
        }
        if let Some(code) = &row.error_code {
            count(&self.errors, code.clone(), || OTHER.to_string());
        }
        for finding in row.guardrails.as_deref().map(findings).unwrap_or_default() {
            count(&self.findings, finding, || (OTHER.to_string(), OTHER.to_string()));
        }
    }

    pub(super) fn read(&self) -> Figures {
        let all = |map: &Mutex<BTreeMap<String, u64>>| map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Figures {
            statuses: std::array::from_fn(|class| self.statuses[class].load(Ordering::Relaxed)),
            counts: self.counters.read(),
            saved_micro_usd: self.saved_micro_usd.load(Ordering::Relaxed),
            times: [&self.total, &self.first_token, &self.upstream, &self.queue, &self.own].map(Histogram::read),
            errors: all(&self.errors),
            findings: self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl GenAi {
    fn record(&self, row: &RequestRow) {
        if row.provider.is_empty() || is_kept(row) {
            return;
        }
        // The operation is the provider's part, where it is known apart from ours.
        self.duration.observe(row.upstream_ms.unwrap_or(row.total_ms) / 1e3);
        self.first_chunk.observe_ms(row.first_token_ms);
        let tokens = [(&self.input_tokens, row.input_tokens), (&self.output_tokens, row.output_tokens)];
        tokens.into_iter().filter_map(|(of, count)| Some((of, count?))).for_each(|(of, count)| of.observe(count as f64));
    }
}

/// Whether the reply came out of the cache.
fn is_kept(row: &RequestRow) -> bool {
    matches!(row.cache.as_deref(), Some("hit" | "semantic"))
}

fn count<K: Ord>(map: &Mutex<BTreeMap<K, u64>>, key: K, other: impl FnOnce() -> K) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    let key = if map.len() < MAX_WORDS || map.contains_key(&key) { key } else { other() };
    *map.entry(key).or_default() += 1;
}

/// Of the calls that failed before the one that counts, how many were of its target and how many of others.
fn failed_calls(attempted: &str, target: &str) -> (u64, u64) {
    #[derive(Deserialize)]
    struct Call {
        target: String,
    }
    let calls: Vec<Call> = serde_json::from_str(attempted).unwrap_or_default();
    let same = calls.iter().filter(|call| call.target == target).count() as u64;
    (same, calls.len() as u64 - same)
}

/// `(detector, action)` of each finding of a row.
fn findings(guardrails: &str) -> Vec<(String, String)> {
    let Ok(Value::Array(items)) = serde_json::from_str(guardrails) else { return Vec::new() };
    let word = |item: &Value, names: &[&str]| {
        let found = names.iter().find_map(|name| item.get(*name)?.as_str());
        found.map_or(OTHER.to_string(), |text| text.chars().take(64).collect())
    };
    items.iter().map(|item| (word(item, &["detector", "guardrail", "name", "kind"]), word(item, &["action", "outcome"]))).collect()
}

/// What a row is looked up by.
#[derive(Clone, Copy, Hash)]
struct Key<'r> {
    endpoint: &'r str,
    project: &'r str,
    route: &'r str,
    release: Option<&'r str>,
    provider: &'r str,
    model: &'r str,
}

impl<'r> Key<'r> {
    fn of(row: &'r RequestRow) -> Self {
        let reached = !row.provider.is_empty();
        Key {
            endpoint: &row.endpoint,
            project: &row.project,
            route: row.route.as_deref().unwrap_or_default(),
            release: row.release.as_deref(),
            provider: if reached { &row.provider } else { "none" },
            // What a caller wrote and nobody knows is no label.
            model: if reached { &row.model } else { "" },
        }
    }

    fn labels(&self) -> Labels {
        let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(12).collect();
        Labels {
            endpoint: self.endpoint.to_string(),
            project: self.project.to_string(),
            route: self.route.to_string(),
            release: self.release.map(short).unwrap_or_default(),
            provider: self.provider.to_string(),
            model: self.model.to_string(),
        }
    }
}

type Table = HashMap<u64, Vec<Arc<Series>>>;

/// All series of a process.
#[derive(Debug)]
pub(super) struct AllSeries {
    /// Copied when a series is added, which is seldom; looked into without a lock.
    table: ArcSwap<Table>,
    adding: Mutex<()>,
    hasher: RandomState,
    limit: usize,
    otlp: AtomicBool,
}

impl AllSeries {
    pub(super) fn new(limit: usize) -> Self {
        AllSeries { table: ArcSwap::default(), adding: Mutex::new(()), hasher: RandomState::new(), limit, otlp: AtomicBool::new(false) }
    }

    /// Series that are made from now on have the histograms of OTLP.
    pub(super) fn keep_for_otlp(&self) {
        self.otlp.store(true, Ordering::Relaxed);
    }

    /// Counts a finished call.
    pub(super) fn record(&self, row: &RequestRow) {
        let key = Key::of(row);
        if let Some(series) = self.find(&key) {
            return series.record(row);
        }
        // Whoever asks for models that do not exist must not use up the room for those that do: a name is one when it has answered.
        let known = row.status < 400 || key.model.is_empty();
        let key = if known { key } else { Key { model: OTHER, ..key } };
        self.find(&key).unwrap_or_else(|| self.add(&key)).record(row);
    }

    fn find(&self, key: &Key<'_>) -> Option<Arc<Series>> {
        let table = self.table.load();
        table.get(&self.hasher.hash_one(key))?.iter().find(|series| series.is_of(key)).cloned()
    }

    fn add(&self, key: &Key<'_>) -> Arc<Series> {
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let key = &if self.has_many_models(key) { Key { model: OTHER, ..*key } } else { *key };
        let full = self.table.load().values().map(Vec::len).sum::<usize>() >= self.limit;
        let rest = Key { endpoint: OTHER, project: OTHER, route: OTHER, release: None, provider: OTHER, model: OTHER };
        let key = if full { rest } else { *key };
        if let Some(series) = self.find(&key) {
            return series;
        }
        let series = Arc::new(Series::new(key.labels(), key.release.map(str::to_string), self.otlp.load(Ordering::Relaxed)));
        let mut table = Table::clone(&self.table.load());
        table.entry(self.hasher.hash_one(key)).or_default().push(series.clone());
        self.table.store(Arc::new(table));
        series
    }

    /// Whether a provider has answered to so many names that this one, which is none of them, is told apart no more: some servers answer
    /// to any.
    fn has_many_models(&self, key: &Key<'_>) -> bool {
        let table = self.table.load();
        let of_provider = table.values().flatten().map(|series| &series.labels).filter(|labels| labels.provider == key.provider);
        let models: HashSet<&str> = of_provider.map(|labels| labels.model.as_str()).collect();
        models.len() >= MAX_MODELS && !models.contains(key.model)
    }

    /// All of them, in the order of their labels.
    pub(super) fn all(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<_> = self.table.load().values().flatten().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, status: u16) -> RequestRow {
        let text = |text: &str| text.to_string();
        RequestRow { endpoint: text("chat"), project: text("p"), provider: text("up"), model: text(model), status, ..RequestRow::default() }
    }

    #[test]
    fn beyond_the_limit_everything_is_counted_together() {
        let all = AllSeries::new(3);
        (0..10).for_each(|i| all.record(&row(&format!("m{i}"), 200)));
        let read = all.all();
        assert_eq!(read.len(), 4, "three and the rest");
        let total: u64 = read.iter().map(|series| series.read().statuses[2]).sum();
        let rest = read.iter().find(|series| series.labels.provider == OTHER).expect("the rest");
        assert_eq!((total, rest.read().statuses[2]), (10, 7));
    }

    #[test]
    fn names_that_never_answered_make_no_series_of_their_own() {
        let all = AllSeries::new(100);
        (0..50).for_each(|i| all.record(&row(&format!("made-up-{i}"), 404)));
        all.record(&row("real", 200));
        all.record(&row("real", 502));
        let models: Vec<_> = all.all().iter().map(|series| (series.labels.model.clone(), series.read().statuses)).collect();
        assert_eq!(models, [("other".to_string(), [0, 0, 0, 0, 50, 0]), ("real".to_string(), [0, 0, 1, 0, 0, 1])]);
    }

    #[test]
    fn a_server_that_answers_to_any_name_leaves_room_for_others() {
        let all = AllSeries::new(2_000);
        (0..3_000).for_each(|i| all.record(&row(&format!("made-up-{i}"), 200)));
        all.record(&RequestRow { provider: "b".into(), ..row("real", 200) });
        let read = all.all();
        assert_eq!(read.len(), MAX_MODELS + 2);
        let of =
            |provider: &str, model: &str| read.iter().find(|series| (&*series.labels.provider, &*series.labels.model) == (provider, model));
        let counted = |provider, model| of(provider, model).map(|series| series.read().statuses[2]);
        assert_eq!((counted("up", OTHER), counted("b", "real")), (Some(3_000 - MAX_MODELS as u64), Some(1)));
    }

    #[test]
    fn a_row_is_counted_with_everything_it_says() {
        let all = AllSeries::new(10);
        let full = RequestRow {
            total_ms: 30.0,
            overhead_ms: Some(0.03),
            upstream_ms: Some(29.0),
            input_tokens: Some(10),
            cached_tokens: Some(4),
            output_tokens: Some(7),
            reasoning_tokens: Some(2),
            cost_micro_usd: Some(12),
            saved_micro_usd: Some(-3),
            cache: Some("miss".into()),
            attempts: Some(3),
            attempted: Some(r#"[{"target": "up/m", "code": "x", "ms": 1}, {"target": "b/m", "code": "y", "ms": 2}]"#.into()),
            guardrails: Some(r#"[{"detector": "email", "action": "redacted", "count": 2}]"#.into()),
            ..row("m", 200)
        };
        all.record(&full);
        all.record(&RequestRow { cost_micro_usd: None, ..row("m", 200) });
        all.record(&RequestRow { cache: Some("hit".into()), input_tokens: Some(10), output_tokens: Some(7), ..row("m", 200) });
        let figures = all.all()[0].read();
        let Counts { input_tokens, cached_tokens, cost_micro_usd, unpriced, cache_misses, attempts, retries, fallbacks, .. } =
            figures.counts;
        assert_eq!((input_tokens, cached_tokens, cost_micro_usd, unpriced), (10, 4, 12, 1), "an unknown price is not zero");
        assert_eq!(figures.counts.cache_hits, 1, "whose tokens are not counted again");
        assert_eq!((cache_misses, attempts, retries, fallbacks, figures.saved_micro_usd), (1, 3, 1, 1, -3));
        assert_eq!(figures.findings, BTreeMap::from([(("email".to_string(), "redacted".to_string()), 1)]));
        let own = &figures.times[4];
        assert_eq!((own.count(), own.buckets[1], own.sum), (1, 1, 0.00003));
    }
}
