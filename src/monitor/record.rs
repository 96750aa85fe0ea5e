//! The request log. [`Recorder::record`] puts a row into a segment before the reply ends; a background thread moves rows on to the
//! database in batches, exactly once, also those that a killed process left behind.
//!
//! Where the disk takes nothing, answering goes on: rows are kept in memory, up to a bound, and written once there is room again.
//! [`Recorder::state`] tells; `/ready` says 503 meanwhile, because what is kept in memory does not outlive the process.

use super::Metrics;
use super::idler::Idler;
use super::segment;
use super::shard::{Outcome, Shard};
use crate::store::requests::{self, RequestRow};
use crate::store::{Store, StoreError};
use crate::types::shard::{SHARDS, of_thread};
use crate::types::time::now_ms;
use serde::Serialize;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long rows are gathered before they go to the database together: each time costs a file and a transaction, whatever is in it.
const GATHER: Duration = Duration::from_millis(150);
/// What they may take of the memory meanwhile.
const GATHER_BYTES: usize = 1536 << 10;
/// How long to wait after the disk or the database refused.
const RETRY: Duration = Duration::from_secs(1);
/// What rows that could not be written may take of the memory.
const UNWRITTEN_BYTES: usize = 16 << 20;
/// How long rows wait for moments in which the machine has nothing better to do.
const PATIENCE: Duration = Duration::from_secs(5);
/// Kept rows that are tried in vain each time: one that is too long for the room there is does not hold up those behind it.
const TRIES: usize = 8;
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
    /// One for each thread that answers, so that none waits for another's write.
    shards: [Mutex<Shard>; SHARDS],
    /// Bytes of written rows that are in memory.
    written_bytes: AtomicUsize,
    /// Whether the mover knows that there are rows, and that there are many.
    awake: AtomicBool,
    called: AtomicBool,
    /// Whether rows cannot be written to disk: [`State::disk`] says why.
    failing: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
    /// Held by the one who moves rows.
    moving: Mutex<()>,
    /// How many cannot wait until all rows are moved.
    hurried: AtomicUsize,
}

/// What all threads have written since the last time.
struct Lot {
    shards: Vec<Shard>,
    /// Rows that are in the database once it is moved, with those of lots before.
    rows: usize,
    /// When the oldest of them was written down, milliseconds.
    oldest: Option<i64>,
}

