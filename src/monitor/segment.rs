//! Segment files: where a request's log row stands before its reply ends. `<data-dir>/requests/<id>.jsonl`, one JSON line a row,
//! appended with one `write` and no fsync: what a process wrote outlives its death (not a power cut).
//!
//! The process that appends holds a lock on its file, which the system releases when the process ends, however it ends. Whoever
//! gets the lock of a segment may therefore move its rows to the database and remove it; rows go in by id, so that doing it twice
//! changes nothing.

use crate::store::requests::{self, RequestRow};
use crate::store::{Statement, Store, StoreError};
use crate::types::ids::new_id;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

const EXTENSION: &str = "jsonl";
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 8 << 20;

/// A segment that this process appends to.
pub struct Segment {
    file: File,
    path: PathBuf,
    /// The last write failed half way: the next one begins a new line.
    torn: bool,
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
        Ok(Segment { file, path, torn: false })
    }

    /// Appends a [line](super::line::write); when this returns, the row outlives this process.
    ///
    /// # Errors
    /// What the file system says; half a line may stand in the file then, which readers skip.
    pub fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all(if self.torn { line } else { &line[1..] });
        self.torn = written.is_err();
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
}

/// Moves the rows of every segment that nobody appends to into the database, oldest segment first.
///
/// # Errors
/// [`StoreError`]; rows that were not moved stay where they are.
pub fn drain_abandoned(directory: &Path, store: &Store) -> Result<Drained, StoreError> {
    let mut total = Drained::default();
    for path in paths(directory)? {
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let drained = drain(&file, store).map_err(|error| match error {
            DrainError::Store(error) => error,
            DrainError::File(source) => StoreError::Io { path: path.clone(), source },
        })?;
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

enum DrainError {
    Store(StoreError),
    File(std::io::Error),
}

impl From<std::io::Error> for DrainError {
    fn from(error: std::io::Error) -> Self {
        DrainError::File(error)
    }
}

fn drain(file: &File, store: &Store) -> Result<Drained, DrainError> {
    let mut drained = Drained::default();
    let mut batch: Vec<Statement> = Vec::new();
    let mut batch_bytes = 0;
    each_line(file, |line| {
        match super::line::read(line) {
            Some(row) => batch.push(requests::insert_once(row)),
            None => drained.unreadable += 1,
        }
        batch_bytes += line.len();
        if batch.len() >= BATCH_ROWS || batch_bytes >= BATCH_BYTES {
            drained.rows += commit(&mut batch, store)?;
            batch_bytes = 0;
        }
        Ok::<(), DrainError>(())
    })?;
    drained.rows += commit(&mut batch, store)?;
    Ok(drained)
}

/// Stores rows that their process still has in memory.
///
/// # Errors
/// [`StoreError`]; some of the rows may be stored then.
pub fn store(rows: Vec<Box<RequestRow>>, store: &Store) -> Result<(), StoreError> {
    let mut rows = rows.into_iter().map(|row| requests::insert_once(*row)).peekable();
    while rows.peek().is_some() {
        let batch: Vec<_> = rows.by_ref().take(BATCH_ROWS).collect();
        store.db.batch(&batch)?;
    }
    Ok(())
}

fn commit(batch: &mut Vec<Statement>, store: &Store) -> Result<usize, DrainError> {
    if !batch.is_empty() {
        store.db.batch(batch).map_err(DrainError::Store)?;
    }
    Ok(batch.drain(..).count())
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
    use crate::monitor::line::write;

    fn row(id: &str) -> RequestRow {
        RequestRow { id: id.into(), ..RequestRow::default() }
    }

    #[test]
    fn rows_reach_the_database_once_and_torn_lines_do_not() {
        let data = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(data.path()).expect("store");
        let directory = directory(data.path());
        fs::create_dir_all(&directory).expect("directory");
        let whole = serde_json::to_string(&row("req_b")).expect("serialises");
        fs::write(directory.join("log_1.jsonl"), format!("{whole}\nnot json\n{whole}\n{{\"id\":\"req_torn\"")).expect("written");
        let mut live = Segment::create(&directory).expect("segment");
        live.append(&write(&row("req_live"))).expect("append");

        assert_eq!(pending(&directory).expect("readable").len(), 3);
        assert_eq!(drain_abandoned(&directory, &store).expect("drains"), Drained { rows: 2, unreadable: 1 });
        assert_eq!(requests::count(store.db.as_ref()).expect("count"), 1, "the live segment is its owner's");
        drop(live);
        assert_eq!(drain_abandoned(&directory, &store).expect("drains"), Drained { rows: 1, unreadable: 0 });
        assert_eq!(requests::count(store.db.as_ref()).expect("count"), 2);
        assert_eq!(fs::read_dir(&directory).expect("directory").count(), 0);
    }

    #[test]
    fn a_write_that_failed_half_way_spoils_only_its_own_row() {
        let data = tempfile::tempdir().expect("temporary directory");
        let mut segment = Segment::create(data.path()).expect("segment");
        segment.append(&write(&row("req_a"))).expect("append");
        segment.file.write_all(b"{\"id\":\"req_ha").expect("half a row");
        segment.torn = true;
        segment.append(&write(&row("req_b"))).expect("append");
        let ids: Vec<_> = pending(data.path()).expect("readable").into_iter().map(|row| row.id).collect();
        assert_eq!(ids, ["req_a", "req_b"]);
    }
}
