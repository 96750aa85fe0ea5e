//! Metrics in the OpenMetrics text format, which Prometheus reads. Every label has few values: endpoints and paths of the route
//! table, providers of the configuration, status classes. Nothing a caller writes becomes a label.

use super::serving::Serving;
use crate::types::chat::Usage;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds; from a cached answer to a long generation.
const BUCKETS: [f64; 15] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    endpoint: String,
    provider: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    endpoint: String,
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokens {
    provider: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Http {
    path: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Found {
    result: &'static str,
}

/// The metrics of this process.
pub struct Metrics {
    /// What the serving process knows about itself.
    pub serving: Serving,
    registry: Registry,
    requests: Family<Outcome, Counter>,
    seconds: Family<Place, Histogram>,
    first_token_seconds: Family<Place, Histogram>,
    tokens: Family<Tokens, Counter>,
    http: Family<Http, Counter>,
    cache: Family<Found, Counter>,
    in_flight: Gauge,
    log_rows_pending: Gauge,
    log_rows_dropped: Counter,
}

/// One finished model call, for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// `chat.completions`, `eval`.
    pub endpoint: &'a str,
    /// Provider; empty when none was reached.
    pub provider: &'a str,
    /// HTTP status.
    pub status: u16,
    /// Milliseconds in all.
    pub total_ms: f64,
    /// Milliseconds to the first chunk.
    pub first_token_ms: Option<f64>,
    /// Tokens.
    pub usage: Option<&'a Usage>,
}

/// Counts a request as in flight until it is dropped.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let histogram = || Family::<Place, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut metrics = Metrics {
            serving: Serving::default(),
            registry: Registry::with_prefix("refit"),
            requests: Family::default(),
            seconds: histogram(),
            first_token_seconds: histogram(),
            tokens: Family::default(),
            http: Family::default(),
            cache: Family::default(),
            in_flight: Gauge::default(),
            log_rows_pending: Gauge::default(),
            log_rows_dropped: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Model calls by endpoint, provider and status class", metrics.requests.clone());
        registry.register("request_seconds", "Time of a model call to the last byte", metrics.seconds.clone());
        registry.register("first_token_seconds", "Time of a streamed call to its first chunk", metrics.first_token_seconds.clone());
        registry.register("tokens", "Tokens read and written, as providers report them", metrics.tokens.clone());
        registry.register("http_requests", "HTTP replies by route and status class", metrics.http.clone());
        registry.register("cache_lookups", "Model calls that the cache was asked for, by what it had", metrics.cache.clone());
        registry.register("requests_in_flight", "Model calls being answered", metrics.in_flight.clone());
        registry.register("log_rows_pending", "Request-log rows not yet in the database", metrics.log_rows_pending.clone());
        registry.register("log_rows_dropped", "Request-log rows that could not be written or read", metrics.log_rows_dropped.clone());
        metrics.serving.register(registry);
        metrics
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing into a String cannot fail");
        out
    }

    /// The cache was asked: `hit`, `semantic` or `miss`.
    pub fn looked_up(&self, result: &'static str) {
        self.cache.get_or_create(&Found { result }).inc();
    }

    /// A model call began.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A model call ended.
    pub fn finish(&self, call: Finished<'_>) {
        let provider = if call.provider.is_empty() { "none" } else { call.provider };
        let place = Place { endpoint: call.endpoint.to_string(), provider: provider.to_string() };
        let outcome = Outcome { endpoint: place.endpoint.clone(), provider: provider.to_string(), status: class(call.status) };
        self.requests.get_or_create(&outcome).inc();
        self.seconds.get_or_create(&place).observe(call.total_ms / 1e3);
        if let Some(ms) = call.first_token_ms {
            self.first_token_seconds.get_or_create(&place).observe(ms / 1e3);
        }
        if let Some(usage) = call.usage {
            for (direction, count) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
                self.tokens.get_or_create(&Tokens { provider: provider.to_string(), direction }).inc_by(count);
            }
        }
    }

    /// An HTTP reply was begun; `path` is the route's pattern.
    pub fn http(&self, path: &str, status: u16) {
        self.http.get_or_create(&Http { path: path.to_string(), status: class(status) }).inc();
    }

    pub(super) fn log_rows_pending(&self, change: i64) {
        self.log_rows_pending.inc_by(change);
    }

    pub(super) fn log_row_dropped(&self) {
        self.log_rows_dropped.inc();
    }
}

fn class(status: u16) -> String {
    format!("{}xx", status / 100)
}
