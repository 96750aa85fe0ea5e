//! The rows of one thread since they were last moved: each is written down in its segment and, while there is room, kept for the
//! database. Rows of requests that end in one turn of an event loop are gathered and written together, with one system call.

use super::line::{self, LONG};
use super::segment::{Rows, Segment};
use crate::store::requests::RequestRow;
use std::io::Error;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What written rows may take of the memory until they are moved; what is more is read from its segment again.
const WRITTEN_BYTES: usize = 5 << 20;
/// The longest line whose room is kept for the next one.
const LINE_BYTES: usize = 16 << 10;
/// Gathered lines that are so long together wait for no more.
const GATHERED_BYTES: usize = 128 << 10;

/// See the file.
#[derive(Default)]
pub(super) struct Shard {
    /// Made with the first row.
    pub(super) segment: Option<Segment>,
    /// Where lines are written before they are appended, and how long the last one was.
    line: Vec<u8>,
    line_bytes: usize,
    pub(super) lines: usize,
    /// The rows of the segment; fewer than its lines where they were too many.
    pub(super) rows: Rows,
    pub(super) bytes: usize,
    /// When the first of them was written down, milliseconds.
    pub(super) oldest: Option<i64>,
    gathered: Gathered,
}

/// Rows that are not written down yet.
#[derive(Default)]
struct Gathered {
    /// Their lines.
    text: Vec<u8>,
    /// With the length of each one's line.
    rows: Vec<(Box<RequestRow>, usize)>,
    /// How often gathered rows were written.
    turn: u64,
}

/// What became of gathered rows.
#[derive(Default)]
pub(super) struct Outcome {
    /// How many stand in the segment.
    pub(super) written: usize,
    /// Those that do not, and why.
    pub(super) refused: Vec<(Box<RequestRow>, Error)>,
}

impl Shard {
    /// What was written since the last time. What was only gathered stays.
    pub(super) fn take(&mut self) -> Self {
        let (line, gathered) = (std::mem::take(&mut self.line), std::mem::take(&mut self.gathered));
        std::mem::replace(self, Shard { line, gathered, ..Shard::default() })
    }

    /// Writes a row down.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn append(&mut self, directory: &Path, row: &RequestRow) -> std::io::Result<()> {
        let segment = made(&mut self.segment, directory)?;
        let line = line::write(row, &mut self.line);
        self.line_bytes = line.iter().map(|piece| piece.len()).sum();
        let appended = segment.append(line);
        // Room for the usual ones is kept.
        if self.line.capacity() > LINE_BYTES {
            self.line = Vec::new();
        }
        appended
    }

    /// Counts a row that was appended, and keeps it, so that it need not be read again, while there is room.
    pub(super) fn remember(&mut self, written_bytes: &AtomicUsize, row: Box<RequestRow>) {
        let bytes = self.line_bytes;
        if self.lines == 0 {
            self.oldest = Some(row.at);
        }
        self.lines += 1;
        if self.rows.len() + 1 < self.lines {
            return;
        }
        if written_bytes.load(Ordering::Relaxed) + bytes > WRITTEN_BYTES {
            // All of them will be read from the segment.
            self.rows = Vec::new();
            written_bytes.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
            return;
        }
        written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        self.rows.push(row);
    }

    /// Takes a row that is to be written with others, and says in which turn; gives one back that is better written alone.
    pub(super) fn gather(&mut self, row: Box<RequestRow>) -> Result<u64, Box<RequestRow>> {
        let bodies: usize = [&row.request, &row.reply].into_iter().flatten().map(String::len).sum();
        let Gathered { text, rows, turn } = &mut self.gathered;
        if bodies > LONG || text.len() > GATHERED_BYTES {
            return Err(row);
        }
        let before = text.len();
        line::add(&row, text);
        let bytes = text.len() - before;
        rows.push((row, bytes));
        Ok(*turn)
    }

    /// In which turn the next row is gathered.
    pub(super) fn turn(&self) -> u64 {
        self.gathered.turn
    }

    /// Writes the gathered rows down: all at once, and where that fails one by one, so that each that fits stands.
    pub(super) fn write_gathered(&mut self, directory: &Path, written_bytes: &AtomicUsize) -> Outcome {
        let mut outcome = Outcome::default();
        self.gathered.turn += 1;
        if self.gathered.rows.is_empty() {
            return outcome;
        }
        let (mut rows, mut text) = (std::mem::take(&mut self.gathered.rows), std::mem::take(&mut self.gathered.text));
        let appended = made(&mut self.segment, directory).and_then(|segment| segment.append([&text, b"", b"", b"", b""]));
        for (row, bytes) in rows.drain(..) {
            self.line_bytes = bytes;
            let stands = if appended.is_ok() { Ok(()) } else { self.append(directory, &row) };
            match stands {
                Ok(()) => {
                    self.remember(written_bytes, row);
                    outcome.written += 1;
                }
                Err(error) => outcome.refused.push((row, error)),
            }
        }
        text.clear();
        (self.gathered.rows, self.gathered.text) = (rows, text);
        outcome
    }
}

/// The segment, made where there is none.
fn made<'s>(segment: &'s mut Option<Segment>, directory: &Path) -> std::io::Result<&'s mut Segment> {
    match segment {
        Some(segment) => Ok(segment),
        None => Ok(segment.insert(Segment::create(directory)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::segment;

    fn row(id: &str, bytes: usize) -> Box<RequestRow> {
        Box::new(RequestRow { id: id.into(), request: Some("x".repeat(bytes)), ..RequestRow::default() })
    }

    #[test]
    fn gathered_rows_stand_when_they_are_written_and_not_before() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let standing = || segment::pending(data.path()).expect("readable").into_iter().map(|row| row.id).collect::<Vec<_>>();
        let (mut shard, bytes) = (Shard::default(), AtomicUsize::new(0));
        for id in ["req_a", "req_b", "req_c"] {
            assert_eq!(shard.gather(row(id, 10)).ok(), Some(0));
        }
        assert!(shard.gather(row("req_long", LONG + 1)).is_err(), "what is long is not copied");
        drop(shard.take());
        assert!(standing().is_empty());
        let outcome = shard.write_gathered(data.path(), &bytes);
        assert_eq!((outcome.written, outcome.refused.len(), shard.lines, shard.rows.len(), shard.turn()), (3, 0, 3, 3, 1));
        assert_eq!(standing(), ["req_a", "req_b", "req_c"]);
        shard.append(data.path(), &row("req_d", 10)).expect("written");
        assert_eq!((shard.gather(row("req_e", 10)).ok(), shard.write_gathered(data.path(), &bytes).written), (Some(1), 1));
        assert_eq!(standing(), ["req_a", "req_b", "req_c", "req_d", "req_e"]);
    }

    #[test]
    fn rows_that_no_disk_takes_come_back() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let (mut shard, bytes) = (Shard::default(), AtomicUsize::new(0));
        for id in ["req_a", "req_b"] {
            assert!(shard.gather(row(id, 10)).is_ok());
        }
        let outcome = shard.write_gathered(&data.path().join("absent"), &bytes);
        let refused: Vec<_> = outcome.refused.iter().map(|(row, _)| row.id.as_str()).collect();
        assert_eq!((outcome.written, refused, shard.lines, bytes.into_inner()), (0, vec!["req_a", "req_b"], 0, 0));
    }
}
