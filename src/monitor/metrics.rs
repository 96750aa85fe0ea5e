//! Metrics in the OpenMetrics text format, which Prometheus reads. Every label has few values: endpoints and paths of the route table,
//! projects, routes, releases, providers, and models that have answered, all of them bounded ([`series`](super::series)). No user, key or
//! text of a caller becomes a label. What is shown to whom is [`exposition`](super::exposition)'s business.

use super::database::{Timed, Writes};
use super::exposition::{Exposition, Sources, View};
use super::process::Process;
use super::series::{AllSeries, Distribution, MAX_SERIES, Series};
use super::serving::Serving;
use super::snapshots::Snapshots;
use crate::store::Db;
use crate::store::requests::RequestRow;
use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Paths of the route table, and some.
const MAX_PATHS: usize = 256;

/// The metrics of this process.
pub struct Metrics {
    /// What the serving process knows about itself.
    pub serving: Serving,
    /// What answers under the names of models.
    pub snapshots: Snapshots,
    registry: Registry,
    system: Registry,
    series: Arc<AllSeries>,
    http: Paths,
    writes: Arc<Writes>,
    sources: OnceLock<Sources>,
    in_flight: Gauge,
    log_rows_pending: Gauge,
    log_rows_dropped: Counter,
    /// What became of telemetry.
    pub(super) telemetry: TelemetryCounts,
}