#[derive(Default)]
struct State {
    /// Rows that could not be written, oldest first.
    kept: VecDeque<Box<RequestRow>>,
    kept_bytes: usize,
    /// Rows in segments that were let go and are not in the database yet.
    let_go: usize,
    /// When the oldest row that is in no shard and not in the database was written down, milliseconds.
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
        let shared = Arc::new(Shared {
            store: store.clone(),
            directory,
            metrics,
            shards: Default::default(),
            written_bytes: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            called: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            state: Mutex::default(),
            wake: Condvar::new(),
            moving: Mutex::new(()),
            hurried: AtomicUsize::new(0),
        });
        shared.drain(&|| true)?;
        let mover = shared.clone();
        let thread = std::thread::Builder::new().name("request-log".into()).spawn(move || mover.run());
        let thread = thread.map_err(|source| StoreError::Io { path: shared.directory.clone(), source })?;
        Ok(Recorder { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Writes a row down; when this returns it outlives the process. A row that cannot be written (a full disk) is kept in memory,
    /// where there is room: answering goes on.
    pub fn record(&self, row: Box<RequestRow>) {
        let shared = &self.shared;
        let Some(row) = shared.unless_failing(row) else { return };
        let mut shard = lock(&shared.shards[of_thread()]);
        if let Err(error) = shard.append(&shared.directory, &row) {
            drop(shard);
            return shared.refused(row, &error);
        }
        shard.remember(&shared.written_bytes, row);
        drop(shard);
        shared.wrote(1);
    }

    /// As [`Recorder::record`], in one go with the rows of other requests that end in the same turn of this thread's event loop. Until what
    /// is returned is ready the row does not outlive the process; none where it does already.
    pub fn gather(&self, row: Box<RequestRow>) -> Option<Written> {
        let (shared, place) = (&self.shared, of_thread());
        if shared.failing.load(Ordering::Acquire) {
            self.record(row);
            return None;
        }
        // In a statement of its own: the lock must be free again for a row that is written alone.
        let gathered = lock(&shared.shards[place]).gather(row);
        match gathered {
            Ok(turn) => Some(Written { shared: shared.clone(), place, turn, has_waited: false, is_done: false }),
            Err(row) => {
                self.record(row);
                None
            }
        }
    }

    /// How the log is doing.
    pub fn state(&self) -> LogState {
        let (mut pending, mut oldest) = (0, None);
        for shard in &self.shared.shards {
            let shard = lock(shard);
            pending += shard.lines;
            oldest = earlier(oldest, shard.oldest);
        }
        let state = lock(&self.shared.state);
        LogState {
            pending: state.let_go + pending,
            kept: state.kept.len(),
            dropped: state.dropped,
            oldest_unmoved_at: earlier(state.oldest, oldest),
            disk: state.disk.clone(),
            database: state.database.clone(),
        }
    }

    /// Moves all rows written so far to the database, now.
    ///
    /// # Errors
    /// [`StoreError`]; the rows stay in their segment then. Rows that are kept in memory are lost when the process ends now.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.hurry();
        (0..SHARDS).for_each(|place| self.shared.write_gathered(place, None));
        let written = self.shared.write_kept();
        let moved = self.shared.move_rows();
        // What could not be kept is told there, and tried again by the mover.
        if self.shared.keep_snapshots().is_err() {
            self.shared.wake.notify_all();
        }
        self.shared.hurried.fetch_sub(1, Ordering::Relaxed);
        moved.and(written)
    }

    /// Whoever moves rows now waits no longer.
    fn hurry(&self) {
        self.shared.hurried.fetch_add(1, Ordering::Release);
        lock(&self.thread).iter().for_each(|mover| mover.thread().unpark());
    }
}

/// Ready when a row that was gathered outlives the process: once every other task that was to run has run, or one of them has written
/// all of them. Dropping it writes them at once.
pub struct Written {
    shared: Arc<Shared>,
    place: usize,
    turn: u64,
    has_waited: bool,
    is_done: bool,
}

impl Future for Written {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.has_waited, true) {
            // This task runs again behind those that are to run now, whose rows may be written along.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_done = true;
        self.shared.write_gathered(self.place, Some(self.turn));
        Poll::Ready(())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.write_gathered(self.place, Some(self.turn));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.hurry();
        self.shared.wake.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // The thread does not panic; if it did, the rows are safe in their segment.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is an assignment or a push: there is no half-changed state that a panic could leave.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.into_iter().chain(b).min()
}

impl Shared {
    /// Writes down what a shard has gathered, if that is still of this turn.
    fn write_gathered(&self, place: usize, turn: Option<u64>) {
        let mut shard = lock(&self.shards[place]);
        if turn.is_some_and(|turn| turn != shard.turn()) {
            return;
        }
        let Outcome { written, refused } = shard.write_gathered(&self.directory, &self.written_bytes);
        drop(shard);
        if written > 0 {
            self.wrote(written);
        }
        for (row, error) in refused {
            self.refused(row, &error);
        }
    }

    /// Counts rows that stand in a segment.
    fn wrote(&self, rows: usize) {
        self.metrics.log_rows_pending(i64::try_from(rows).unwrap_or(0));
        // The mover waits for a first row, then for time to pass or for so many that they are better moved.
        let are_many = self.written_bytes.load(Ordering::Relaxed) > GATHER_BYTES;
        // As a rule it is told already: threads only look then.
        let tell = |told: &AtomicBool| !told.load(Ordering::Acquire) && !told.swap(true, Ordering::AcqRel);
        if tell(&self.awake) || (are_many && tell(&self.called)) {
            drop(lock(&self.state));
            self.wake.notify_one();
        }
    }

