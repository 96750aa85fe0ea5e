//! Batches: many requests in one file, answered when there is time, on any route or model. [`runner`] finds work, [`work`] does it
//! under a lease that `jobs::heart` keeps, and starts where it left off after a crash; [`check`] reads lines, [`line`] asks one,
//! [`results`] holds the answers until they become files.
//!
//! A line takes the road of a request over HTTP: whoever serves hands in an [`Endpoint`], so that a batch means exactly what the
//! same requests one by one would have meant.

mod check;
pub(super) mod line;
mod results;
mod runner;
mod work;

pub use check::{MAX_LINES, Problem};

use crate::access::{Caller, Keys};
use crate::config::BatchesConfig;
use crate::store::batches::{self, BatchRow, Counts, Status};
use crate::store::{Store, StoreError, files};
use crate::types::blocking::blocking;
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The time that a batch may take, as clients write it, and in milliseconds.
const WINDOW: (&str, i64) = ("24h", 24 * 60 * 60 * 1000);
/// Purpose of files with lines.
pub const INPUT_PURPOSE: &str = "batch";
/// Purpose of files with answers.
const OUTPUT_PURPOSE: &str = "batch_output";

/// What answers a line, as if it had come over HTTP with the caller's key.
pub trait Endpoint: Send + Sync + 'static {
    /// POSTs `body` to `path`.
    fn answer(&self, request: LineRequest) -> BoxFuture<'static, LineReply>;
}

/// A line on its way.
#[derive(Debug, Clone)]
pub struct LineRequest {
    /// On whose behalf.
    pub caller: Caller,
    /// One of [`ENDPOINTS`].
    pub path: &'static str,
    /// The body, JSON.
    pub body: Bytes,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct LineReply {
    /// HTTP status.
    pub status: u16,
    /// Id of the request in the log.
    pub request_id: String,
    /// Seconds after which a retry makes sense.
    pub retry_after_s: Option<u64>,
    /// The body.
    pub body: Value,
}

/// Paths that lines may ask. Azure's clients leave `/v1` out; so may lines here.
pub const ENDPOINTS: [&str; 5] = ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages"];

/// The known spelling of a path.
fn endpoint(path: &str) -> Option<&'static str> {
    ENDPOINTS.into_iter().find(|known| *known == path || known.strip_prefix("/v1") == Some(path))
}

/// A batch to make.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Path that every line asks.
    pub endpoint: String,
    /// File with the lines.
    pub input_file: String,
    /// `24h`.
    pub completion_window: String,
    /// The caller's labels: an object or null.
    pub metadata: Value,
    /// Seconds that the files with the answers live.
    pub output_expires_s: Option<i64>,
    /// The client's `Idempotency-Key`: the same request under the same key makes no second batch.
    pub retry_key: Option<String>,
    /// Of the whole request.
    pub request_digest: Digest,
}

/// The batches of a data directory.
pub struct Batches {
    store: Store,
    keys: Keys,
    slots: Arc<Semaphore>,
    room: Room,
    concurrency: usize,
    max_line_bytes: AtomicUsize,
    woken: Notify,
    running: AtomicUsize,
    /// When expired files were last removed.
    swept: Mutex<Option<Instant>>,
}

impl Batches {
    /// `max_line_bytes` is what the server takes as one body.
    pub fn new(store: &Store, keys: &Keys, config: &BatchesConfig, max_line_bytes: usize) -> Self {
        let slots = Arc::new(Semaphore::new(config.concurrency));
        Batches {
            store: store.clone(),
            keys: keys.clone(),
            slots,
            room: Room::new(),
            concurrency: config.concurrency,
            max_line_bytes: max_line_bytes.into(),
            woken: Notify::new(),
            running: AtomicUsize::new(0),
            swept: Mutex::new(None),
        }
    }

    /// Lines of at most so many bytes are taken from now on.
    pub fn take_lines_of(&self, bytes: usize) {
        self.max_line_bytes.store(bytes, Ordering::Relaxed);
    }

    fn max_line_bytes(&self) -> usize {
        self.max_line_bytes.load(Ordering::Relaxed)
    }

