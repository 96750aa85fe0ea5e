//! SQLite behind [`Db`]: WAL, one writer connection, a few readers, short IMMEDIATE transactions and a busy timeout, because CLI
//! verbs and job workers write beside the server.

use super::db::{Bound, Bulk, Db, Row, Statement, StoreError, Value};
use super::wal_index::{Header, WalIndex, commits};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const READERS: usize = 2;
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// How long the answer to "has anybody committed" is believed. It takes a system call to find out, and under load everybody asks.
pub(super) const BELIEVED: Duration = Duration::from_millis(1);

/// An open SQLite database.
pub struct Sqlite {
    writer: Mutex<Writer>,
    readers: Vec<Mutex<Connection>>,
    watcher: Mutex<Watcher>,
    /// Tells where there is nothing to look for.
    index: Option<WalIndex>,
    /// The header of the wal-index after the last commit of this process, where nobody else had committed in between.
    own_header: Mutex<Option<Header>>,
    /// Commits of this process that change the generation, and looks that found one of another.
    own: AtomicU64,
    others: AtomicU64,
    /// Whether the writer is in a transaction, so that nobody else commits, and has looked whether anybody had.
    alone: AtomicBool,
}

/// The one connection of this process that writes.
struct Writer {
    connection: Connection,
    /// Its data version: the count of the others' commits.
    seen: i64,
}

/// Looks for commits.
struct Watcher {
    connection: Connection,
    seen: Option<Seen>,
}

/// What a look found.
struct Seen {
    /// The connection's data version, which counts the commits of the writer, too.
    version: i64,
    /// The header of the wal-index before that was asked.
    header: Option<Header>,
    at: Instant,
}

impl Sqlite {
    /// Opens or creates the database file.
    ///
    /// # Errors
    /// [`StoreError::Database`] when the file is no database or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connect = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // What a row of the request log costs is the pages it is written in, each two system calls: larger ones hold more of them (a file
            // that is there keeps its own size). Fewer checkpoints write each page of an index less often.
            connection.execute_batch(
                "PRAGMA page_size = 16384; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 2000;",
            )?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let named = |error: rusqlite::Error| match fault(error) {
            StoreError::Corrupt(why) => StoreError::Corrupt(format!("{}: {why}", path.display())),
            error => StoreError::Database(format!("{}: {error}", path.display())),
        };
        let writer = connect().map_err(named)?;
        write_ahead(&writer).map_err(named)?;
        let readers = (0..READERS).map(|_| connect().map(Mutex::new)).collect::<rusqlite::Result<_>>().map_err(named)?;
        let watcher = Mutex::new(Watcher { connection: connect().map_err(named)?, seen: None });
        let (index, own_header) = (WalIndex::of(path), Mutex::default());
        let writer = Writer { seen: data_version(&writer).map_err(named)?, connection: writer };
        let (own, others, alone) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Ok(Sqlite { writer: Mutex::new(writer), readers, watcher, index, own_header, own, others, alone })
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        for reader in &self.readers {
            if let Ok(guard) = reader.try_lock() {
                return guard;
            }
        }
        lock(&self.readers[0])
    }

    /// Does work in one transaction. Whether the generation changes with it, the work says.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<(T, bool), StoreError>) -> Result<T, StoreError> {
        let mut writer = lock(&self.writer);
        let Writer { connection, seen } = &mut *writer;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
        self.look(&transaction, seen)?;
        self.alone.store(true, Ordering::Release);
        let before = self.index.as_ref().and_then(WalIndex::header);
        let worked = work(&transaction).and_then(|(done, changes)| {
            transaction.commit().map_err(fault)?;
            self.own.fetch_add(u64::from(changes), Ordering::AcqRel);
            self.committed(before);
            Ok(done)
        });
        self.alone.store(false, Ordering::Release);
        worked
    }

    /// Remembers the header that a commit of this process has left, so that nobody looks who made it: only where it is the next after
    /// the one that stood before, when nobody else could commit.
    fn committed(&self, before: Option<Header>) {
        let after = self.index.as_ref().and_then(WalIndex::header);
        let is_next = before.zip(after).is_some_and(|(before, after)| commits(&after) == commits(&before).wrapping_add(1));
        if is_next {
            *lock(&self.own_header) = after;
        }
    }

    /// Commits that were seen and change the generation.
    fn commits(&self) -> u64 {
        self.own.load(Ordering::Acquire) + self.others.load(Ordering::Acquire)
    }

    /// Counts it when another process, or another program, has committed since the writer looked last.
    fn look(&self, writer: &Connection, seen: &mut i64) -> Result<(), StoreError> {
        let version = data_version(writer).map_err(fault)?;
        if std::mem::replace(seen, version) != version {
            self.others.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// Switches the file to write-ahead logging, which it keeps. Several processes may begin on a new file at once, and SQLite does not wait
/// for the others here, whatever the busy timeout.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match connection.execute_batch("PRAGMA journal_mode = WAL;") {
            Err(error) if is_busy(&error) && begun.elapsed() < BUSY_TIMEOUT => std::thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked))
}

