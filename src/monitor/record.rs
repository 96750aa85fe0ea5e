//! The request log. [`Recorder::record`] puts a row into this process's segment before the reply ends; a background thread moves
//! rows on to the database in batches, exactly once, also those that a killed process left behind.
//!
//! Where the disk takes nothing, answering goes on: rows are kept in memory, up to a bound, and written once there is room again.
//! [`Recorder::state`] tells; `/ready` says 503 meanwhile, because what is kept in memory does not outlive the process.

use super::Metrics;
use super::segment::{self, Segment};
use crate::store::requests::{self, RequestRow};
use crate::store::{Store, StoreError};
use crate::types::time::now_ms;
use serde::Serialize;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long rows are gathered before they go to the database together.
const GATHER: Duration = Duration::from_millis(100);
/// How long to wait after the disk or the database refused.
const RETRY: Duration = Duration::from_secs(1);
/// What rows that could not be written may take of the memory.
const KEPT_BYTES: usize = 16 << 20;
/// A row without its bodies, about.
const ROW_BYTES: usize = 1_024;

/// Writes the request log. Dropping it moves all rows to the database first.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Store,
    directory: PathBuf,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Condvar,
    /// Held by the one who moves rows.
    moving: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Made with the first row.
    segment: Option<Segment>,
    /// Rows that could not be written, oldest first.
    kept: VecDeque<RequestRow>,
    kept_bytes: usize,
    /// Rows in segments that were let go and are not in the database yet.
    let_go: usize,
    /// When the oldest row that is not in the database was written down, milliseconds.
    oldest: Option<i64>,
    dropped: u64,
    /// Why rows cannot be written to disk.
    disk: Option<String>,
    /// Why rows cannot be moved to the database.
    database: Option<String>,
    stop: bool,
}

/// How the request log is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogState {
    /// Rows on disk that are not in the database yet.
    pub pending: usize,
    /// Rows in memory that could not be written to disk.
    pub kept: usize,
    /// Rows that are lost: there was no room for them in memory either.
    pub dropped: u64,
    /// When the oldest row that is not in the database was written down, milliseconds.
    pub oldest_unmoved_at: Option<i64>,
    /// Why rows cannot be written to disk; none when they can.
    pub disk: Option<String>,
    /// Why rows cannot be moved to the database; none when they can.
    pub database: Option<String>,
}