    /// Batches that are being worked on.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Takes a batch in; its lines are checked later. Blocking.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] naming the field; [`Code::CONFLICT`] when the retry key was used for another request.
    pub fn create(&self, caller: &Caller, new: NewBatch) -> Result<BatchRow, Failure> {
        let db = self.store.db.as_ref();
        if let Some(known) = self.retried(caller, &new)? {
            return Ok(known);
        }
        let Some(endpoint) = endpoint(&new.endpoint) else {
            let message = format!("endpoint: expected one of {}", ENDPOINTS.join(", "));
            return Err(Failure::on(Code::INVALID_VALUE, "endpoint", message));
        };
        if new.completion_window != WINDOW.0 {
            let message = format!("completion_window: expected \"{}\"", WINDOW.0);
            return Err(Failure::on(Code::INVALID_VALUE, "completion_window", message));
        }
        let on_input = |message: String| Failure::on(Code::INVALID_VALUE, "input_file_id", message);
        let file = match files::get(db, &caller.project, &new.input_file) {
            Err(error @ StoreError::Unknown { .. }) => return Err(on_input(error.to_string()).with_hint("upload it with POST /v1/files")),
            other => other?,
        };
        if file.purpose != INPUT_PURPOSE {
            let message = format!("the file {} was uploaded for \"{}\"", file.id, file.purpose);
            return Err(on_input(message).with_hint("upload it with purpose \"batch\""));
        }
        let now = now_ms();
        let batch = BatchRow {
            id: new_id("batch"),
            project: caller.project.clone(),
            api_key: caller.key_id.clone(),
            job: new_id("job"),
            endpoint: endpoint.to_string(),
            input_file: file.id,
            completion_window: new.completion_window.clone(),
            metadata: new.metadata.clone(),
            output_expires_s: new.output_expires_s,
            retry_key: new.retry_key.clone(),
            request_digest: new.request_digest,
            status: Status::Validating,
            model: None,
            errors: Value::Array(Vec::new()),
            counts: Counts::default(),
            output_file: None,
            error_file: None,
            created_at: now,
            expires_at: now + WINDOW.1,
            times: Vec::new(),
        };
        match batches::insert(db, &batch) {
            // Another request with the same key was faster, or somebody deleted the file.
            Err(StoreError::Conflict(_)) => {
                let known = self.retried(caller, &new)?;
                return known.ok_or_else(|| on_input(format!("the file {} was deleted meanwhile", batch.input_file)));
            }
            other => other?,
        }
        self.woken.notify_one();
        Ok(batch)
    }

    fn retried(&self, caller: &Caller, new: &NewBatch) -> Result<Option<BatchRow>, Failure> {
        let Some(key) = &new.retry_key else { return Ok(None) };
        match batches::of_retry(self.store.db.as_ref(), &caller.project, key)? {
            Some(known) if known.request_digest != new.request_digest => {
                Err(Failure::on(Code::CONFLICT, "idempotency-key", "this Idempotency-Key was sent with another request before"))
            }
            known => Ok(known),
        }
    }

    /// A batch of the caller's project. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when there is none.
    pub fn get(&self, caller: &Caller, id: &str) -> Result<BatchRow, Failure> {
        Ok(batches::get(self.store.db.as_ref(), &caller.project, id)?)
    }

    /// One page of the project's batches, newest first, and whether more follow. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when `after` names none.
    pub fn list(&self, caller: &Caller, after: Option<&str>, limit: usize) -> Result<(Vec<BatchRow>, bool), Failure> {
        Ok(batches::list(self.store.db.as_ref(), &caller.project, after, limit)?)
    }

    /// Asks a batch to stop: lines on their way are answered, the others are not asked. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when there is none, [`Code::CONFLICT`] when it ended otherwise.
    pub fn cancel(&self, caller: &Caller, id: &str) -> Result<BatchRow, Failure> {
        let batch = batches::request_cancel(self.store.db.as_ref(), &caller.project, id)?;
        if !matches!(batch.status, Status::Cancelling | Status::Cancelled) {
            let message = format!("batch {id} is {}; it cannot be cancelled any more", batch.status.word());
            return Err(Failure::new(Code::CONFLICT, message));
        }
        Ok(batch)
    }
}

/// Memory for lines that are read and not answered yet, over all batches.
#[derive(Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    /// In KiB. A line needs a few times its size while it is asked.
    const ALL: u32 = 64 << 10;

    fn new() -> Self {
        Room(Arc::new(Semaphore::new(Room::ALL as usize)))
    }

    /// Waits until there is room for so many bytes; a line that is larger than the room has it alone.
    async fn admit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1).min(Room::ALL);
        self.0.clone().acquire_many_owned(kib).await.ok()
    }
}
