//! The `models` table: which prebuilt models are stored here, by name.

use super::db::{Db, Row, StoreError};
use crate::types::{Digest, error::did_you_mean};
use serde::Serialize;

/// A stored model. Its bytes are the blob `digest`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelRecord {
    /// Name after `local/`.
    pub name: String,
    /// Digest of the model file.
    pub digest: Digest,
    /// Size of the model file.
    pub size_bytes: u64,
    /// Architecture as the file names it, such as `llama`.
    pub architecture: String,
    /// SPDX licence expression, or `unknown`.
    pub licence: String,
    /// Where it came from.
    pub source: String,
    /// When it was stored.
    pub added_at: i64,
}

const COLUMNS: &str = "name, digest, size_bytes, architecture, licence, source, added_at";

/// Inserts the model or replaces the row of that name.
///
/// # Errors
/// What the database says.
pub fn put(db: &dyn Db, model: &ModelRecord) -> Result<(), StoreError> {
    let replaced = "DO UPDATE SET digest = excluded.digest, size_bytes = excluded.size_bytes, architecture = excluded.architecture,
        licence = excluded.licence, source = excluded.source, added_at = excluded.added_at";
    insert(db, model, replaced).map(|_| ())
}

/// Inserts the model unless there is a row of that name; returns whether it was inserted.
///
/// # Errors
/// What the database says.
pub fn add(db: &dyn Db, model: &ModelRecord) -> Result<bool, StoreError> {
    Ok(insert(db, model, "DO NOTHING")? > 0)
}

/// How many rows were written.
fn insert(db: &dyn Db, model: &ModelRecord, on_conflict: &str) -> Result<usize, StoreError> {
    let sql = format!("INSERT INTO models ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) {on_conflict}");
    let ModelRecord { name, digest, size_bytes, architecture, licence, source, added_at } = model;
    let params =
        [name.into(), (*digest).into(), (*size_bytes).into(), architecture.into(), licence.into(), source.into(), (*added_at).into()];
    db.execute(&sql, &params)
}

/// The model of that name, if it is stored.
///
/// # Errors
/// What the database says.
pub fn find(db: &dyn Db, name: &str) -> Result<Option<ModelRecord>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM models WHERE name = ?"), &[name.into()])?;
    rows.first().map(record).transpose()
}

/// The model of that name.
///
/// # Errors
/// [`StoreError::Unknown`] with the nearest stored name.
pub fn get(db: &dyn Db, name: &str) -> Result<ModelRecord, StoreError> {
    if let Some(model) = find(db, name)? {
        return Ok(model);
    }
    let names: Vec<_> = list(db)?.into_iter().map(|model| model.name).collect();
    let nearest = did_you_mean(name, names.iter().map(String::as_str));
    Err(StoreError::Unknown { what: "model", name: name.to_string(), nearest })
}

/// The first model, by name, whose source begins like that.
///
/// # Errors
/// What the database says.
pub fn find_by_source(db: &dyn Db, beginning: &str) -> Result<Option<ModelRecord>, StoreError> {
    Ok(list(db)?.into_iter().find(|model| model.source.starts_with(beginning)))
}

/// All models, by name.
///
/// # Errors
/// What the database says.
pub fn list(db: &dyn Db) -> Result<Vec<ModelRecord>, StoreError> {
    db.query(&format!("SELECT {COLUMNS} FROM models ORDER BY name"), &[])?.iter().map(record).collect()
}

/// Takes the row away; returns whether there was one.
///
/// # Errors
/// What the database says.
pub fn remove(db: &dyn Db, name: &str) -> Result<bool, StoreError> {
    Ok(db.execute("DELETE FROM models WHERE name = ?", &[name.into()])? > 0)
}

fn record(row: &Row) -> Result<ModelRecord, StoreError> {
    Ok(ModelRecord {
        name: row.text(0),
        digest: row.digest(1)?,
        size_bytes: row.int(2).unsigned_abs(),
        architecture: row.text(3),
        licence: row.text(4),
        source: row.text(5),
        added_at: row.int(6),
    })
}
