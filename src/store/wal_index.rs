//! A look at SQLite's wal-index, the file beside the database that every commit changes (sqlite.org/walformat.html, "The WAL-Index
//! File Format"). Whether anybody has committed is told by its first bytes, in one system call; asking SQLite takes seven.

use std::fs::File;
use std::io;
use std::path::Path;

/// Length of the header's first copy. It holds a counter of transactions, the last valid frame and the salts of the log.
const HEADER_BYTES: usize = 48;

/// The header as it was at some moment. Another one means that somebody committed, or is about to.
pub(super) type Header = [u8; HEADER_BYTES];

/// The wal-index of a database that this process keeps open.
pub(super) struct WalIndex(File);

/// The counter of transactions in a header ("iChange"): one more with every commit.
pub(super) fn commits(header: &Header) -> u32 {
    let [a, b, c, d] = [header[8], header[9], header[10], header[11]];
    u32::from_ne_bytes([a, b, c, d])
}

impl WalIndex {
    /// The wal-index of a database file; none where there is no such file.
    pub(super) fn of(database: &Path) -> Option<Self> {
        let mut name = database.as_os_str().to_owned();
        name.push("-shm");
        File::open(name).ok().map(WalIndex)
    }

    /// The header as it is now; none where it cannot be read. One that is being written is unlike the one before, which is enough.
    pub(super) fn header(&self) -> Option<Header> {
        let mut header = [0; HEADER_BYTES];
        read_at_start(&self.0, &mut header).ok()?;
        Some(header)
    }
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn read_at_start(file: &File, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, 0)
}

/// Elsewhere what is mapped and what is read may differ.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn read_at_start(_: &File, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn every_commit_changes_the_header_and_nothing_else_does() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("x.db");
        assert!(WalIndex::of(&path).is_none());
        let [ours, foreign] = [(); 2].map(|()| Connection::open(&path).expect("opens"));
        ours.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x);").expect("a table");
        let index = WalIndex::of(&path).expect("a wal-index");
        let mut seen = vec![index.header().expect("a header")];
        for round in 0..50 {
            foreign.execute("INSERT INTO t VALUES (1)", []).expect("inserted");
            if round % 20 == 19 {
                foreign.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("moved");
                // The next commit begins a new log.
                foreign.execute("INSERT INTO t VALUES (2)", []).expect("inserted");
            }
            let header = index.header().expect("a header");
            assert!(!seen.contains(&header), "round {round}");
            let before = seen.last().expect("the one before");
            let made = if round % 20 == 19 { 2 } else { 1 };
            assert_eq!(commits(&header), commits(before).wrapping_add(made), "round {round}");
            ours.query_row("SELECT COUNT(*) FROM t", [], |row| row.get::<_, i64>(0)).expect("counted");
            let rolled_back = foreign.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (3); ROLLBACK");
            rolled_back.expect("rolled back");
            assert_eq!(index.header(), Some(header), "neither reading nor what is rolled back is a commit");
            seen.push(header);
        }
    }
}