impl Recorder {
    /// Opens the log of a store and moves what dead processes left to the database.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or the database cannot be written.
    pub fn open(store: &Store, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let directory = segment::directory(store.directory());
        std::fs::create_dir_all(&directory).map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        let (store, state, wake, moving) = (store.clone(), Mutex::default(), Condvar::new(), Mutex::new(()));
        let shared = Arc::new(Shared { store, directory, metrics, state, wake, moving });
        shared.drain()?;
        let mover = shared.clone();
        let thread = std::thread::Builder::new().name("request-log".into()).spawn(move || mover.run());
        let thread = thread.map_err(|source| StoreError::Io { path: shared.directory.clone(), source })?;
        Ok(Recorder { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Writes a row down; when this returns it outlives the process. A row that cannot be written (a full disk) is kept in memory,
    /// where there is room: answering goes on.
    pub fn record(&self, row: &RequestRow) {
        let mut state = self.shared.lock();
        if state.disk.is_some() {
            // The mover tries each second; every request trying, too, would only cost.
            return self.shared.keep(&mut state, row);
        }
        if let Err(error) = self.shared.append(&mut state, row) {
            tracing::error!(request = row.id, %error, "log rows cannot be written; they are kept in memory");
            state.disk = Some(error.to_string());
            self.shared.keep(&mut state, row);
            self.shared.wake.notify_one();
            return;
        }
        self.shared.metrics.log_rows_pending(1);
        // The mover waits for a first row, then for time to pass.
        if state.segment.as_ref().is_some_and(|segment| segment.rows == 1) {
            state.oldest.get_or_insert_with(now_ms);
            self.shared.wake.notify_one();
        }
    }

    /// How the log is doing.
    pub fn state(&self) -> LogState {
        let state = self.shared.lock();
        LogState {
            pending: state.let_go + state.segment.as_ref().map_or(0, |segment| segment.rows),
            kept: state.kept.len(),
            dropped: state.dropped,
            oldest_unmoved_at: state.oldest,
            disk: state.disk.clone(),
            database: state.database.clone(),
        }
    }

    /// Moves all rows written so far to the database, now.
    ///
    /// # Errors
    /// [`StoreError`]; the rows stay in their segment then. Rows that are kept in memory are lost when the process ends now.
    pub fn flush(&self) -> Result<(), StoreError> {
        let written = self.shared.write_kept();
        self.shared.move_rows().and(written)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread does not panic; if it did, the rows are safe in their segment.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is an assignment or a push: there is no half-changed state that a panic could leave.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, row: &RequestRow) -> std::io::Result<()> {
        if state.segment.is_none() {
            state.segment = Some(Segment::create(&self.directory)?);
        }
        state.segment.as_mut().expect("made two lines above").append(row)
    }

    /// Keeps a row in memory, or counts it as dropped.
    fn keep(&self, state: &mut State, row: &RequestRow) {
        let bytes = size(row);
        if state.kept_bytes + bytes > KEPT_BYTES {
            state.dropped += 1;
            self.metrics.log_row_dropped();
            if state.dropped.is_power_of_two() {
                tracing::error!(dropped = state.dropped, "log rows are lost: they can neither be written nor kept in memory");
            }
            return;
        }
        state.kept_bytes += bytes;
        state.kept.push_back(row.clone());
        state.oldest.get_or_insert_with(now_ms);
        self.metrics.serving.log_rows_kept.set(i64::try_from(state.kept.len()).unwrap_or(i64::MAX));
    }

    /// Writes what is kept in memory, oldest first, until a write fails.
    fn write_kept(&self) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.disk.is_none() {
            return Ok(());
        }
        let failed = |source| StoreError::Io { path: self.directory.clone(), source };
        // It may be the directory itself that somebody took away.
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        while let Some(row) = state.kept.pop_front() {
            if let Err(error) = self.append(&mut state, &row) {
                state.disk = Some(error.to_string());
                state.kept.push_front(row);
                return Err(failed(error));
            }
            state.kept_bytes = state.kept_bytes.saturating_sub(size(&row));
            self.metrics.log_rows_pending(1);
            self.metrics.serving.log_rows_kept.set(i64::try_from(state.kept.len()).unwrap_or(i64::MAX));
        }
        state.disk = None;
        tracing::warn!("log rows can be written again; what was kept in memory stands on disk");
        Ok(())
    }

    /// Lets go of the segment and moves every row that nobody appends to.
    fn move_rows(&self) -> Result<(), StoreError> {
        let _one = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, oldest) = {
            let mut state = self.lock();
            let taken = state.segment.take();
            state.let_go += taken.as_ref().map_or(0, |segment| segment.rows);
            (state.let_go, state.oldest.take())
        };
        let drained = self.drain();
        let mut state = self.lock();
        match &drained {
            Ok(()) => {
                state.let_go = 0;
                state.database = None;
                self.metrics.log_rows_pending(-i64::try_from(rows).unwrap_or(0));
                // What is kept in memory is older than what came meanwhile.
                if !state.kept.is_empty() {
                    state.oldest = oldest;
                }
            }
            Err(error) => {
                if state.database.is_none() {
                    tracing::error!(%error, "request-log rows wait: the database refused them");
                }
                state.database = Some(error.to_string());
                state.oldest = oldest.or(state.oldest);
            }
        }
        drained
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
            let stop = self.wait_for_rows();
            let written = self.write_kept();
            let moved = self.move_rows();
            if stop {
                // Rows on disk are safe in their segment: the next start moves them.
                let lost = self.lock().kept.len();
                if lost > 0 {
                    tracing::error!(rows = lost, "log rows are lost: they could not be written before the end");
                }
                return;
            }
            if written.is_err() || moved.is_err() {
                let state = self.lock();
                drop(self.wake.wait_timeout_while(state, RETRY, |state| !state.stop));
            }
        }
    }

    /// Waits for a row, and then for more of them: together they cost one transaction. Whether to stop.
    fn wait_for_rows(&self) -> bool {
        let idle = |state: &mut State| state.segment.is_none() && state.kept.is_empty() && state.let_go == 0 && !state.stop;
        let state = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let state = self.wake.wait_timeout_while(state, GATHER, |state| !state.stop).unwrap_or_else(PoisonError::into_inner).0;
        state.stop
    }
}

/// What a row takes of the memory, about.
fn size(row: &RequestRow) -> usize {
    let body = |body: &Option<String>| body.as_ref().map_or(0, String::len);
    ROW_BYTES + body(&row.request) + body(&row.reply)
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
