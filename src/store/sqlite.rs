//! SQLite behind [`Db`]: WAL, one writer connection, a few readers, short IMMEDIATE transactions and a busy timeout, because CLI
//! verbs and job workers write beside the server.

use super::db::{Db, Row, Statement, StoreError, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const READERS: usize = 2;
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// An open SQLite database.
pub struct Sqlite {
    writer: Mutex<Connection>,
    readers: Vec<Mutex<Connection>>,
    /// Reads nothing but the data version, which is a connection's own count of the others' commits.
    watcher: Mutex<Connection>,
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
            // Larger pages hold several rows of the request log each; fewer checkpoints write each page of an index less often.
            connection.execute_batch(
                "PRAGMA page_size = 8192; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 2000;",
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
        let (writer, watcher) = (Mutex::new(writer), Mutex::new(connect().map_err(named)?));
        Ok(Sqlite { writer, readers, watcher })
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        for reader in &self.readers {
            if let Ok(guard) = reader.try_lock() {
                return guard;
            }
        }
        lock(&self.readers[0])
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

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // A panic while holding the connection leaves it usable: the transaction was rolled back on drop.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
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
        let connection = lock(&self.writer);
        let mut statement = connection.prepare_cached(sql).map_err(fault)?;
        statement.execute(rusqlite::params_from_iter(params)).map_err(fault)
    }

    fn batch(&self, statements: &[Statement]) -> Result<(), StoreError> {
        let mut connection = lock(&self.writer);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
        for Statement { sql, params, expect } in statements {
            let changed = transaction.prepare_cached(sql).and_then(|mut s| s.execute(rusqlite::params_from_iter(params))).map_err(fault)?;
            if let Some(rows) = expect
                && changed != *rows
            {
                return Err(StoreError::Conflict(format!("expected to change {rows} rows, changed {changed}")));
            }
        }
        transaction.commit().map_err(fault)
    }

    fn generation(&self) -> Result<u64, StoreError> {
        let connection = lock(&self.watcher);
        let version = connection.prepare_cached("PRAGMA data_version").and_then(|mut statement| statement.query_row([], |row| row.get(0)));
        version.map(i64::unsigned_abs).map_err(fault)
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(x) => ValueRef::Integer(*x),
            Value::Real(x) => ValueRef::Real(*x),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
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