/// Checks the database file's pages; the faults found, none when it is intact.
///
/// # Errors
/// When it cannot be read at all.
pub fn integrity(db: &dyn Db) -> Result<Vec<String>, StoreError> {
    let rows = db.query("PRAGMA quick_check", &[])?;
    Ok(rows.iter().map(|row| row.text(0)).filter(|line| line != "ok").collect())
}

fn lock<T>(connection: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding the connection leaves it usable: the transaction was rolled back on drop.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection's own count of the others' commits.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

fn run(transaction: &Transaction<'_>, statements: &[Statement]) -> Result<(), StoreError> {
    for Statement { sql, params, expect } in statements {
        let changed = transaction.prepare_cached(sql).and_then(|mut s| s.execute(rusqlite::params_from_iter(params))).map_err(fault)?;
        if let Some(rows) = expect
            && changed != *rows
        {
            return Err(StoreError::Conflict(format!("expected to change {rows} rows, changed {changed}")));
        }
    }
    Ok(())
}

impl Db for Sqlite {
    fn query(&self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        let connection = self.reader();
        let mut statement = connection.prepare_cached(sql).map_err(fault)?;
        let columns = statement.column_count();
        let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(fault)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault)? {
            let read = |i| row.get_ref(i).map_err(fault).and_then(value);
            found.push(Row((0..columns).map(read).collect::<Result<_, _>>()?));
        }
        Ok(found)
    }

    fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        self.write(|transaction| {
            let ran = transaction.prepare_cached(sql).and_then(|mut statement| statement.execute(rusqlite::params_from_iter(params)));
            ran.map(|changed| (changed, changed > 0)).map_err(fault)
        })
    }

    fn batch(&self, statements: &[Statement]) -> Result<(), StoreError> {
        self.write(|transaction| run(transaction, statements).map(|()| ((), true)))
    }

    fn batch_apart(&self, bulk: &Bulk<'_>, statements: &[Statement]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut statement = transaction.prepare_cached(&bulk.sql).map_err(fault)?;
            for row in bulk.values.chunks_exact(bulk.columns) {
                statement.execute(rusqlite::params_from_iter(row)).map_err(fault)?;
            }
            run(transaction, statements).map(|()| ((), false))
        })
    }

    fn generation(&self) -> Result<u64, StoreError> {
        let mut watcher = lock(&self.watcher);
        let Watcher { connection, seen } = &mut *watcher;
        let now = Instant::now();
        if seen.as_ref().is_none_or(|seen| now.duration_since(seen.at) >= BELIEVED) {
            let header = self.index.as_ref().and_then(WalIndex::header);
            let is_known = |seen: &&mut Seen| header.is_some() && (seen.header == header || *lock(&self.own_header) == header);
            if let Some(seen) = seen.as_mut().filter(is_known) {
                (seen.at, seen.header) = (now, header);
                return Ok(self.commits());
            }
            let version = data_version(connection).map_err(fault)?;
            let changed = seen.replace(Seen { version, header, at: now }).is_some_and(|known| known.version != version);
            if changed {
                // By this process, or by another?
                match self.writer.try_lock() {
                    Ok(mut writer) => {
                        let Writer { connection, seen } = &mut *writer;
                        self.look(connection, seen)?;
                    }
                    // The writer has looked.
                    Err(_) if self.alone.load(Ordering::Acquire) => {}
                    // It waits for another to finish.
                    Err(_) => drop(self.others.fetch_add(1, Ordering::AcqRel)),
                }
            }
        }
        Ok(self.commits())
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(given(self.into()))
    }
}

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(given(*self))
    }
}

fn given(value: Bound<'_>) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(match value {
        Bound::Null => ValueRef::Null,
        Bound::Int(x) => ValueRef::Integer(x),
        Bound::Real(x) => ValueRef::Real(x),
        Bound::Text(text) => ValueRef::Text(text.as_bytes()),
    })
}

fn value(value: ValueRef<'_>) -> Result<Value, StoreError> {
    match value {
        ValueRef::Null => Ok(Value::Null),
        ValueRef::Integer(x) => Ok(Value::Int(x)),
        ValueRef::Real(x) => Ok(Value::Real(x)),
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| StoreError::Corrupt("a text column is not UTF-8".into()))?;
            Ok(Value::Text(text.to_string()))
        }
        ValueRef::Blob(_) => Err(StoreError::Corrupt("a column holds a blob; blobs live in files".into())),
    }
}

fn fault(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => StoreError::Conflict(error.to_string()),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Database(error.to_string()),
    }
}
