//! Segment files: where a request's log row stands before its reply ends. `<data-dir>/requests/<id>.jsonl`, one JSON line a row,
//! appended with one `write` and no fsync: what a process wrote outlives its death (not a power cut).
//!
//! The process that appends holds a lock on its file, which the system releases when the process ends, however it ends. Whoever
//! gets the lock of a segment may therefore move its rows to the database and remove it. How many lines were moved is written down in
//! the transaction that moves them: whoever goes on after a death begins behind them, so that each row is stored and counted once.

use super::line::Pieces;
use crate::store::requests::{self, RequestRow};
use crate::store::usage::{self, Sums};
use crate::store::{Store, StoreError};
use crate::types::ids::new_id;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::path::{Path, PathBuf};

const EXTENSION: &str = "jsonl";
/// Bounds of one transaction. Small: nobody else can write meanwhile, and the thread that moves rows may stand still in the middle.
const BATCH_ROWS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// Rows in memory: large, and moved several times, so that each is in a box.
pub type Rows = Vec<Box<RequestRow>>;

/// A segment that this process appends to.
pub struct Segment {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    length: u64,
    /// The last write failed half way, and what it wrote could not be cut off: the next one begins a new line.
    torn: bool,
    /// That happened: the file may have lines that are no rows.
    pub spoilt: bool,
}

impl Segment {
    /// Makes a new segment. It gets its final name only once it is locked, so that nobody takes it for an abandoned one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(directory: &Path) -> std::io::Result<Self> {
        let id = new_id("log");
        let unnamed = directory.join(format!("{id}.new"));
        let path = directory.join(format!("{id}.{EXTENSION}"));
        let file = OpenOptions::new().append(true).create_new(true).open(&unnamed)?;
        file.try_lock()?;
        fs::rename(&unnamed, &path)?;
        Ok(Segment { file, path, length: 0, torn: false, spoilt: false })
    }

    /// Appends a [line](super::line::write); when this returns, the row outlives this process.
    ///
    /// # Errors
    /// What the file system says. Half a line takes no room that a shorter row may need; where it cannot be cut off, readers skip it.
    pub fn append(&mut self, line: Pieces<'_>) -> std::io::Result<()> {
        let bytes = line.iter().map(|piece| piece.len() as u64).sum::<u64>() - u64::from(!self.torn);
        let mut slices = line.map(IoSlice::new);
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, usize::from(!self.torn));
        let written = write_all(&mut self.file, left);
        match &written {
            // Behind half a line nobody has counted.
            Ok(()) if self.torn => self.length = self.file.metadata()?.len(),
            Ok(()) => self.length += bytes,
            Err(_) => {}
        }
        self.torn = written.is_err() && self.file.set_len(self.length).is_err();
        self.spoilt |= self.torn;
        written
    }

    /// Removes the segment: its rows are in the database.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(self) -> Result<(), StoreError> {
        removed(self.path)
    }
}

fn write_all(file: &mut File, mut left: &mut [IoSlice<'_>]) -> std::io::Result<()> {
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn removed(path: PathBuf) -> Result<(), StoreError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
        _ => Ok(()),
    }
}

/// What moving rows to the database came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Rows moved.
    pub rows: usize,
    /// Whole lines that could not be read.
    pub unreadable: usize,
    /// Not everything was moved: there was no going on.
    pub stopped: bool,
}

/// Moves the rows of every segment that nobody appends to into the database, oldest segment first, for as long as
/// `go_on` says before every transaction.
///
/// # Errors
/// [`StoreError`]; rows that were not moved stay where they are.
pub fn drain_abandoned(directory: &Path, store: &Store, go_on: &dyn Fn() -> bool) -> Result<Drained, StoreError> {
    let mut total = Drained::default();
    let paths = paths(directory)?;
    let standing: Vec<_> = paths.iter().map(|path| name(path)).collect();
    for path in paths {
        let Ok(file) = File::open(&path) else { continue };
        // Whoever had the lock before may have moved and removed it.
        if file.try_lock().is_err() || !path.exists() {
            continue;
        }
        let drained = match drain(&file, Lines::of(store, &name(&path), &standing, go_on)?) {
            Ok(drained) => drained,
            Err(Halt::Stopped) => return Ok(Drained { stopped: true, ..total }),
            Err(Halt::Store(error)) => return Err(error),
            Err(Halt::File(source)) => return Err(StoreError::Io { path, source }),
        };
        total.rows += drained.rows;
        total.unreadable += drained.unreadable;
        removed(path)?;
    }
    Ok(total)
}

