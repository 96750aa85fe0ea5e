//! Prompt versions (immutable), labels, and the log of label moves.

use super::db::{Db, Row, Statement, StoreError, Value};
use crate::types::{Digest, ids, time};
use serde::Serialize;

/// One immutable version of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptVersion {
    /// Name.
    pub prompt: String,
    /// Number, from 1.
    pub version: i64,
    /// Digest of the source.
    pub digest: Digest,
    /// The file as published.
    #[serde(skip)]
    pub source: String,
    /// Who published it.
    pub author: String,
    /// Why.
    pub message: String,
    /// When, in milliseconds.
    pub created_at: i64,
}

/// One move of a label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelMove {
    /// Id, sortable by time.
    pub id: String,
    /// The label.
    pub label: String,
    /// Where it was; `None` when new.
    pub from_version: Option<i64>,
    /// Where it is now.
    pub to_version: i64,
    /// Who moved it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in milliseconds.
    pub moved_at: i64,
}

const VERSION: &str = "SELECT prompt, version, digest, source, author, message, created_at FROM prompt_versions";

/// Stores a source as the next version.
///
/// # Errors
/// [`StoreError::Conflict`] when the same content or number was stored meanwhile.
pub fn insert(db: &dyn Db, prompt: &str, source: &str, author: &str, message: &str) -> Result<PromptVersion, StoreError> {
    let rows = db.query("SELECT MAX(version) FROM prompt_versions WHERE prompt = ?", &[prompt.into()])?;
    let version = rows.first().map_or(0, |row| row.int(0)) + 1;
    let (digest, created_at) = (Digest::of(source), time::now_ms());
    db.execute(
        "INSERT INTO prompt_versions (prompt, version, digest, source, author, message, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        &[prompt.into(), version.into(), digest.into(), source.into(), author.into(), message.into(), created_at.into()],
    )?;
    let (prompt, source) = (prompt.to_string(), source.to_string());
    Ok(PromptVersion { prompt, version, digest, source, author: author.into(), message: message.into(), created_at })
}

/// All versions of a prompt, newest first.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn versions(db: &dyn Db, prompt: &str) -> Result<Vec<PromptVersion>, StoreError> {
    rows(db, &format!("{VERSION} WHERE prompt = ? ORDER BY version DESC"), &[prompt.into()])
}

/// The newest version of every prompt, by name.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn newest(db: &dyn Db) -> Result<Vec<PromptVersion>, StoreError> {
    let newest = "WHERE version = (SELECT MAX(version) FROM prompt_versions AS other WHERE other.prompt = prompt_versions.prompt)";
    rows(db, &format!("{VERSION} {newest} ORDER BY prompt"), &[])
}

/// One version by number.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn by_version(db: &dyn Db, prompt: &str, version: i64) -> Result<Option<PromptVersion>, StoreError> {
    Ok(rows(db, &format!("{VERSION} WHERE prompt = ? AND version = ?"), &[prompt.into(), version.into()])?.pop())
}

/// The version with that content, of that prompt or of any.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn by_digest(db: &dyn Db, prompt: Option<&str>, digest: &Digest) -> Result<Option<PromptVersion>, StoreError> {
    let found = match prompt {
        Some(prompt) => rows(db, &format!("{VERSION} WHERE digest = ? AND prompt = ?"), &[(*digest).into(), prompt.into()])?,
        None => rows(db, &format!("{VERSION} WHERE digest = ? ORDER BY created_at DESC LIMIT 1"), &[(*digest).into()])?,
    };
    Ok(found.into_iter().next())
}

/// Labels of a prompt with the version each points at.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn labels(db: &dyn Db, prompt: &str) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = db.query("SELECT label, version FROM prompt_labels WHERE prompt = ? ORDER BY label", &[prompt.into()])?;
    Ok(rows.iter().map(|row| (row.text(0), row.int(1))).collect())
}

/// Moves a label from where the caller saw it and logs the move, in one transaction.
///
/// # Errors
/// [`StoreError::Conflict`] when the label was moved meanwhile.
pub fn move_label(db: &dyn Db, prompt: &str, step: &LabelMove) -> Result<(), StoreError> {
    let place = match step.from_version {
        None => Statement::new(
            "INSERT INTO prompt_labels (prompt, label, version) VALUES (?, ?, ?)",
            [prompt.into(), Value::from(&step.label), step.to_version.into()],
        ),
        Some(from) => Statement::new(
            "UPDATE prompt_labels SET version = ? WHERE prompt = ? AND label = ? AND version = ?",
            [step.to_version.into(), prompt.into(), Value::from(&step.label), from.into()],
        ),
    };
    let log = Statement::new(
        "INSERT INTO prompt_label_moves (id, prompt, label, from_version, to_version, actor, reason, moved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            Value::from(&step.id),
            prompt.into(),
            Value::from(&step.label),
            step.from_version.into(),
            step.to_version.into(),
            Value::from(&step.actor),
            Value::from(&step.reason),
            step.moved_at.into(),
        ],
    );
    db.batch(&[place.expecting(1), log])
}

/// Moves of a prompt's labels, newest first; of one label when named.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn moves(db: &dyn Db, prompt: &str, label: Option<&str>) -> Result<Vec<LabelMove>, StoreError> {
    let select = "SELECT id, label, from_version, to_version, actor, reason, moved_at FROM prompt_label_moves WHERE prompt = ?";
    let found = match label {
        Some(label) => db.query(&format!("{select} AND label = ? ORDER BY id DESC"), &[prompt.into(), label.into()])?,
        None => db.query(&format!("{select} ORDER BY id DESC"), &[prompt.into()])?,
    };
    let read = |row: &Row| LabelMove {
        id: row.text(0),
        label: row.text(1),
        from_version: row.int_or_null(2),
        to_version: row.int(3),
        actor: row.text(4),
        reason: row.text(5),
        moved_at: row.int(6),
    };
    Ok(found.iter().map(read).collect())
}

/// A new move, timed now.
pub fn label_move(label: &str, from_version: Option<i64>, to_version: i64, actor: &str, reason: &str) -> LabelMove {
    let (id, label, actor, reason) = (ids::new_id("move"), label.to_string(), actor.to_string(), reason.to_string());
    LabelMove { id, label, from_version, to_version, actor, reason, moved_at: time::now_ms() }
}

fn rows(db: &dyn Db, sql: &str, params: &[Value]) -> Result<Vec<PromptVersion>, StoreError> {
    db.query(sql, params)?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<PromptVersion, StoreError> {
    let digest = row.text(2).parse().map_err(|error| StoreError::Corrupt(format!("prompt_versions.digest: {error}")))?;
    Ok(PromptVersion {
        prompt: row.text(0),
        version: row.int(1),
        digest,
        source: row.text(3),
        author: row.text(4),
        message: row.text(5),
        created_at: row.int(6),
    })
}
