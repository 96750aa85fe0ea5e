//! Prompt versions (immutable), labels, the log of label moves, and what files and the library agreed on last.

use super::db::{Db, Row, Statement, StoreError, Value};
use crate::types::{Digest, ids, time};
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

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
    /// Digest of the version that it was edited from, where somebody said.
    pub parent: Option<Digest>,
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
    /// Where it is now; 0, written as `null`, when it was taken away.
    #[serde(serialize_with = "number_or_null")]
    pub to_version: i64,
    /// Who moved it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in milliseconds.
    pub moved_at: i64,
    /// What it was.
    pub kind: Kind,
    /// The run that proved the version, or why the gate was set aside; `null` where nothing was to be proved.
    pub detail: Json,
}

/// What moved a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was pointed at a version.
    Promote,
    /// It went back to where it stood before.
    Rollback,
    /// It was taken away.
    Remove,
}

impl Kind {
    /// Every kind with its word.
    const ALL: [(Kind, &'static str); 3] = [(Kind::Promote, "promote"), (Kind::Rollback, "rollback"), (Kind::Remove, "remove")];

    /// The kind's word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Promote => "promote",
            Kind::Rollback => "rollback",
            Kind::Remove => "remove",
        }
    }
}

/// What a file and the library agreed on last.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncedFile {
    /// Absolute path.
    pub path: String,
    /// Name of the prompt.
    pub prompt: String,
    /// Digest that both had.
    pub digest: Digest,
}

const VERSION: &str = "SELECT prompt, version, digest, source, author, message, created_at, parent FROM prompt_versions";
const MOVE: &str = "SELECT id, label, from_version, to_version, actor, reason, moved_at, kind, detail FROM prompt_label_moves";

/// What stores a version; in a batch it is a conflict when the same content or number was stored meanwhile.
pub fn insert(version: &PromptVersion) -> Statement {
    Statement::new(
        "INSERT INTO prompt_versions (prompt, version, digest, source, author, message, created_at, parent) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            Value::from(&version.prompt),
            version.version.into(),
            version.digest.into(),
            Value::from(&version.source),
            Value::from(&version.author),
            Value::from(&version.message),
            version.created_at.into(),
            version.parent.into(),
        ],
    )
}

/// The newest version of a prompt.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn newest_of(db: &dyn Db, prompt: &str) -> Result<Option<PromptVersion>, StoreError> {
    Ok(rows(db, &format!("{VERSION} WHERE prompt = ? ORDER BY version DESC LIMIT 1"), &[prompt.into()])?.pop())
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

/// A prompt's name with its newest version, or with a label and the version that it points at.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Name.
    pub prompt: String,
    /// The label; none for the prompt itself.
    pub label: Option<String>,
    /// Number of the version.
    pub version: i64,
}

/// Every name that a reference could say, without any source: prompts and their labels.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn known(db: &dyn Db) -> Result<Vec<Known>, StoreError> {
    let sql = "SELECT prompt, NULL AS label, MAX(version) AS version FROM prompt_versions GROUP BY prompt
         UNION ALL SELECT prompt, label, version FROM prompt_labels ORDER BY prompt, label";
    let read = |row: &Row| Known { prompt: row.text(0), label: row.text_or_null(1), version: row.int(2) };
    Ok(db.query(sql, &[])?.iter().map(read).collect())
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

