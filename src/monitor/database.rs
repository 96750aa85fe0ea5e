//! The database with a clock: how long its writes take, for the metrics.

use super::series::{Distribution, Histogram, OWN_SECONDS};
use crate::store::db::{Bulk, Db, Row, Statement, StoreError, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Times of the writes of this process.
#[derive(Debug)]
pub(super) struct Writes {
    seconds: Histogram,
    failed: AtomicU64,
}

impl Default for Writes {
    fn default() -> Self {
        Writes { seconds: Histogram::seconds(OWN_SECONDS), failed: AtomicU64::new(0) }
    }
}

impl Writes {
    pub(super) fn read(&self) -> (Distribution, u64) {
        (self.seconds.read(), self.failed.load(Ordering::Relaxed))
    }

    fn timed<T>(&self, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let begun = Instant::now();
        let written = write();
        self.seconds.observe(begun.elapsed().as_secs_f64());
        // A conflict is an answer; anything else is trouble.
        if written.as_ref().is_err_and(|error| !matches!(error, StoreError::Conflict(_))) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        written
    }
}

/// A database whose writes are timed.
pub(super) struct Timed {
    pub(super) db: Arc<dyn Db>,
    pub(super) writes: Arc<Writes>,
}

impl Db for Timed {
    fn query(&self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        self.db.query(sql, params)
    }

    fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        self.writes.timed(|| self.db.execute(sql, params))
    }

    fn batch(&self, statements: &[Statement]) -> Result<(), StoreError> {
        self.writes.timed(|| self.db.batch(statements))
    }

    fn batch_apart(&self, bulk: &Bulk<'_>, statements: &[Statement]) -> Result<(), StoreError> {
        self.writes.timed(|| self.db.batch_apart(bulk, statements))
    }

    fn generation(&self) -> Result<u64, StoreError> {
        self.db.generation()
    }
}
