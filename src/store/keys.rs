//! Rows of `api_keys`. The key itself is never here: only its keyed hash (see `access::keys`).

use super::db::{Db, Row, StoreError, Value};

/// One API key as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRow {
    /// `key_…`.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Project (tenant) it belongs to.
    pub project: String,
    /// Role word.
    pub role: String,
    /// First and last characters of the key, to recognise it by.
    pub hint: String,
    /// HMAC-SHA256 of the key, hex.
    pub hash: String,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

const COLUMNS: &str = "id, name, project, role, hint, hash, created_at, revoked_at";

fn read(row: &Row) -> KeyRow {
    KeyRow {
        id: row.text(0),
        name: row.text(1),
        project: row.text(2),
        role: row.text(3),
        hint: row.text(4),
        hash: row.text(5),
        created_at: row.int(6),
        revoked_at: row.int_or_null(7),
    }
}

/// Stores a new key.
///
/// # Errors
/// [`StoreError::Conflict`] when the id or hash exists.
pub fn insert(db: &dyn Db, key: &KeyRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO api_keys (id, name, project, role, hint, hash, created_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let params = [
        Value::from(&key.id),
        (&key.name).into(),
        (&key.project).into(),
        (&key.role).into(),
        (&key.hint).into(),
        (&key.hash).into(),
        key.created_at.into(),
        key.revoked_at.into(),
    ];
    db.execute(sql, &params).map(drop)
}

/// All keys, oldest first, revoked ones too.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db) -> Result<Vec<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys ORDER BY created_at, id"), &[])?;
    Ok(rows.iter().map(read).collect())
}

/// The key with this hash.
///
/// # Errors
/// When the database fails.
pub fn by_hash(db: &dyn Db, hash: &str) -> Result<Option<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys WHERE hash = ?"), &[hash.into()])?;
    Ok(rows.first().map(read))
}

/// The key with this id.
///
/// # Errors
/// When the database fails.
pub fn by_id(db: &dyn Db, id: &str) -> Result<Option<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys WHERE id = ?"), &[id.into()])?;
    Ok(rows.first().map(read))
}

/// Marks a key as revoked; false when it is unknown or was revoked before.
///
/// # Errors
/// When the database fails.
pub fn revoke(db: &dyn Db, id: &str, at: i64) -> Result<bool, StoreError> {
    Ok(db.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", &[at.into(), id.into()])? == 1)
}