/// What became of spans, events and exports of metrics.
#[derive(Debug, Clone, Default)]
pub(super) struct TelemetryCounts {
    /// Spans and events that a collector has taken.
    pub(super) exported: Counter,
    /// Spans and events that were thrown away.
    pub(super) dropped: Counter,
    /// Exports that failed in the end.
    pub(super) failed: Counter,
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
        let mut metrics = Metrics {
            serving: Serving::default(),
            snapshots: Snapshots::default(),
            registry: Registry::with_prefix("refit"),
            system: Registry::default(),
            series: Arc::new(AllSeries::new(MAX_SERIES)),
            http: Paths::default(),
            writes: Arc::default(),
            sources: OnceLock::new(),
            in_flight: Gauge::default(),
            log_rows_pending: Gauge::default(),
            log_rows_dropped: Counter::default(),
            telemetry: TelemetryCounts::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests_in_flight", "Model calls being answered", metrics.in_flight.clone());
        registry.register("log_rows_pending", "Request-log rows not yet in the database", metrics.log_rows_pending.clone());
        registry.register("log_rows_dropped", "Request-log rows that could not be written or read", metrics.log_rows_dropped.clone());
        let changes = "Models of providers whose replies began to name another model or system_fingerprint";
        registry.register("model_snapshot_changes", changes, metrics.snapshots.changes.clone());
        registry.register("build", "What runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let TelemetryCounts { exported, dropped, failed } = metrics.telemetry.clone();
        registry.register("telemetry_exported", "Spans and events that an OTLP collector took", exported);
        registry.register("telemetry_dropped", "Spans and events thrown away: too many waited, or no collector took them", dropped);
        registry.register("telemetry_failures", "OTLP exports that failed in the end", failed);
        metrics.serving.register(registry);
        registry.register_collector(Box::new(metrics.http.clone()));
        registry.register_collector(Box::new(WritesRead(metrics.writes.clone())));
        metrics.system.register_collector(Box::new(Process));
        metrics
    }

    /// The text of `/metrics`, as much of it as a reader may see.
    pub fn render(&self, view: View) -> String {
        let read = |source: Option<&Sources>| match source {
            Some(Sources { targets, budgets }) => {
                (targets.as_ref().map(|read| read()).unwrap_or_default(), budgets.as_ref().map(|read| read()).unwrap_or_default())
            }
            None => Default::default(),
        };
        let (targets, budgets) = read(self.sources.get());
        let mut calls = Registry::with_prefix("refit");
        calls.register_collector(Box::new(Exposition { view, series: self.series.clone(), targets, budgets }));
        let mut out = String::new();
        let mut write = || {
            [&self.registry, &calls, &self.system].into_iter().try_for_each(|registry| text::encode_registry(&mut out, registry))?;
            text::encode_eof(&mut out)
        };
        write().expect("writing into a String cannot fail");
        out
    }

    /// Names what is read whenever metrics are; once.
    pub fn watch(&self, sources: Sources) {
        // A second one would be a mistake of the program, and the first goes on.
        let _ = self.sources.set(sources);
    }

    /// The same database, with its writes timed.
    pub fn timed(&self, db: Arc<dyn Db>) -> Arc<dyn Db> {
        Arc::new(Timed { db, writes: self.writes.clone() })
    }

    /// A model call began.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Model calls being answered.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// A model call ended; its row is as it will be logged.
    pub fn finish(&self, row: &RequestRow) {
        self.series.record(row);
    }

    /// An HTTP reply was begun; `path` is the route's pattern.
    pub fn http(&self, path: &str, status: u16) {
        self.http.count(path, status);
    }

    pub(super) fn log_rows_pending(&self, change: i64) {
        self.log_rows_pending.inc_by(change);
    }

    pub(super) fn log_row_dropped(&self) {
        self.log_rows_dropped.inc();
    }

    /// From now on series have what OTLP shows.
    pub(super) fn keep_for_otlp(&self) {
        self.series.keep_for_otlp();
    }

    /// Every series, for OTLP.
    pub(super) fn series(&self) -> Vec<Arc<Series>> {
        self.series.all()
    }
}

type Statuses = Arc<[AtomicU64; 6]>;

/// HTTP replies by path and status class. A path is added once and found without a lock.
#[derive(Debug, Clone, Default)]
struct Paths {
    table: Arc<ArcSwap<HashMap<String, Statuses>>>,
    adding: Arc<Mutex<()>>,
}

impl Paths {
    fn count(&self, path: &str, status: u16) {
        let known = self.table.load().get(path).cloned();
        let statuses = known.unwrap_or_else(|| self.add(path));
        statuses[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }

    fn add(&self, path: &str) -> Statuses {
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = HashMap::clone(&self.table.load());
        let path = if table.len() < MAX_PATHS { path } else { super::series::OTHER };
        let statuses = table.entry(path.to_string()).or_default().clone();
        self.table.store(Arc::new(table));
        statuses
    }
}

impl Collector for Paths {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.table.load();
        let mut paths: Vec<_> = table.iter().collect();
        paths.sort_by_key(|(path, _)| *path);
        if paths.is_empty() {
            return Ok(());
        }
        let help = "HTTP replies by route and status class";
        let mut family = encoder.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
        for (path, statuses) in paths {
            for (class, count) in statuses.iter().enumerate().map(|(class, count)| (class, count.load(Ordering::Relaxed))) {
                if count > 0 {
                    let labels = [("path", path.clone()), ("status", format!("{class}xx"))];
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Shows the times of the database's writes.
#[derive(Debug)]
struct WritesRead(Arc<Writes>);

impl Collector for WritesRead {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (seconds, failed) = self.0.read();
        let help = "Time of a write to the database, waiting for others included";
        Read(&seconds).encode(encoder.encode_descriptor("database_write", help, Some(&Unit::Seconds), MetricType::Histogram)?)?;
        let counter = ConstCounter::new(failed);
        counter.encode(encoder.encode_descriptor(
            "database_write_failures",
            "Writes that the database refused",
            None,
            MetricType::Counter,
        )?)
    }
}

/// A histogram that was read.
pub(super) struct Read<'f>(pub(super) &'f Distribution);

impl EncodeMetric for Read<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Read(distribution) = self;
        // The encoder writes this one as +Inf.
        let bounds = distribution.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(distribution.buckets.iter().copied()).collect();
        encoder.encode_histogram::<NoLabelSet>(distribution.sum, distribution.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
