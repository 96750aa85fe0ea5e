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

/// Adds a snapshot; one that is there stays as it is.
///
/// # Errors
/// When the database fails.
pub fn add(db: &dyn Db, snapshot: &Snapshot) -> Result<(), StoreError> {
    let Snapshot { provider, model, kind, name, first_seen } = snapshot;
    let sql = "INSERT INTO model_snapshots (provider, model, kind, name, first_seen) VALUES (?, ?, ?, ?, ?)";
    let params = [provider.into(), model.into(), kind.into(), name.into(), (*first_seen).into()];
    // Nothing in memory is made of it: the generation stays.
    match db.batch_apart(&Bulk::empty(), &[Statement::new(sql, params)]) {
        Err(StoreError::Conflict(_)) => Ok(()),
        added => added,
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

/// What was seen first at or after a moment, where the same field said something else before, with what it said then; by provider, model
/// and kind, in the order in which it was seen.
///
/// # Errors
/// When the database fails.
pub fn changed_since(db: &dyn Db, since: i64) -> Result<Vec<(String, Snapshot)>, StoreError> {
    let sql = "SELECT provider, model, kind, name, first_seen, (SELECT before.name FROM model_snapshots before
            WHERE before.provider = new.provider AND before.model = new.model AND before.kind = new.kind
            AND (before.first_seen, before.name) < (new.first_seen, new.name)
            ORDER BY before.first_seen DESC, before.name DESC LIMIT 1)
        FROM model_snapshots new WHERE first_seen >= ? ORDER BY provider, model, kind, first_seen, name";
    let rows = db.query(sql, &[since.into()])?;
    Ok(rows.iter().filter_map(|row| Some((row.text_or_null(5)?, read(row)))).collect())
}

/// How many models of providers have said something.
///
/// # Errors
/// When the database fails.
pub fn models(db: &dyn Db) -> Result<usize, StoreError> {
    let counted = db.query("SELECT COUNT(*) FROM (SELECT DISTINCT provider, model FROM model_snapshots) AS known", &[])?;
    Ok(counted.first().map_or(0, |row| usize::try_from(row.int(0)).unwrap_or(usize::MAX)))
}

fn read(row: &Row) -> Snapshot {
    Snapshot { provider: row.text(0), model: row.text(1), kind: row.text(2), name: row.text(3), first_seen: row.int(4) }
}
