//! The request log. [`Recorder::record`] puts a row into this process's segment before the reply ends; a background thread moves
//! rows on to the database in batches, exactly once, also those that a killed process left behind.

use super::Metrics;
use super::segment::{self, Segment};
use crate::store::requests::{self, RequestRow};
use crate::store::{Store, StoreError};
use crate::types::shard::{SHARDS, of_thread};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long rows are gathered before they go to the database together.
const GATHER: Duration = Duration::from_millis(100);
/// How long to wait after the database refused.
const RETRY: Duration = Duration::from_secs(1);
/// Rows that are kept in memory until they are moved; what is more is read from its segment again.
const KEPT_BYTES: usize = 8 << 20;

/// Writes the request log. Dropping it moves all rows to the database first.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Store,
    directory: PathBuf,
    metrics: Arc<Metrics>,
    /// One for each thread that answers, so that none waits for another's write.
    shards: [Mutex<Shard>; SHARDS],
    /// Bytes of rows that are kept in memory.
    kept_bytes: AtomicUsize,
    /// Whether the mover knows that there are rows.
    awake: AtomicBool,
    stop: Mutex<bool>,
    wake: Condvar,
}

/// The rows of one thread since they were last moved.
#[derive(Default)]
struct Shard {
    /// Made with the first row.
    segment: Option<Segment>,
    lines: usize,
    /// The rows of the segment; fewer than its lines where they were too many.
    #[expect(clippy::vec_box, reason = "a row is moved several times on its way here, and is large")]
    rows: Vec<Box<RequestRow>>,
    bytes: usize,
}

impl Recorder {
    /// Opens the log of a store and moves what dead processes left to the database.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or the database cannot be written.
    pub fn open(store: &Store, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let directory = segment::directory(store.directory());
        std::fs::create_dir_all(&directory).map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        let shared = Arc::new(Shared {
            store: store.clone(),
            directory,
            metrics,
            shards: Default::default(),
            kept_bytes: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        });
        shared.drain()?;
        let mover = shared.clone();
        let thread = std::thread::Builder::new().name("request-log".into()).spawn(move || mover.run());
        let thread = thread.map_err(|source| StoreError::Io { path: shared.directory.clone(), source })?;
        Ok(Recorder { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Writes a row down; when this returns it outlives the process. A row that cannot be written (a full disk) is counted and
    /// named in the log of the process: answering goes on.
    pub fn record(&self, row: Box<RequestRow>) {
        let line = segment::line(&row);
        let mut shard = lock(&self.shared.shards[of_thread()]);
        if let Err(error) = shard.append(&self.shared, &line) {
            drop(shard);
            self.shared.metrics.log_row_dropped();
            tracing::error!(request = row.id, %error, "a request's log row could not be written");
            return;
        }
        shard.keep(&self.shared, row, line.len());
        drop(shard);
        self.shared.metrics.log_rows_pending(1);
        // The mover waits for a first row, then for time to pass.
        if !self.shared.awake.swap(true, Ordering::AcqRel) {
            drop(lock(&self.shared.stop));
            self.shared.wake.notify_one();
        }
    }

    /// Moves all rows written so far to the database, now.
    ///
    /// # Errors
    /// [`StoreError`]; the rows stay in their segment then.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.shared.move_all()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // The thread does not panic; if it did, the rows are safe in their segment.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Files, lists and a flag: there is no half-changed state that a panic could leave.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn append(&mut self, shared: &Shared, line: &[u8]) -> std::io::Result<()> {
        if self.segment.is_none() {
            self.segment = Some(Segment::create(&shared.directory)?);
        }
        self.segment.as_mut().expect("made two lines above").append(line)
    }

    /// Keeps a row, so that it need not be read again, while there is room.
    fn keep(&mut self, shared: &Shared, row: Box<RequestRow>, bytes: usize) {
        self.lines += 1;
        if self.rows.len() + 1 == self.lines && shared.kept_bytes.load(Ordering::Relaxed) + bytes <= KEPT_BYTES {
            shared.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.bytes += bytes;
            self.rows.push(row);
        }
    }
}

impl Shared {
    /// Moves what every thread has written to the database, from memory where it is there.
    fn move_all(&self) -> Result<(), StoreError> {
        for shard in &self.shards {
            let taken = std::mem::take(&mut *lock(shard));
            self.metrics.log_rows_pending(-(taken.lines as i64));
            let Some(segment) = taken.segment else { continue };
            let whole = taken.rows.len() == taken.lines;
            let moved = if whole { segment::store(taken.rows, &self.store) } else { Ok(()) };
            self.kept_bytes.fetch_sub(taken.bytes, Ordering::Relaxed);
            match moved {
                Ok(()) if whole => segment.remove()?,
                // Let go of, it is drained below like any other.
                Ok(()) => drop(segment),
                Err(error) => tracing::warn!(%error, "request-log rows stay in their segment for now"),
            }
        }
        self.drain()
    }

    fn drain(&self) -> Result<(), StoreError> {
        let drained = segment::drain_abandoned(&self.directory, &self.store)?;
        if drained.unreadable > 0 {
            (0..drained.unreadable).for_each(|_| self.metrics.log_row_dropped());
            tracing::warn!(lines = drained.unreadable, "the request log had lines that could not be read");
        }
        Ok(())
    }

    fn run(&self) {
        loop {
            let mut stop = lock(&self.stop);
            while !*stop && !self.awake.load(Ordering::Acquire) {
                stop = self.wake.wait(stop).unwrap_or_else(PoisonError::into_inner);
            }
            if !*stop {
                // More rows come while we wait; together they cost one transaction.
                stop = self.wake.wait_timeout_while(stop, GATHER, |stop| !*stop).unwrap_or_else(PoisonError::into_inner).0;
            }
            let last = *stop;
            drop(stop);
            self.awake.store(false, Ordering::Release);
            while let Err(error) = self.move_all() {
                tracing::error!(%error, "request-log rows wait: the database refused them");
                // The rows are safe in their segment: the next start moves them.
                if *lock(&self.stop) {
                    return;
                }
                std::thread::sleep(RETRY);
            }
            if last {
                return;
            }
        }
    }
}

/// One logged request, wherever its row stands by now.
///
/// # Errors
/// When neither segments nor database can be read.
pub fn find(store: &Store, id: &str) -> Result<Option<RequestRow>, StoreError> {
    // Segments first: a row moves from there to the database, never back.
    let pending = pending(store.directory())?.into_iter().find(|row| row.id == id);
    match pending {
        Some(row) => Ok(Some(row)),
        None => requests::by_id(store.db.as_ref(), id),
    }
}

/// The newest logged requests, newest first, wherever their rows stand by now.
///
/// # Errors
/// When neither segments nor database can be read.
pub fn newest(store: &Store, limit: usize) -> Result<Vec<RequestRow>, StoreError> {
    let mut rows = pending(store.directory())?;
    rows.extend(requests::newest(store.db.as_ref(), limit)?);
    rows.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    rows.dedup_by(|a, b| a.id == b.id);
    rows.truncate(limit);
    Ok(rows)
}

fn pending(data_dir: &Path) -> Result<Vec<RequestRow>, StoreError> {
    segment::pending(&segment::directory(data_dir))
}
