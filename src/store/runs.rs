//! Evaluation runs: the run and what it measured (`run_targets`). Its cases are in [`cases`](super::cases).

use super::db::{Db, Row, Statement, StoreError, Value};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use serde::Serialize;
use serde_json::Value as Json;

pub use super::cases::{CaseRecord, cases, put_cases};

/// A run is going on, or was killed.
pub const RUNNING: &str = "running";
/// Every case has an answer: the run can prove a release.
pub const FINISHED: &str = "finished";
/// Some cases ended in an error; resuming runs them again.
pub const INCOMPLETE: &str = "incomplete";
/// Only a part of the split was asked for: proves nothing.
pub const PARTIAL: &str = "partial";
/// Stopped by a person; resuming runs the rest.
pub const CANCELLED: &str = "cancelled";
/// The money that the run may cost is spent; resuming with more runs the rest.
pub const OUT_OF_MONEY: &str = "out_of_money";
/// The time that the run may take is over; resuming runs the rest.
pub const OUT_OF_TIME: &str = "out_of_time";

/// Stored answers were scored, and no target was asked: proves nothing.
pub const SCORED: &str = "scored";

/// One execution of a suite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// `run_…`.
    pub id: String,
    /// Name of the suite.
    pub suite: String,
    /// Digest of the suite's source.
    pub suite_digest: Digest,
    /// Digest of its scorers; none in runs from before they were written down.
    pub scorers_digest: Option<Digest>,
    /// Dataset.
    pub dataset: String,
    /// Digest of the dataset version.
    pub dataset_digest: Digest,
    /// Split, `all` without one.
    pub split: String,
    /// [`RUNNING`], [`FINISHED`], [`INCOMPLETE`], [`PARTIAL`], [`CANCELLED`], [`OUT_OF_MONEY`], [`OUT_OF_TIME`] or [`SCORED`].
    pub status: String,
    /// Everything needed to resume.
    #[serde(skip)]
    pub config: Json,
    /// The report, `null` while running.
    #[serde(skip)]
    pub summary: Json,
    /// When, in milliseconds.
    pub created_at: i64,
    /// When it ended.
    pub finished_at: Option<i64>,
}

/// What a run measures: a target and the release it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct RunTarget {
    /// Name in the suite.
    pub target: String,
    /// Digest of the manifest.
    pub release: Digest,
    /// The manifest.
    pub manifest: Json,
    /// `{"<metric>": {"mean", "standard_error", "ci95"}}`, empty while running.
    pub metrics: Json,
}

const SELECT: &str = "SELECT id, suite, suite_digest, dataset, dataset_digest, split, status, config, summary, created_at, finished_at, scorers_digest FROM runs";

/// Stores a run that begins, with its targets.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn insert(db: &dyn Db, run: &RunRecord, targets: &[RunTarget]) -> Result<(), StoreError> {
    let params: [Value; 12] = [
        Value::from(&run.id),
        Value::from(&run.suite),
        run.suite_digest.into(),
        Value::from(&run.dataset),
        run.dataset_digest.into(),
        Value::from(&run.split),
        Value::from(&run.status),
        Value::from(&run.config),
        Value::from(&run.summary),
        run.created_at.into(),
        run.finished_at.into(),
        run.scorers_digest.into(),
    ];
    let mut statements = vec![Statement::new(
        "INSERT INTO runs (id, suite, suite_digest, dataset, dataset_digest, split, status, config, summary, created_at, finished_at,
         scorers_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params,
    )];
    statements.extend(targets.iter().map(|target| {
        let params = [
            Value::from(&run.id),
            Value::from(&target.target),
            target.release.into(),
            Value::from(&target.manifest),
            Value::from(&target.metrics),
        ];
        Statement::new("INSERT INTO run_targets (run, target, release, manifest, metrics) VALUES (?, ?, ?, ?, ?)", params)
    }));
    db.batch(&statements)
}

