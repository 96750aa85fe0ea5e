//! ALL SQL lives here: the narrow [`Db`] trait, its SQLite implementation, migrations, one file per entity, and the
//! content-addressed [`blobs`]. Other rooms call the entity functions; none of them writes SQL.

pub mod adapters;
pub mod audit;
pub mod batches;
pub mod blobs;
pub mod cases;
pub mod change;
pub mod completions;
pub mod datasets;
pub mod db;
pub mod feedback;
pub mod files;
pub mod fine_tunes;
pub mod fresh;
pub mod job_events;
pub mod jobs;
pub mod keys;
pub mod lock;
pub mod log;
pub mod migrate;
pub mod models;
pub mod openai_evals;
pub mod projects;
pub mod prompts;
pub mod releases;
pub mod requests;
pub mod reviews;
pub mod routes;
pub mod runs;
pub mod snapshots;
pub mod sqlite;
pub mod usage;
mod wal_index;

pub use blobs::Blobs;
pub use change::{Change, Commit};
pub use db::{Bound, Bulk, Db, Row, Statement, StoreError, Value};
pub use fresh::Fresh;

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The data directory, opened: database and blobs.
#[derive(Clone)]
pub struct Store {
    /// The database.
    pub db: Arc<dyn Db>,
    /// Large bytes, by digest.
    pub blobs: Blobs,
    /// The bytes of [`files`], by digest: apart from `blobs`, because clients may delete them.
    pub uploads: Blobs,
    directory: PathBuf,
}

impl Store {
    /// Opens (and where needed creates and migrates) the store in a data directory.
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be written, the database is corrupt or newer than this program.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|source| StoreError::Io { path: directory.to_path_buf(), source })?;
        let db = Arc::new(sqlite::Sqlite::open(&directory.join("refit.db"))?);
        migrate::run(db.as_ref())?;
        let (blobs, uploads) = (Blobs::open(&directory.join("blobs"))?, Blobs::open(&directory.join("uploads"))?);
        Ok(Store { db, blobs, uploads, directory: directory.to_path_buf() })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
