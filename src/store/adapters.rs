//! The `adapters` table: trained adapters, numbered per model and name. Weights are a blob.

use super::db::{Db, Row, StoreError, Value};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use crate::types::time::now_ms;
use serde::Serialize;

/// An adapter about to be stored.
#[derive(Debug, Clone)]
pub struct NewAdapter {
    /// Model it was trained for (the name after `local/`).
    pub model: String,
    /// Its name.
    pub name: String,
    /// Digest of weights and configuration together: what manifests name.
    pub digest: Digest,
    /// Digest of the model file it was trained on.
    pub model_digest: Digest,
    /// Digest of the weights blob.
    pub weights: Digest,
    /// Its configuration: PEFT's, or a classifier head's.
    pub config: serde_json::Value,
    /// Job, data and recipe it came from.
    pub provenance: serde_json::Value,
}

/// A stored adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterRecord {
    /// Model it was trained for.
    pub model: String,
    /// Its name.
    pub name: String,
    /// 1, 2, 3, … per model and name.
    pub version: i64,
    /// Digest of weights and configuration together.
    pub digest: Digest,
    /// Digest of the model file it was trained on.
    pub model_digest: Digest,
    /// Digest of the weights blob.
    pub weights: Digest,
    /// Its configuration: PEFT's, or a classifier head's.
    pub config: serde_json::Value,
    /// Job, data and recipe it came from.
    pub provenance: serde_json::Value,
    /// When it was stored.
    pub created_at: i64,
}

impl AdapterRecord {
    /// Whether it is a classifier head on an embedding model.
    pub fn is_head(&self) -> bool {
        self.config.get("head_type").is_some()
    }
}

const COLUMNS: &str = "model, name, version, digest, model_digest, weights, config, provenance, created_at";

/// Stores the adapter as the next version of its model and name, and returns the row.
///
/// # Errors
/// [`StoreError::Conflict`] when another process stored a version at the same moment; try again.
pub fn insert(db: &dyn Db, adapter: &NewAdapter) -> Result<AdapterRecord, StoreError> {
    let NewAdapter { model, name, digest, model_digest, weights, config, provenance } = adapter;
    let sql = "INSERT INTO adapters (model, name, version, digest, model_digest, weights, config, provenance, created_at)
        SELECT ?, ?, COALESCE(MAX(version), 0) + 1, ?, ?, ?, ?, ?, ? FROM adapters WHERE model = ? AND name = ?";
    let params: [Value; 10] = [
        model.into(),
        name.into(),
        (*digest).into(),
        (*model_digest).into(),
        (*weights).into(),
        config.into(),
        provenance.into(),
        now_ms().into(),
        model.into(),
        name.into(),
    ];
    db.execute(sql, &params)?;
    let stored = one(db, "model = ? AND name = ? AND digest = ?", &[model.into(), name.into(), (*digest).into()])?;
    stored.ok_or_else(|| StoreError::Corrupt(format!("adapter {digest} is not there after it was stored")))
}

/// An adapter by `name` (its newest version), `name@version` or `sha256:…`.
///
/// # Errors
/// [`StoreError::Unknown`] with the nearest name.
pub fn get(db: &dyn Db, model: &str, reference: &str) -> Result<AdapterRecord, StoreError> {
    let found = match (reference.parse::<Digest>(), reference.split_once('@')) {
        (Ok(digest), _) => by_digest(db, &digest)?.filter(|adapter| adapter.model == model),
        (_, Some((name, version))) => match version.parse::<i64>() {
            Ok(version) => one(db, "model = ? AND name = ? AND version = ?", &[model.into(), name.into(), version.into()])?,
            Err(_) => None,
        },
        (_, None) => one(db, "model = ? AND name = ?", &[model.into(), reference.into()])?,
    };
    if let Some(adapter) = found {
        return Ok(adapter);
    }
    let names: Vec<_> = list(db)?.into_iter().filter(|adapter| adapter.model == model).map(|adapter| adapter.name).collect();
    let name = reference.split('@').next().unwrap_or(reference);
    let other = names.iter().filter(|known| *known != name).map(String::as_str);
    Err(StoreError::Unknown { what: "adapter", name: format!("{model}:{reference}"), nearest: did_you_mean(name, other) })
}

/// The newest adapter with that digest.
///
/// # Errors
/// What the database says.
pub fn by_digest(db: &dyn Db, digest: &Digest) -> Result<Option<AdapterRecord>, StoreError> {
    let rows = db.query(
        &format!("SELECT {COLUMNS} FROM adapters WHERE digest = ? ORDER BY created_at DESC, version DESC LIMIT 1"),
        &[(*digest).into()],
    )?;
    rows.first().map(record).transpose()
}

/// The adapter that a job made of a model.
///
/// # Errors
/// What the database says.
pub fn of_job(db: &dyn Db, model: &str, job: &str) -> Result<Option<AdapterRecord>, StoreError> {
    one(db, "model = ? AND json_extract(provenance, '$.job') = ?", &[model.into(), job.into()])
}

/// All adapters, by model, name and version.
///
/// # Errors
/// What the database says.
pub fn list(db: &dyn Db) -> Result<Vec<AdapterRecord>, StoreError> {
    db.query(&format!("SELECT {COLUMNS} FROM adapters ORDER BY model, name, version"), &[])?.iter().map(record).collect()
}

fn one(db: &dyn Db, condition: &str, params: &[Value]) -> Result<Option<AdapterRecord>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM adapters WHERE {condition} ORDER BY version DESC LIMIT 1"), params)?;
    rows.first().map(record).transpose()
}

fn record(row: &Row) -> Result<AdapterRecord, StoreError> {
    Ok(AdapterRecord {
        model: row.text(0),
        name: row.text(1),
        version: row.int(2),
        digest: row.digest(3)?,
        model_digest: row.digest(4)?,
        weights: row.digest(5)?,
        config: row.json(6)?,
        provenance: row.json(7)?,
        created_at: row.int(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use serde_json::json;

    #[test]
    fn versions_count_per_name_and_each_reference_finds_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let db = store.db.as_ref();
        let adapter = |name: &str, text: &str| NewAdapter {
            model: "m".into(),
            name: name.into(),
            digest: Digest::of(text),
            model_digest: Digest::of("model"),
            weights: Digest::of("weights"),
            config: json!({"r": 8}),
            provenance: json!({"job": format!("job_{text}")}),
        };
        let versions: Vec<_> =
            [("a", "1"), ("a", "2"), ("b", "3")].map(|(name, text)| insert(db, &adapter(name, text)).expect("stored").version).into();
        assert_eq!(versions, [1, 2, 1]);
        assert_eq!(get(db, "m", "a").expect("newest").version, 2);
        assert_eq!(get(db, "m", "a@1").expect("first").digest, Digest::of("1"));
        assert_eq!(get(db, "m", &Digest::of("3").to_string()).expect("by digest").name, "b");
        for missing in ["a@3", "a@x", "c", &Digest::of("4").to_string()] {
            assert!(matches!(get(db, "m", missing), Err(StoreError::Unknown { .. })), "{missing}");
        }
        assert!(get(db, "other", "a").is_err());
        assert_eq!(of_job(db, "m", "job_2").expect("a query").map(|adapter| adapter.digest), Some(Digest::of("2")));
        assert_eq!((of_job(db, "m", "job_4").expect("a query"), of_job(db, "other", "job_2").expect("a query")), (None, None));
    }
}