    /// A row could not be written.
    fn refused(&self, row: Box<RequestRow>, error: &std::io::Error) {
        let mut state = lock(&self.state);
        state.disk = Some(error.to_string());
        if !self.failing.swap(true, Ordering::AcqRel) {
            tracing::error!(request = row.id, %error, "log rows cannot be written; they are kept in memory");
        }
        self.keep(&mut state, row);
        self.wake.notify_one();
    }

    /// Keeps a row in memory while rows cannot be written: the mover tries each second; every request trying, too, would only cost. Gives
    /// it back where they can.
    fn unless_failing(&self, row: Box<RequestRow>) -> Option<Box<RequestRow>> {
        if !self.failing.load(Ordering::Acquire) {
            return Some(row);
        }
        let mut state = lock(&self.state);
        // The trouble may have ended while this thread waited for the lock, and nobody would look for the row.
        if state.disk.is_none() {
            return Some(row);
        }
        self.keep(&mut state, row);
        None
    }

    /// Keeps a row in memory, or counts it as dropped. Only for while [`State::disk`] says why.
    fn keep(&self, state: &mut State, row: Box<RequestRow>) {
        let bytes = size(&row);
        if state.kept_bytes + bytes > UNWRITTEN_BYTES {
            state.dropped += 1;
            self.metrics.log_row_dropped();
            if state.dropped.is_power_of_two() {
                tracing::error!(dropped = state.dropped, "log rows are lost: they can neither be written nor kept in memory");
            }
            return;
        }
        state.kept_bytes += bytes;
        state.kept.push_back(row);
        state.oldest.get_or_insert_with(now_ms);
        self.metrics.serving.log_rows_kept.set(i64::try_from(state.kept.len()).unwrap_or(i64::MAX));
    }

    /// Writes what is kept in memory, oldest first. What does not fit stays kept; those behind it may fit all the same.
    fn write_kept(&self) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        if state.disk.is_none() && state.kept.is_empty() {
            return Ok(());
        }
        let failed = |source| StoreError::Io { path: self.directory.clone(), source };
        // It may be the directory itself that somebody took away.
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        let (mut refused, mut why) = (VecDeque::new(), None);
        while refused.len() < TRIES {
            let Some(row) = state.kept.pop_front() else { break };
            let bytes = size(&row);
            let mut shard = lock(&self.shards[of_thread()]);
            if let Err(error) = shard.append(&self.directory, &row) {
                why = Some(error);
                refused.push_back(row);
                continue;
            }
            shard.remember(&self.written_bytes, row);
            state.kept_bytes = state.kept_bytes.saturating_sub(bytes);
            self.metrics.log_rows_pending(1);
        }
        refused.append(&mut state.kept);
        state.kept = refused;
        self.metrics.serving.log_rows_kept.set(i64::try_from(state.kept.len()).unwrap_or(i64::MAX));
        if let Some(error) = why {
            state.disk = Some(error.to_string());
            return Err(failed(error));
        }
        state.disk = None;
        self.failing.store(false, Ordering::Release);
        tracing::warn!("log rows can be written again; what was kept in memory stands on disk");
        Ok(())
    }

    /// Moves what every thread has written, and every segment that nobody appends to.
    fn move_rows(&self) -> Result<(), StoreError> {
        let _one = lock(&self.moving);
        let mut lot = self.take();
        let moved = self.move_lot(&mut lot, &|| true);
        self.put_down(&lot, moved.map(drop))
    }

