//! Export over OTLP (HTTP, protobuf): a span for each request and each call of a provider, the GenAI metrics, an event for each piece of
//! feedback. Everything is made from finished log rows: [`spans`] and [`measures`] write them under the names of one table ([`names`]),
//! a thread of its own ([`export`]) sends them. Handing a row over never waits: too many are thrown away and counted.

mod content;
mod export;
mod measures;
pub mod names;
mod params;
mod spans;

pub use params::Params;

use super::Metrics;
use super::metrics::TelemetryCounts;
use crate::config::ProviderConfig;
use crate::config::telemetry::Export;
use crate::store::feedback::FeedbackRow;
use crate::store::requests::RequestRow;
use crate::types::trace::{TraceParent, bytes, hex};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Calls and events that may wait, and the memory that they may take.
const MAX_WAITING: usize = 2_048;
const MAX_WAITING_BYTES: usize = 16 << 20;
/// What a row takes besides its bodies, about.
const ROW_BYTES: usize = 1_024;
/// How long the last exports may take when the process ends.
const LAST_EXPORTS: Duration = Duration::from_secs(5);

/// The way out for spans, metrics and events. Dropping it sends what waits, within bounded time.
pub struct Telemetry {
    sender: Mutex<Option<mpsc::Sender<Item>>>,
    /// The same, for the hot path.
    quick: mpsc::WeakSender<Item>,
    waiting_bytes: Arc<AtomicUsize>,
    settings: Arc<Settings>,
    counts: TelemetryCounts,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What exports go by.
pub(super) struct Settings {
    pub(super) export: Export,
    /// What the conventions call each configured provider, and its address.
    pub(super) providers: HashMap<String, Place>,
}

/// A provider, as spans name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) address: Option<(String, u16)>,
}

/// What is remembered of a call that will become spans.
#[derive(Debug, Default)]
pub struct Traced {
    /// The caller's span.
    parent: Option<[u8; 8]>,
    params: Params,
}

enum Item {
    Call(Box<(RequestRow, Traced)>),
    Feedback(Box<(RequestRow, FeedbackRow)>),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Item::Call(call) => row_bytes(&call.0),
            Item::Feedback(given) => row_bytes(&given.0) + given.1.comment.as_ref().map_or(0, String::len),
        }
    }
}

fn row_bytes(row: &RequestRow) -> usize {
    let body = |body: &Option<String>| body.as_ref().map_or(0, String::len);
    ROW_BYTES + body(&row.request) + body(&row.reply)
}