/// What moves a label from where the caller saw it and logs the move; in a batch it is a conflict when the label was moved meanwhile.
pub fn move_label(prompt: &str, step: &LabelMove) -> Vec<Statement> {
    let place = match (step.from_version, step.to_version) {
        (Some(from), 0) => Statement::new(
            "DELETE FROM prompt_labels WHERE prompt = ? AND label = ? AND version = ?",
            [prompt.into(), Value::from(&step.label), from.into()],
        ),
        (None, to) => Statement::new(
            "INSERT INTO prompt_labels (prompt, label, version) VALUES (?, ?, ?)",
            [prompt.into(), Value::from(&step.label), to.into()],
        ),
        (Some(from), to) => Statement::new(
            "UPDATE prompt_labels SET version = ? WHERE prompt = ? AND label = ? AND version = ?",
            [to.into(), prompt.into(), Value::from(&step.label), from.into()],
        ),
    };
    let log = Statement::new(
        "INSERT INTO prompt_label_moves (id, prompt, label, from_version, to_version, actor, reason, moved_at, kind, detail)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            Value::from(&step.id),
            prompt.into(),
            Value::from(&step.label),
            step.from_version.into(),
            step.to_version.into(),
            Value::from(&step.actor),
            Value::from(&step.reason),
            step.moved_at.into(),
            step.kind.word().into(),
            Value::from(&step.detail),
        ],
    );
    vec![place.expecting(1), log]
}

/// Moves of a prompt's labels, newest first; of one label when named.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn moves(db: &dyn Db, prompt: &str, label: Option<&str>) -> Result<Vec<LabelMove>, StoreError> {
    let found = match label {
        Some(label) => db.query(&format!("{MOVE} WHERE prompt = ? AND label = ? ORDER BY id DESC"), &[prompt.into(), label.into()])?,
        None => db.query(&format!("{MOVE} WHERE prompt = ? ORDER BY id DESC"), &[prompt.into()])?,
    };
    found.iter().map(read_move).collect()
}

fn read_move(row: &Row) -> Result<LabelMove, StoreError> {
    let reason = row.text(5);
    let word = row.text_or_null(7);
    let kind = word.and_then(|word| Kind::ALL.into_iter().find(|(_, known)| *known == word).map(|(kind, _)| kind));
    // Rows from before kinds were kept say it in their reason.
    let kind = kind.unwrap_or(if reason.starts_with("rollback") { Kind::Rollback } else { Kind::Promote });
    Ok(LabelMove {
        id: row.text(0),
        label: row.text(1),
        from_version: row.int_or_null(2),
        to_version: row.int(3),
        actor: row.text(4),
        moved_at: row.int(6),
        detail: if row.text_or_null(8).is_some() { row.json(8)? } else { Json::Null },
        reason,
        kind,
    })
}

/// What one file and the library agreed on last.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn synced(db: &dyn Db, path: &str, prompt: &str) -> Result<Option<Digest>, StoreError> {
    let rows = db.query("SELECT digest FROM prompt_files WHERE path = ? AND prompt = ?", &[path.into(), prompt.into()])?;
    rows.first().map(|row| row.digest(0)).transpose()
}

/// What keeps what a file and the library agree on now.
pub fn put_synced(file: &SyncedFile) -> Statement {
    Statement::new(
        "INSERT INTO prompt_files (path, prompt, digest, synced_at) VALUES (?, ?, ?, ?)
         ON CONFLICT (path, prompt) DO UPDATE SET digest = excluded.digest, synced_at = excluded.synced_at",
        [Value::from(&file.path), Value::from(&file.prompt), file.digest.into(), time::now_ms().into()],
    )
}

/// A new move, timed now.
pub fn label_move(label: &str, from_version: Option<i64>, to_version: i64, kind: Kind) -> LabelMove {
    let (actor, reason, detail) = (String::new(), String::new(), Json::Null);
    let (id, label) = (ids::new_id("move"), label.to_string());
    LabelMove { id, label, from_version, to_version, actor, reason, moved_at: time::now_ms(), kind, detail }
}

fn number_or_null<S: Serializer>(version: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    Some(*version).filter(|version| *version > 0).serialize(serializer)
}

fn rows(db: &dyn Db, sql: &str, params: &[Value]) -> Result<Vec<PromptVersion>, StoreError> {
    db.query(sql, params)?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<PromptVersion, StoreError> {
    Ok(PromptVersion {
        prompt: row.text(0),
        version: row.int(1),
        digest: row.digest(2)?,
        source: row.text(3),
        author: row.text(4),
        message: row.text(5),
        created_at: row.int(6),
        parent: row.text_or_null(7).map(|_| row.digest(7)).transpose()?,
    })
}