/// Rows that stand in segments, also in those that are being appended to.
///
/// # Errors
/// [`StoreError::Io`] when the directory cannot be read.
pub fn pending(directory: &Path) -> Result<Vec<RequestRow>, StoreError> {
    let mut rows = Vec::new();
    for path in paths(directory)? {
        // A segment may be drained and removed while we look; its rows are in the database then.
        let Ok(file) = File::open(&path) else { continue };
        let read = each_line(&file, |line| {
            rows.extend(super::line::read(line));
            Ok::<(), std::io::Error>(())
        });
        read.map_err(|source| StoreError::Io { path, source })?;
    }
    Ok(rows)
}

/// Where segments lie.
pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("requests")
}

/// Names of the segments that are there.
///
/// # Errors
/// [`StoreError::Io`] when the directory cannot be read.
pub fn standing(directory: &Path) -> Result<Vec<String>, StoreError> {
    Ok(paths(directory)?.iter().map(|path| name(path)).collect())
}

fn paths(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Io { path: directory.to_path_buf(), source };
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries: Vec<_> = fs::read_dir(directory).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    let mut paths: Vec<_> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == EXTENSION)).collect();
    paths.sort();
    Ok(paths)
}

/// Why no more lines are moved.
enum Halt {
    Store(StoreError),
    File(std::io::Error),
    /// There is no going on.
    Stopped,
}

impl From<std::io::Error> for Halt {
    fn from(error: std::io::Error) -> Self {
        Halt::File(error)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Halt::Store(error)
    }
}

/// The name that `log_segments` knows a segment by.
fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lines of a segment on their way to the database.
struct Lines<'s> {
    store: &'s Store,
    segment: &'s str,
    /// Segments whose files were there at the beginning.
    standing: &'s [String],
    /// Lines that are in the database; none where that was never written down.
    moved: Option<i64>,
    /// Lines read so far, those before `moved` too.
    read: i64,
    /// Rows that were read and are not stored yet.
    batch: Rows,
    batch_bytes: usize,
    drained: Drained,
    go_on: &'s dyn Fn() -> bool,
}