impl Telemetry {
    /// Begins to export.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(export: Export, providers: &[ProviderConfig], metrics: &Arc<Metrics>) -> std::io::Result<Self> {
        let providers = providers.iter().map(|provider| (provider.name.clone(), place(provider))).collect();
        let settings = Arc::new(Settings { export, providers });
        if settings.export.metrics.is_some() {
            metrics.keep_for_otlp();
        }
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let (stop, stopped) = watch::channel(false);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let exporter = export::Exporter::new(settings.clone(), metrics.clone(), waiting_bytes.clone(), stopped);
        let thread = std::thread::Builder::new().name("telemetry".into()).spawn(move || exporter.run(receiver))?;
        Ok(Telemetry {
            quick: sender.downgrade(),
            sender: Mutex::new(Some(sender)),
            waiting_bytes,
            settings,
            counts: metrics.telemetry.clone(),
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// A call begins: what to remember of it, and its trace in hex digits; none where it is not recorded. `params` are asked for only
    /// when it is.
    pub fn begin(&self, request_id: &str, caller: Option<TraceParent>, params: impl FnOnce() -> Params) -> Option<(Traced, String)> {
        self.settings.export.traces.as_ref()?;
        let trace_id = match caller {
            Some(caller) => Some(caller.trace_id).filter(|_| caller.sampled),
            None => trace_of(request_id).filter(|trace_id| is_sampled(trace_id, self.settings.export.sample_ratio)),
        };
        let trace_id = hex(&trace_id?);
        Some((Traced { parent: caller.map(|caller| caller.span_id), params: params() }, trace_id))
    }

    /// Whether messages and replies become part of spans.
    pub fn takes_content(&self) -> bool {
        self.settings.export.content
    }

    /// A call ended.
    pub fn finish(&self, mut row: RequestRow, traced: Traced) {
        if !self.settings.export.content {
            (row.request, row.reply) = (None, None);
        }
        self.send(Item::Call(Box::new((row, traced))));
    }

    /// Somebody said something of a request; `row` is its log row.
    pub fn feedback(&self, mut row: RequestRow, given: FeedbackRow) {
        if self.settings.export.logs.is_some() {
            (row.request, row.reply) = (None, None);
            self.send(Item::Feedback(Box::new((row, given))));
        }
    }

    fn send(&self, item: Item) {
        let bytes = item.bytes();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = waiting + bytes <= MAX_WAITING_BYTES && self.quick.upgrade().is_some_and(|sender| sender.try_send(item).is_ok());
        if !sent {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.inc();
        }
    }
}

impl Telemetry {
    /// Sends what waits and stops, within bounded time. Blocking.
    pub fn end(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.stop.send_replace(true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // What it could not send by now is lost, and counted.
            let _ = thread.join();
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.end();
    }
}

/// The trace that begins with a request: the digits of its id.
pub(super) fn trace_of(request_id: &str) -> Option<[u8; 16]> {
    bytes(request_id.rsplit('_').next()?).filter(|id| *id != [0; 16])
}

/// The span of a request: the second half of its id, which is random.
pub(super) fn span_of(request_id: &str) -> [u8; 8] {
    let digits = trace_of(request_id).unwrap_or([1; 16]);
    let mut span = [0; 8];
    span.copy_from_slice(&digits[8..]);
    span
}

/// Whether a trace that begins here is recorded: the same for all who look at the same id.
fn is_sampled(trace_id: &[u8; 16], ratio: f64) -> bool {
    let mut low = [0; 8];
    low.copy_from_slice(&trace_id[8..]);
    let share = mixed(u64::from_be_bytes(low)) as f64 / u64::MAX as f64;
    share < ratio || ratio >= 1.0
}

/// Spreads a number over all bits (splitmix64, Steele et al. 2014).
pub(super) fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn place(provider: &ProviderConfig) -> Place {
    let address = provider.base_url.as_deref().and_then(|url| {
        let url = reqwest::Url::parse(url).ok()?;
        Some((url.host_str()?.to_string(), url.port_or_known_default()?))
    });
    Place { name: names::provider(&provider.kind).to_string(), address }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TelemetryConfig;
    use crate::types::ids::new_id;

    #[test]
    fn what_waits_is_bounded_by_number_and_by_bytes_and_the_rest_is_counted() {
        // Connections are taken and never answered.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
        let config = TelemetryConfig { otlp_endpoint: Some(endpoint), content: true, ..TelemetryConfig::default() };
        for (body, most) in [(10, MAX_WAITING + 1_024), (1 << 20, 32)] {
            let metrics = Arc::new(Metrics::new());
            let export = Export { timeout: Duration::from_secs(1), ..config.export().expect("an address") };
            let telemetry = Telemetry::start(export, &[], &metrics).expect("a thread");
            let count = 2 * MAX_WAITING as u64 + 2_048;
            let begun = std::time::Instant::now();
            for _ in 0..count {
                let row = RequestRow { id: new_id("req"), request: Some("x".repeat(body)), ..RequestRow::default() };
                telemetry.finish(row, Traced::default());
                assert!(telemetry.waiting_bytes.load(Ordering::Relaxed) <= MAX_WAITING_BYTES + 2 * (body + ROW_BYTES));
            }
            let dropped = metrics.telemetry.dropped.get();
            // What is given up after its second makes room for others.
            let given_up = begun.elapsed().as_secs() * most as u64;
            assert!(dropped + given_up >= count - most as u64, "{dropped} of {count} were dropped, {given_up} given up");
            let begun = std::time::Instant::now();
            telemetry.end();
            assert!(begun.elapsed() < 5 * LAST_EXPORTS, "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn the_share_of_recorded_traces_is_the_configured_one() {
        let ids: Vec<_> = (0..4_000).map(|_| trace_of(&new_id("req")).expect("an id")).collect();
        for ratio in [0.0, 0.25, 1.0] {
            let share = ids.iter().filter(|id| is_sampled(id, ratio)).count() as f64 / ids.len() as f64;
            // Five standard errors of a share of 4,000.
            assert!((share - ratio).abs() <= 5.0 * (ratio * (1.0 - ratio) / 4_000.0).sqrt(), "{ratio}: {share}");
        }
    }
}
