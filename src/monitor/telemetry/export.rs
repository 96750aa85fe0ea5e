//! The thread that sends: gathers what was handed over, writes it as protobuf, posts it. A collector that is down is tried a few times for
//! each batch, then the batch is thrown away and counted; at the end of the process all of it takes bounded time.

use super::measures::{self, Span as Counted};
use super::spans::{at_nanos, of_feedback, of_row, pair};
use super::{Item, LAST_EXPORTS, Settings};
use crate::config::telemetry::Export;
use crate::monitor::Metrics;
use crate::types::time::now_ms;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Rows of one export.
const BATCH: usize = 512;
/// Tries of one export, and the pause before the second, which doubles.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// The longest `Retry-After` that is obeyed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Exporter {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    waiting_bytes: Arc<AtomicUsize>,
    /// Becomes true when the process ends.
    stopped: watch::Receiver<bool>,
    since: u64,
}

impl Exporter {
    pub(super) fn new(
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        waiting_bytes: Arc<AtomicUsize>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Exporter { settings, metrics, waiting_bytes, stopped, since: at_nanos(now_ms()) }
    }

    pub(super) fn run(self, receiver: mpsc::Receiver<Item>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "telemetry is off: no runtime for it"),
        };
        match client(&self.settings.export) {
            Ok(client) => runtime.block_on(self.serve(receiver, &client)),
            Err(error) => tracing::error!(%error, "telemetry is off: its client cannot be made"),
        }
    }

    async fn serve(mut self, mut receiver: mpsc::Receiver<Item>, client: &reqwest::Client) {
        let export = self.settings.export.clone();
        let mut metrics_due = Instant::now() + export.metric_interval;
        let mut batch = Vec::with_capacity(BATCH);
        let mut due: Option<Instant> = None;
        loop {
            let wake = due.unwrap_or(metrics_due).min(metrics_due);
            let room = BATCH - batch.len();
            tokio::select! {
                taken = receiver.recv_many(&mut batch, room) => {
                    if taken == 0 {
                        break;
                    }
                    due.get_or_insert_with(|| Instant::now() + export.gather);
                }
                () = sleep_until(wake) => {}
            }
            if batch.len() >= BATCH || due.is_some_and(|due| Instant::now() >= due) {
                self.send(&mut batch, client).await;
                due = None;
            }
            if Instant::now() >= metrics_due {
                self.send_metrics(client).await;
                metrics_due = Instant::now() + export.metric_interval;
            }
        }
        let last = async {
            self.send(&mut batch, client).await;
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                self.send(&mut batch, client).await;
            }
            self.send_metrics(client).await;
        };
        if timeout(LAST_EXPORTS, last).await.is_err() {
            tracing::warn!("telemetry that waited was not taken in time and is lost");
        }
    }

    /// Sends what was gathered; afterwards it is gone, whatever became of it.
    async fn send(&mut self, batch: &mut Vec<Item>, client: &reqwest::Client) {
        let (mut spans, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        for item in batch.drain(..) {
            bytes += item.bytes();
            match item {
                Item::Call(call) => spans.extend(of_row(&call.0, &call.1, &self.settings)),
                Item::Feedback(given) => records.push(of_feedback(&given.0, &given.1, &self.settings)),
            }
        }
        // From here on it is ours: what waits may take the room.
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let export = self.settings.export.clone();
        if let (Some(address), false) = (&export.traces, spans.is_empty()) {
            let count = spans.len();
            let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
            let resource_spans = vec![ResourceSpans { resource: Some(resource(&export)), scope_spans, ..ResourceSpans::default() }];
            let sent = self.post(client, address, ExportTraceServiceRequest { resource_spans }.encode_to_vec()).await;
            self.count(count, sent);
        }
        if let (Some(address), false) = (&export.logs, records.is_empty()) {
            let count = records.len();
            let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records: records, ..ScopeLogs::default() }];
            let resource_logs = vec![ResourceLogs { resource: Some(resource(&export)), scope_logs, ..ResourceLogs::default() }];
            let sent = self.post(client, address, ExportLogsServiceRequest { resource_logs }.encode_to_vec()).await;
            self.count(count, sent);
        }
    }

    async fn send_metrics(&mut self, client: &reqwest::Client) {
        let export = self.settings.export.clone();
        let Some(address) = &export.metrics else { return };
        let counted = Counted { since: self.since, until: at_nanos(now_ms()) };
        let metrics = measures::of(&self.metrics.series(), &self.settings, counted);
        if metrics.is_empty() {
            return;
        }
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
        let resource_metrics = vec![ResourceMetrics { resource: Some(resource(&export)), scope_metrics, ..ResourceMetrics::default() }];
        let sent = self.post(client, address, ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()).await;
        self.count(0, sent);
    }

    fn count(&self, items: usize, sent: Result<(), String>) {
        let counts = &self.metrics.telemetry;
        match sent {
            Ok(()) => drop(counts.exported.inc_by(items as u64)),
            Err(why) => {
                let failed = counts.failed.inc() + 1;
                counts.dropped.inc_by(items as u64);
                // Each of them would fill the log while the collector is down.
                if failed.is_power_of_two() {
                    tracing::warn!(why, failed, "telemetry could not be exported");
                }
            }
        }
    }

    async fn post(&mut self, client: &reqwest::Client, address: &str, body: Vec<u8>) -> Result<(), String> {
        let body = bytes::Bytes::from(body);
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let (why, wish) = match once(client, address, body.clone()).await {
                Outcome::Taken => return Ok(()),
                Outcome::Refused(why) => return Err(why),
                Outcome::Later(why, wish) => (why, wish),
            };
            if tries == TRIES || *self.stopped.borrow() {
                return Err(why);
            }
            tokio::select! {
                () = sleep(wish.unwrap_or(pause).min(LONGEST_PAUSE)) => {}
                // The process ends: one more try, without a pause.
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
            tries += 1;
            pause *= 2;
        }
    }
}

