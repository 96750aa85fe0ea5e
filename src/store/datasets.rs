//! Dataset versions: rows; the samples themselves are blobs.

use super::db::{Db, Row, StoreError, Value};
use crate::types::{Digest, time};
use serde::Serialize;
use serde_json::Value as Json;

/// One immutable version of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetVersion {
    /// Name.
    pub dataset: String,
    /// Number, from 1.
    pub version: i64,
    /// Digest of the canonical JSON lines, which are a blob.
    pub digest: Digest,
    /// Number of samples.
    pub samples: i64,
    /// Where it came from (`datasets::Lineage`).
    pub lineage: Json,
    /// How it was split (`datasets::SplitManifest`), `null` when it was not.
    pub splits: Json,
    /// When, in milliseconds.
    pub created_at: i64,
}

const SELECT: &str = "SELECT dataset, version, digest, samples, lineage, splits, created_at FROM dataset_versions";

/// Stores the next version; content that is there already keeps its number.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn insert(db: &dyn Db, dataset: &str, digest: Digest, samples: usize, lineage: &Json) -> Result<(DatasetVersion, bool), StoreError> {
    if let Some(found) = by_digest(db, Some(dataset), &digest)? {
        return Ok((found, false));
    }
    let newest = db.query("SELECT MAX(version) FROM dataset_versions WHERE dataset = ?", &[dataset.into()])?;
    let version = newest.first().map_or(0, |row| row.int(0)) + 1;
    let created_at = time::now_ms();
    db.execute(
        "INSERT INTO dataset_versions (dataset, version, digest, samples, lineage, splits, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        &[dataset.into(), version.into(), digest.into(), samples.into(), lineage.into(), "null".into(), created_at.into()],
    )?;
    let (dataset, samples) = (dataset.to_string(), samples as i64);
    Ok((DatasetVersion { dataset, version, digest, samples, lineage: lineage.clone(), splits: Json::Null, created_at }, true))
}

/// Records how a version was split.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn set_splits(db: &dyn Db, dataset: &str, version: i64, splits: &Json) -> Result<(), StoreError> {
    let params = [splits.into(), dataset.into(), version.into()];
    db.execute("UPDATE dataset_versions SET splits = ? WHERE dataset = ? AND version = ?", &params).map(drop)
}

/// The newest version of every dataset, by name.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn newest(db: &dyn Db) -> Result<Vec<DatasetVersion>, StoreError> {
    let newest = "WHERE version = (SELECT MAX(version) FROM dataset_versions AS other WHERE other.dataset = dataset_versions.dataset)";
    rows(db, &format!("{SELECT} {newest} ORDER BY dataset"), &[])
}

/// All versions of a dataset, newest first.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn versions(db: &dyn Db, dataset: &str) -> Result<Vec<DatasetVersion>, StoreError> {
    rows(db, &format!("{SELECT} WHERE dataset = ? ORDER BY version DESC"), &[dataset.into()])
}

/// The version with that content.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn by_digest(db: &dyn Db, dataset: Option<&str>, digest: &Digest) -> Result<Option<DatasetVersion>, StoreError> {
    let found = match dataset {
        Some(dataset) => rows(db, &format!("{SELECT} WHERE digest = ? AND dataset = ?"), &[(*digest).into(), dataset.into()])?,
        None => rows(db, &format!("{SELECT} WHERE digest = ? ORDER BY created_at DESC LIMIT 1"), &[(*digest).into()])?,
    };
    Ok(found.into_iter().next())
}

/// Every version with that content, whatever its dataset, newest first.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn all_by_digest(db: &dyn Db, digest: &Digest) -> Result<Vec<DatasetVersion>, StoreError> {
    rows(db, &format!("{SELECT} WHERE digest = ? ORDER BY created_at DESC"), &[(*digest).into()])
}

fn rows(db: &dyn Db, sql: &str, params: &[Value]) -> Result<Vec<DatasetVersion>, StoreError> {
    db.query(sql, params)?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<DatasetVersion, StoreError> {
    let digest = row.text(2).parse().map_err(|error| StoreError::Corrupt(format!("dataset_versions.digest: {error}")))?;
    Ok(DatasetVersion {
        dataset: row.text(0),
        version: row.int(1),
        digest,
        samples: row.int(3),
        lineage: row.json(4)?,
        splits: row.json(5)?,
        created_at: row.int(6),
    })
}
