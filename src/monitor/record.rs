//! The request log. [`Recorder::record`] puts a row into this process's segment before the reply ends; a background thread moves
//! rows on to the database in batches, exactly once, also those that a killed process left behind.

use super::Metrics;
use super::segment::{self, Segment};
use crate::store::requests::{self, RequestRow};
use crate::store::{Store, StoreError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long rows are gathered before they go to the database together.
const GATHER: Duration = Duration::from_millis(100);
/// How long to wait after the database refused.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Held by whoever moves rows: when `flush` returns, nobody is half way.
    moving: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Made with the first row.
    segment: Option<Segment>,
    stop: bool,
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
            state: Mutex::default(),
            wake: Condvar::new(),
            moving: Mutex::default(),
        });
        shared.drain()?;
        let mover = shared.clone();
        let thread = std::thread::Builder::new().name("request-log".into()).spawn(move || mover.run());
        let thread = thread.map_err(|source| StoreError::Io { path: shared.directory.clone(), source })?;
        Ok(Recorder { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Writes a row down; when this returns it outlives the process. A row that cannot be written (a full disk) is counted and
    /// named in the log of the process: answering goes on.
    pub fn record(&self, row: &RequestRow) {
        let mut state = self.shared.lock();
        if let Err(error) = self.shared.append(&mut state, row) {
            self.shared.metrics.log_row_dropped();
            tracing::error!(request = row.id, %error, "a request's log row could not be written");
            return;
        }
        self.shared.metrics.log_rows_pending(1);
        // The mover waits for a first row, then for time to pass.
        if state.segment.as_ref().is_some_and(|segment| segment.rows == 1) {
            self.shared.wake.notify_one();
        }
    }

    /// Moves all rows written so far to the database, now.
    ///
    /// # Errors
    /// [`StoreError`]; the rows stay in their segment then.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.shared.rotate();
        self.shared.drain()
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
        // The state is a file and a flag: there is no half-changed state that a panic could leave.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, row: &RequestRow) -> std::io::Result<()> {
        if state.segment.is_none() {
            state.segment = Some(Segment::create(&self.directory)?);
        }
        state.segment.as_mut().expect("made two lines above").append(row)
    }

    /// Lets go of the segment, so that it can be drained. Returns its number of rows.
    fn rotate(&self) -> usize {
        let taken = self.lock().segment.take();
        let rows = taken.map_or(0, |segment| segment.rows);
        self.metrics.log_rows_pending(-(rows as i64));
        rows
    }

    fn drain(&self) -> Result<(), StoreError> {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let drained = segment::drain_abandoned(&self.directory, &self.store)?;
        if drained.unreadable > 0 {
            (0..drained.unreadable).for_each(|_| self.metrics.log_row_dropped());
            tracing::warn!(lines = drained.unreadable, "the request log had lines that could not be read");
        }
        Ok(())
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            while state.segment.is_none() && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.stop {
                // More rows come while we wait; together they cost one transaction.
                state = self.wake.wait_timeout_while(state, GATHER, |state| !state.stop).unwrap_or_else(PoisonError::into_inner).0;
            }
            let stop = state.stop;
            drop(state);
            self.rotate();
            while let Err(error) = self.drain() {
                tracing::error!(%error, "request-log rows wait: the database refused them");
                // The rows are safe in their segment: the next start moves them.
                if self.lock().stop {
                    return;
                }
                std::thread::sleep(RETRY);
            }
            if stop {
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