    /// The same in moments of leisure, as far as there are such within a time and nobody is in a hurry.
    fn move_patiently(self: &Arc<Self>, idler: &Idler) -> Result<(), StoreError> {
        let _one = lock(&self.moving);
        let (shared, mut lot, mover) = (self.clone(), self.take(), thread::current());
        let (sender, receiver) = channel();
        let impatient = Arc::new(AtomicBool::new(false));
        let stopped = impatient.clone();
        idler.begin(Box::new(move || {
            let go_on = || !stopped.load(Ordering::Relaxed) && shared.hurried.load(Ordering::Relaxed) == 0;
            let moved = shared.move_lot(&mut lot, &go_on);
            // Back to this thread: whoever lets go of memory has to do with the locks of those it came from.
            drop(sender.send((lot, moved)));
            mover.unpark();
        }));
        let until = Instant::now() + PATIENCE;
        let done = loop {
            let left = until.saturating_duration_since(Instant::now());
            match receiver.try_recv() {
                Err(TryRecvError::Empty) if left.is_zero() || self.hurried.load(Ordering::Relaxed) > 0 => break None,
                Err(TryRecvError::Empty) => thread::park_timeout(left),
                done => break done.ok(),
            }
        };
        impatient.store(true, Ordering::Relaxed);
        let lost = |_| StoreError::Database("the thread that moves log rows is gone".into());
        let (lot, moved) = done.map_or_else(|| receiver.recv().map_err(lost), Ok)?;
        let moved = match moved {
            // The rest lies in segments that were let go.
            Ok(false) => self.drain(&|| true).map(drop),
            moved => moved.map(drop),
        };
        self.put_down(&lot, moved)
    }

    /// What was written since the last time. Held for a moment only, by a thread that is not kept waiting.
    fn take(&self) -> Lot {
        let shards: Vec<_> = self.shards.iter().map(|shard| lock(shard).take()).collect();
        let mut state = lock(&self.state);
        state.let_go += shards.iter().map(|shard| shard.lines).sum::<usize>();
        let oldest = shards.iter().fold(state.oldest.take(), |oldest, shard| earlier(oldest, shard.oldest));
        Lot { shards, rows: state.let_go, oldest }
    }

    /// Moves a lot, from memory where it is there, and every segment that nobody appends to, for as long as `go_on` says before every
    /// transaction. Whether all of it was moved.
    fn move_lot(&self, lot: &mut Lot, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let standing = segment::standing(&self.directory)?;
        for shard in &mut lot.shards {
            if !self.move_shard(shard, &standing, go_on)? {
                lot.shards.iter_mut().for_each(|shard| shard.segment = None);
                return Ok(false);
            }
        }
        self.drain(go_on)
    }

    /// Moves a shard's rows. Where that fails, or they are not all in memory, its segment is let go, to be drained like any other.
    fn move_shard(&self, shard: &mut Shard, standing: &[String], go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let segment = shard.segment.take();
        let Some(segment) = segment.filter(|segment| shard.rows.len() == shard.lines && !segment.spoilt) else { return Ok(true) };
        let stored = segment::store(&shard.rows, &segment, standing, &self.store, go_on)?;
        if stored {
            segment.remove()?;
        }
        Ok(stored)
    }

    /// Whether every segment that nobody appends to was moved.
    fn drain(&self, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let drained = segment::drain_abandoned(&self.directory, &self.store, go_on)?;
        if drained.unreadable > 0 {
            (0..drained.unreadable).for_each(|_| self.metrics.log_row_dropped());
            tracing::warn!(lines = drained.unreadable, "the request log had lines that could not be read");
        }
        Ok(!drained.stopped)
    }

    /// Puts down what became of a lot.
    fn put_down(&self, lot: &Lot, moved: Result<(), StoreError>) -> Result<(), StoreError> {
        self.written_bytes.fetch_sub(lot.shards.iter().map(|shard| shard.bytes).sum(), Ordering::Relaxed);
        let mut state = lock(&self.state);
        match &moved {
            Ok(()) => {
                state.let_go = 0;
                state.database = None;
                self.metrics.log_rows_pending(-i64::try_from(lot.rows).unwrap_or(0));
                // What is kept in memory is older than what came meanwhile.
                if !state.kept.is_empty() {
                    state.oldest = lot.oldest;
                }
            }
            Err(error) => {
                if state.database.is_none() {
                    tracing::error!(%error, "request-log rows wait: the database refused them");
                }
                state.database = Some(error.to_string());
                state.oldest = earlier(lot.oldest, state.oldest);
            }
        }
        moved
    }

