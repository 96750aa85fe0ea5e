//! The `releases` table: manifests by digest, with who made them and why.

use super::db::{Db, Row, Statement, StoreError};
use crate::types::Digest;
use serde::Serialize;

/// A stored release.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReleaseRecord {
    /// Digest of the manifest's canonical JSON.
    pub digest: Digest,
    /// The manifest.
    pub manifest: serde_json::Value,
    /// Who made it.
    pub author: String,
    /// Why.
    pub message: String,
    /// When.
    pub created_at: i64,
}

const COLUMNS: &str = "digest, manifest, author, message, created_at";

/// The statement that stores a release.
pub fn insert(release: &ReleaseRecord) -> Statement {
    let ReleaseRecord { digest, manifest, author, message, created_at } = release;
    Statement::new(
        "INSERT INTO releases (digest, manifest, author, message, created_at) VALUES (?, ?, ?, ?, ?)",
        [(*digest).into(), manifest.into(), author.into(), message.into(), (*created_at).into()],
    )
}

/// The release with that digest.
///
/// # Errors
/// What the database says.
pub fn find(db: &dyn Db, digest: &Digest) -> Result<Option<ReleaseRecord>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM releases WHERE digest = ?"), &[(*digest).into()])?;
    rows.first().map(record).transpose()
}

/// The release whose digest begins with the text: `sha256:…` or its hex digits, as many as are needed to name one.
///
/// # Errors
/// [`StoreError::Unknown`] when none or several begin so.
pub fn get(db: &dyn Db, prefix: &str) -> Result<ReleaseRecord, StoreError> {
    let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    let unknown = |nearest: &str| StoreError::Unknown { what: "release", name: prefix.to_string(), nearest: nearest.to_string() };
    if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown(": give at least the first four hex digits of its digest"));
    }
    let pattern = format!("sha256:{}%", hex.to_lowercase());
    let rows = db.query(&format!("SELECT {COLUMNS} FROM releases WHERE digest LIKE ? LIMIT 2"), &[pattern.into()])?;
    match rows.as_slice() {
        [] => Err(unknown("")),
        [row] => record(row),
        _ => Err(unknown(" as one release: several begin so")),
    }
}

/// All releases, newest first.
///
/// # Errors
/// What the database says.
pub fn list(db: &dyn Db) -> Result<Vec<ReleaseRecord>, StoreError> {
    db.query(&format!("SELECT {COLUMNS} FROM releases ORDER BY created_at DESC, digest"), &[])?.iter().map(record).collect()
}

fn record(row: &Row) -> Result<ReleaseRecord, StoreError> {
    Ok(ReleaseRecord { digest: row.digest(0)?, manifest: row.json(1)?, author: row.text(2), message: row.text(3), created_at: row.int(4) })
}
