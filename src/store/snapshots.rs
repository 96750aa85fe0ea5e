//! Rows of `model_snapshots`: what has answered under the name of a provider's model. A row is added when a name is seen first and is
//! never changed.

use super::db::{Bulk, Db, Row, Statement, StoreError};

/// The kind of what replies say in `model`.
pub const MODEL: &str = "model";
/// The kind of what they say in `system_fingerprint`.
pub const FINGERPRINT: &str = "fingerprint";

/// Something that a provider's replies say of what answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Provider.
    pub provider: String,
    /// The model's name, as it is called.
    pub model: String,
    /// [`MODEL`] or [`FINGERPRINT`].
    pub kind: String,
    /// What the field says.
    pub name: String,
    /// When it was seen first, milliseconds.
    pub first_seen: i64,
}

/// Adds a snapshot. Whether it was not known; a second process that sees it, too, learns that it was.
///
/// # Errors
/// When the database fails.
pub fn add(db: &dyn Db, snapshot: &Snapshot) -> Result<bool, StoreError> {
    let Snapshot { provider, model, kind, name, first_seen } = snapshot;
    let sql = "INSERT INTO model_snapshots (provider, model, kind, name, first_seen) VALUES (?, ?, ?, ?, ?)";
    let params = [provider.into(), model.into(), kind.into(), name.into(), (*first_seen).into()];
    // Nothing in memory is made of it: the generation stays.
    match db.batch_apart(&Bulk::empty(), &[Statement::new(sql, params)]) {
        Err(StoreError::Conflict(_)) => Ok(false),
        added => added.map(|()| true),
    }
}

/// What has answered under the name of a provider's model, of one kind, in the order in which it was seen.
///
/// # Errors
/// When the database fails.
pub fn of(db: &dyn Db, (provider, model): (&str, &str), kind: &str) -> Result<Vec<Snapshot>, StoreError> {
    let sql = "SELECT provider, model, kind, name, first_seen FROM model_snapshots \
        WHERE provider = ? AND model = ? AND kind = ? ORDER BY first_seen, name";
    Ok(db.query(sql, &[provider.into(), model.into(), kind.into()])?.iter().map(read).collect())
}

/// Everything that was seen, by provider, model and kind, in the order in which it was seen.
///
/// # Errors
/// When the database fails.
pub fn all(db: &dyn Db) -> Result<Vec<Snapshot>, StoreError> {
    let sql = "SELECT provider, model, kind, name, first_seen FROM model_snapshots ORDER BY provider, model, kind, first_seen, name";
    Ok(db.query(sql, &[])?.iter().map(read).collect())
}

fn read(row: &Row) -> Snapshot {
    Snapshot { provider: row.text(0), model: row.text(1), kind: row.text(2), name: row.text(3), first_seen: row.int(4) }
}