    /// Keeps what answered under the names of models, where it is new.
    fn keep_snapshots(&self) -> Result<(), StoreError> {
        self.metrics.snapshots.keep(self.store.db.as_ref()).inspect_err(|error| {
            tracing::warn!(%error, "what models answer as could not be kept; it is tried again");
        })
    }

    fn run(self: &Arc<Self>) {
        let idler = Idler::new("request-log-idle");
        loop {
            let stop = self.wait_for_rows();
            let written = self.write_kept();
            let moved = match &idler {
                Some(idler) if !stop => self.move_patiently(idler),
                _ => self.move_rows(),
            };
            let snapshots = self.keep_snapshots();
            if stop {
                // Rows on disk are safe in their segment: the next start moves them.
                let lost = lock(&self.state).kept.len();
                if lost > 0 {
                    tracing::error!(rows = lost, "log rows are lost: they could not be written before the end");
                }
                return;
            }
            if written.is_err() || moved.is_err() || snapshots.is_err() {
                let state = lock(&self.state);
                drop(self.wake.wait_timeout_while(state, RETRY, |state| !state.stop));
            }
        }
    }

    /// Waits for a row, and then for more of them: together they cost one transaction. Whether to stop.
    fn wait_for_rows(&self) -> bool {
        // While rows cannot be written there is always something to do, also where none could be kept: to find out whether they can again.
        let nothing_waits =
            |state: &State| state.kept.is_empty() && state.disk.is_none() && state.let_go == 0 && !self.metrics.snapshots.waits();
        let idle = |state: &mut State| !self.awake.load(Ordering::Acquire) && nothing_waits(state) && !state.stop;
        let state = self.wake.wait_while(lock(&self.state), idle).unwrap_or_else(PoisonError::into_inner);
        let few = |state: &mut State| !self.called.load(Ordering::Acquire) && !state.stop;
        let state = self.wake.wait_timeout_while(state, GATHER, few).unwrap_or_else(PoisonError::into_inner).0;
        self.awake.store(false, Ordering::Release);
        self.called.store(false, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(data: &Path) -> (Store, Recorder) {
        let store = Store::open(data).expect("a store");
        let recorder = Recorder::open(&store, Arc::new(Metrics::new())).expect("a recorder");
        (store, recorder)
    }

    /// Callers that wait while what was kept is written go on to the disk like all others: what is ready has no row in memory only.
    #[test]
    fn callers_who_go_on_through_a_recovery_keep_no_row_in_memory() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let (store, recorder) = recorder(data.path());
        let directory = segment::directory(data.path());
        // A directory that cannot be written, for whoever runs this: a file stands in its place.
        std::fs::remove_dir(&directory).expect("nothing is in it yet");
        std::fs::write(&directory, "").expect("written");
        let (recorded, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut between = Vec::new();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let number = recorded.fetch_add(1, Ordering::Relaxed);
                        recorder.record(Box::new(RequestRow { id: format!("req_{number}"), ..RequestRow::default() }));
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            let until = |what: &dyn Fn(&LogState) -> bool| {
                let since = Instant::now();
                while !what(&recorder.state()) && since.elapsed() < Duration::from_secs(20) {
                    thread::sleep(Duration::from_micros(100));
                }
            };
            until(&|state| state.kept >= 1_000);
            std::fs::remove_file(&directory).expect("there");
            // As the mover does, but now.
            scope.spawn(|| recorder.flush().expect("all that was kept is written"));
            until(&|state| state.disk.is_none());
            between.extend((0..100).map(|_| recorder.state()).filter(|state| state.disk.is_none() && state.kept > 0));
            over.store(true, Ordering::Relaxed);
        });
        assert!(between.is_empty(), "{:?}", between.first());
        let state = recorder.state();
        assert_eq!((state.kept, state.dropped, state.disk), (0, 0, None));
        drop(recorder);
        let recorded = recorded.into_inner();
        assert!(recorded >= 1_000, "{recorded}");
        assert_eq!(requests::count(store.db.as_ref()).expect("a count"), i64::try_from(recorded).expect("a count"));
    }
}