impl<'s> Lines<'s> {
    fn of(store: &'s Store, segment: &'s str, standing: &'s [String], go_on: &'s dyn Fn() -> bool) -> Result<Self, StoreError> {
        let moved = usage::moved_lines(store.db.as_ref(), segment)?;
        let (batch, drained) = (Vec::new(), Drained::default());
        Ok(Lines { store, segment, standing, moved, read: 0, batch, batch_bytes: 0, drained, go_on })
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Halt> {
        self.read += 1;
        if self.moved.is_some_and(|moved| self.read <= moved) {
            return Ok(());
        }
        match super::line::read(line) {
            Some(row) => self.batch.push(Box::new(row)),
            None => self.drained.unreadable += 1,
        }
        self.batch_bytes += line.len();
        if self.batch.len() >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Halt> {
        let rows = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.store(&rows)
    }

    /// Stores rows, the last of which is the last line that was read.
    fn store(&mut self, rows: &[Box<RequestRow>]) -> Result<(), Halt> {
        if rows.is_empty() {
            return Ok(());
        }
        if !(self.go_on)() {
            return Err(Halt::Stopped);
        }
        let mut rows: Vec<_> = rows.iter().map(Box::as_ref).collect();
        match self.insert(&rows) {
            // A write that failed half way, and could not be cut off, left whole lines: their rows were written again, here or elsewhere.
            Err(StoreError::Conflict(_)) => {
                rows = requests::absent(self.store.db.as_ref(), &rows)?;
                self.insert(&rows)?;
            }
            inserted => inserted?,
        }
        self.moved = Some(self.read);
        self.drained.rows += rows.len();
        Ok(())
    }

    /// Stores rows, with their sums and how far the segment has come: all of it or nothing.
    fn insert(&self, rows: &[&RequestRow]) -> Result<(), StoreError> {
        let mut sums = Sums::default();
        rows.iter().for_each(|row| sums.add(row));
        let mut statements = sums.take();
        statements.push(usage::move_lines(self.segment, self.moved, self.read));
        statements.extend(usage::forget_segments(self.segment, self.standing));
        self.store.db.batch_apart(&requests::insert(rows), &statements)
    }
}

/// Stores the rows of a segment that its process still has in memory, for as long as `go_on` says before every transaction; `standing`
/// are the segments that are there. Whether all are stored.
///
/// # Errors
/// [`StoreError`]; some of the rows may be stored then, and are known to be.
pub fn store(
    rows: &[Box<RequestRow>],
    segment: &Segment,
    standing: &[String],
    store: &Store,
    go_on: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    let name = name(&segment.path);
    let mut lines = Lines::of(store, &name, standing, go_on)?;
    let mut left = rows;
    while !left.is_empty() {
        let (batch, rest) = left.split_at(batch_of(left));
        left = rest;
        lines.read += batch.len() as i64;
        match lines.store(batch) {
            Ok(()) => {}
            Err(Halt::Stopped) => return Ok(false),
            Err(Halt::Store(error)) => return Err(error),
            Err(Halt::File(source)) => return Err(StoreError::Io { path: segment.path.clone(), source }),
        }
    }
    Ok(true)
}

/// How many of the rows make a transaction; at least one.
fn batch_of(rows: &[Box<RequestRow>]) -> usize {
    let mut bytes = 0;
    let fits = |row: &&RequestRow| {
        let before = bytes;
        bytes += [&row.request, &row.reply].into_iter().flatten().map(String::len).sum::<usize>();
        before < BATCH_BYTES
    };
    rows.iter().map(Box::as_ref).take(BATCH_ROWS).take_while(fits).count()
}

fn drain(file: &File, mut lines: Lines<'_>) -> Result<Drained, Halt> {
    each_line(file, |line| lines.take(line))?;
    lines.commit()?;
    Ok(lines.drained)
}

/// Calls `take` with every whole line; a last line without its line feed was torn by a death and is not one.
fn each_line<E: From<std::io::Error>>(file: &File, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\n") {
            None => return Ok(()),
            Some([]) => {}
            Some(whole) => take(whole)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(segment: &mut Segment, id: &str) {
        segment.append(crate::monitor::line::write(&row(id), &mut Vec::new())).expect("appended");
    }

    fn row(id: &str) -> RequestRow {
        RequestRow { id: id.into(), ..RequestRow::default() }
    }

    #[test]
    fn rows_reach_the_database_once_and_torn_lines_do_not() {
        let data = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(data.path()).expect("store");
        let directory = directory(data.path());
        fs::create_dir_all(&directory).expect("directory");
        let whole = |id: &str| serde_json::to_string(&row(id)).expect("serialises");
        let (b, c) = (whole("req_b"), whole("req_c"));
        fs::write(directory.join("log_1.jsonl"), format!("{b}\nnot json\n{c}\n{{\"id\":\"req_torn\"")).expect("written");
        let mut live = Segment::create(&directory).expect("segment");
        append(&mut live, "req_live");

        assert_eq!(pending(&directory).expect("readable").len(), 3);
        assert_eq!(drain_abandoned(&directory, &store, &|| true).expect("drains"), Drained { rows: 2, unreadable: 1, stopped: false });
        assert_eq!(requests::count(store.db.as_ref()).expect("count"), 2, "the live segment is its owner's");
        drop(live);
        assert_eq!(drain_abandoned(&directory, &store, &|| true).expect("drains"), Drained { rows: 1, unreadable: 0, stopped: false });
        assert_eq!(requests::count(store.db.as_ref()).expect("count"), 3);
        assert_eq!(fs::read_dir(&directory).expect("directory").count(), 0);
    }

    /// Killed after a transaction and before the file was removed; the next one finds it grown by nothing, or half moved.
    #[test]
    fn a_segment_that_was_half_moved_counts_once() {
        let data = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(data.path()).expect("store");
        let directory = directory(data.path());
        fs::create_dir_all(&directory).expect("directory");
        let priced = |id: &str| RequestRow { cost_micro_usd: Some(5), project: "p".into(), api_key: "k".into(), ..row(id) };
        let text: String = (0..600).map(|i| serde_json::to_string(&priced(&format!("req_{i}"))).expect("serialises") + "\n").collect();
        let (path, half) = (directory.join("log_1.jsonl"), text.lines().take(256).map(|line| format!("{line}\n")).collect::<String>());
        let drain_again = |text: &str| {
            fs::write(&path, text).expect("written");
            drain_abandoned(&directory, &store, &|| true).expect("drains").rows
        };
        assert_eq!((drain_again(&half), drain_again(&text), drain_again(&text)), (256, 344, 0));
        let spent = usage::spent(store.db.as_ref(), usage::Whose::Key("k"), 0).expect("a sum");
        assert_eq!((spent, requests::count(store.db.as_ref()).expect("count")), (3_000, 600));
        let few = std::cell::Cell::new(0);
        let go_on = || few.replace(few.get() + 1) < 2;
        let many = 2 * BATCH_ROWS + 88;
        let more: String = (0..many).map(|i| serde_json::to_string(&priced(&format!("req_m{i}"))).expect("serialises") + "\n").collect();
        fs::write(directory.join("log_0.jsonl"), &more).expect("written");
        let stopped = drain_abandoned(&directory, &store, &go_on).expect("drains");
        assert!(stopped.stopped && requests::count(store.db.as_ref()).expect("count") == 600 + 2 * BATCH_ROWS as i64, "{stopped:?}");
        let rest = drain_abandoned(&directory, &store, &|| true).expect("drains");
        assert_eq!((rest.rows, rest.stopped, requests::count(store.db.as_ref()).expect("count")), (88, false, 600 + many as i64));
        // What was moved is forgotten once a later segment is, and nobody has the file any more.
        fs::write(directory.join("log_2.jsonl"), serde_json::to_string(&priced("req_x")).expect("serialises") + "\n").expect("written");
        drain_abandoned(&directory, &store, &|| true).expect("drains");
        assert_eq!(usage::moved_lines(store.db.as_ref(), "log_1").expect("a row"), None);
        assert_eq!(usage::moved_lines(store.db.as_ref(), "log_2").expect("a row"), Some(1));
    }

    /// As after an outage of the database that lasted for days.
    #[test]
    fn however_many_segments_stand_their_rows_are_moved() {
        let data = tempfile::tempdir().expect("temporary directory");
        let database = Store::open(data.path()).expect("store");
        let segment = Segment::create(data.path()).expect("segment");
        let standing: Vec<_> = (0..40_000).map(|number| format!("log_{number}")).collect();
        let stored = store(&[Box::new(row("req_a"))], &segment, &standing, &database, &|| true);
        assert!(stored.expect("stored"));
        assert_eq!(requests::count(database.db.as_ref()).expect("count"), 1);
    }

    #[test]
    fn a_write_that_fails_half_way_gives_its_room_back() {
        let data = tempfile::tempdir().expect("temporary directory");
        let mut segment = Segment::create(data.path()).expect("segment");
        append(&mut segment, "req_a");
        let length = fs::metadata(&segment.path).expect("a file").len();
        segment.file = OpenOptions::new().read(true).open(&segment.path).expect("a file that takes no writes");
        assert!(segment.append(crate::monitor::line::write(&row("req_b"), &mut Vec::new())).is_err() && segment.torn);
        segment.file = OpenOptions::new().append(true).open(&segment.path).expect("one that takes them");
        segment.file.write_all(b"{\"id\":\"req_ha").expect("half a row");
        append(&mut segment, "req_c");
        let whole = fs::metadata(&segment.path).expect("a file").len();
        assert!(segment.length == whole && whole > 2 * length && !segment.torn && segment.spoilt, "{whole}");
    }

    #[test]
    fn a_transaction_is_bounded_in_rows_and_in_bytes() {
        let of = |bytes: usize| Box::new(RequestRow { request: Some("x".repeat(bytes)), ..RequestRow::default() });
        let rows = |count: usize, bytes: usize| -> Rows { (0..count).map(|_| of(bytes)).collect() };
        for (rows, expected) in [
            (rows(1, 3 * BATCH_BYTES), 1),
            (rows(5, BATCH_BYTES), 1),
            (rows(9, BATCH_BYTES / 4 + 1), 4),
            (rows(2, 10), 2),
            (rows(BATCH_ROWS + 1, 10), BATCH_ROWS),
        ] {
            assert_eq!(batch_of(&rows), expected);
        }
    }

    #[test]
    fn a_write_that_failed_half_way_spoils_only_its_own_row() {
        let data = tempfile::tempdir().expect("temporary directory");
        let mut segment = Segment::create(data.path()).expect("segment");
        append(&mut segment, "req_a");
        segment.file.write_all(b"{\"id\":\"req_ha").expect("half a row");
        segment.torn = true;
        append(&mut segment, "req_b");
        let ids: Vec<_> = pending(data.path()).expect("readable").into_iter().map(|row| row.id).collect();
        assert_eq!(ids, ["req_a", "req_b"]);
    }

    /// Rows written together: the whole lines of a write that failed half way stay, and every row is written again, there or elsewhere.
    #[test]
    fn rows_whose_write_failed_half_way_are_stored_and_counted_once() {
        let data = tempfile::tempdir().expect("temporary directory");
        let database = Store::open(data.path()).expect("store");
        let priced = |id: &str| RequestRow { cost_micro_usd: Some(5), api_key: "k".into(), ..row(id) };
        let together = ["req_b", "req_c", "req_d"].map(priced);
        let mut text = Vec::new();
        together.iter().for_each(|row| crate::monitor::line::add(row, &mut text));
        let mut segment = Segment::create(data.path()).expect("segment");
        let append = |segment: &mut Segment, row: &RequestRow| {
            segment.append(crate::monitor::line::write(row, &mut Vec::new())).expect("appended");
        };
        append(&mut segment, &priced("req_a"));
        segment.file.write_all(&text[..text.len() - 20]).expect("two rows and a half");
        segment.torn = true;
        append(&mut segment, &together[0]);
        append(&mut segment, &together[2]);
        // No room for this one: it was kept, and written once there was.
        let mut later = Segment::create(data.path()).expect("segment");
        append(&mut later, &together[1]);
        append(&mut later, &priced("req_e"));
        let counted = || {
            let spent = usage::spent(database.db.as_ref(), usage::Whose::Key("k"), 0).expect("a sum");
            (requests::count(database.db.as_ref()).expect("count"), spent)
        };
        drop(segment);
        let drained = drain_abandoned(data.path(), &database, &|| true).expect("drains");
        assert_eq!((drained, counted()), (Drained { rows: 4, unreadable: 1, stopped: false }, (4, 20)));
        let rows = [&together[1], &priced("req_e")].map(|row| Box::new(row.clone()));
        assert!(store(&rows, &later, &[], &database, &|| true).expect("stored"));
        assert_eq!(counted(), (5, 25));
        drop(later);
        assert_eq!((drain_abandoned(data.path(), &database, &|| true).expect("drains").rows, counted()), (0, (5, 25)));
    }
}