/// What became of one post.
enum Outcome {
    Taken,
    /// Trying again would change nothing.
    Refused(String),
    /// It may be taken later, perhaps after a pause that was wished for (OTLP specification, "Retryable Response Codes").
    Later(String, Option<Duration>),
}

async fn once(client: &reqwest::Client, address: &str, body: bytes::Bytes) -> Outcome {
    let sent = client.post(address).header(CONTENT_TYPE, "application/x-protobuf").body(body).send().await;
    match sent {
        Err(error) => Outcome::Later(error.without_url().to_string(), None),
        Ok(response) if response.status().is_success() => Outcome::Taken,
        Ok(response) => {
            let status = response.status().as_u16();
            let why = format!("the collector answered {status}");
            let wish = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
            if matches!(status, 429 | 502..=504) { Outcome::Later(why, wish) } else { Outcome::Refused(why) }
        }
    }
}

fn client(export: &Export) -> Result<reqwest::Client, String> {
    let mut headers = HeaderMap::new();
    for (name, secret) in &export.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| format!("telemetry.headers: \"{name}\" is no name of a header"))?;
        let mut value =
            HeaderValue::from_str(secret.expose()).map_err(|_| format!("telemetry.headers.{name} holds what no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let builder = reqwest::Client::builder().redirect(Policy::none()).timeout(export.timeout).default_headers(headers);
    // A proxy of the environment would read what is sent in the clear.
    let addresses = [&export.traces, &export.metrics, &export.logs].into_iter().flatten();
    let builder = if addresses.into_iter().any(|address| address.starts_with("http://")) { builder.no_proxy() } else { builder };
    builder.user_agent(concat!("refit/", env!("CARGO_PKG_VERSION"))).build().map_err(|error| error.to_string())
}

fn resource(export: &Export) -> Resource {
    let attributes = export.resource.iter().map(|(name, value)| pair(name, Any::StringValue(value.clone()))).collect();
    Resource { attributes, ..Resource::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "refit".into(), version: env!("CARGO_PKG_VERSION").into(), ..InstrumentationScope::default() }
}