/// Sets how a run stands, with its report and the metrics of each target, in one transaction.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn finish(db: &dyn Db, run: &RunRecord, metrics: &[(String, Json)]) -> Result<(), StoreError> {
    let params = [Value::from(&run.status), Value::from(&run.summary), run.finished_at.into(), Value::from(&run.id)];
    let mut statements = vec![Statement::new("UPDATE runs SET status = ?, summary = ?, finished_at = ? WHERE id = ?", params).expecting(1)];
    statements.extend(metrics.iter().map(|(target, metrics)| {
        let params = [Value::from(metrics), Value::from(&run.id), Value::from(target)];
        Statement::new("UPDATE run_targets SET metrics = ? WHERE run = ? AND target = ?", params)
    }));
    db.batch(&statements)
}

/// A run by its id, or `latest`.
///
/// # Errors
/// [`StoreError::Unknown`] with the nearest id.
pub fn get(db: &dyn Db, id: &str) -> Result<RunRecord, StoreError> {
    let rows = match id {
        "latest" => db.query(&format!("{SELECT} ORDER BY id DESC LIMIT 1"), &[])?,
        id => db.query(&format!("{SELECT} WHERE id = ?"), &[id.into()])?,
    };
    if let Some(row) = rows.first() {
        return record(row);
    }
    let known: Vec<String> = list(db, None)?.into_iter().map(|run| run.id).collect();
    Err(StoreError::Unknown { what: "run", name: id.to_string(), nearest: did_you_mean(id, known.iter().map(String::as_str)) })
}

/// The newest run of the same suite before this one that ended and measured a target of this name.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn before(db: &dyn Db, run: &RunRecord, target: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT runs.id FROM runs JOIN run_targets ON run_targets.run = runs.id WHERE runs.suite = ? AND runs.id < ?
         AND runs.status IN ('finished', 'partial', 'incomplete') AND run_targets.target = ? ORDER BY runs.id DESC LIMIT 1";
    let rows = db.query(sql, &[Value::from(&run.suite), Value::from(&run.id), target.into()])?;
    Ok(rows.first().map(|row| row.text(0)))
}

/// Runs, newest first; of one suite when named.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn list(db: &dyn Db, suite: Option<&str>) -> Result<Vec<RunRecord>, StoreError> {
    let rows = match suite {
        Some(suite) => db.query(&format!("{SELECT} WHERE suite = ? ORDER BY id DESC"), &[suite.into()])?,
        None => db.query(&format!("{SELECT} ORDER BY id DESC"), &[])?,
    };
    rows.iter().map(record).collect()
}

/// Targets of a run, by name.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn targets(db: &dyn Db, run: &str) -> Result<Vec<RunTarget>, StoreError> {
    let sql = "SELECT target, release, manifest, metrics FROM run_targets WHERE run = ? ORDER BY target";
    let read = |row: &Row| Ok(RunTarget { target: row.text(0), release: row.digest(1)?, manifest: row.json(2)?, metrics: row.json(3)? });
    db.query(sql, &[run.into()])?.iter().map(read).collect()
}

/// Finished runs of a suite with a target whose prompt has this digest, newest first.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn measuring(db: &dyn Db, suite: &str, prompt: &Digest) -> Result<Vec<(RunRecord, RunTarget)>, StoreError> {
    let mut found = Vec::new();
    for run in list(db, Some(suite))?.into_iter().filter(|run| run.status == FINISHED) {
        let is_of = |target: &RunTarget| target.manifest["prompt"]["digest"] == prompt.to_string();
        found.extend(targets(db, &run.id)?.into_iter().filter(is_of).map(|target| (run.clone(), target)));
    }
    Ok(found)
}

fn record(row: &Row) -> Result<RunRecord, StoreError> {
    Ok(RunRecord {
        id: row.text(0),
        suite: row.text(1),
        suite_digest: row.digest(2)?,
        dataset: row.text(3),
        dataset_digest: row.digest(4)?,
        split: row.text(5),
        status: row.text(6),
        config: row.json(7)?,
        summary: row.json(8)?,
        created_at: row.int(9),
        finished_at: row.int_or_null(10),
        scorers_digest: row.text_or_null(11).map(|_| row.digest(11)).transpose()?,
    })
}
