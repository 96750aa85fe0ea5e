//! Evaluation runs: the run, what it measured (`run_targets`) and one row per case (`run_samples`), which is where a run resumes.

use super::db::{Db, Row, Statement, StoreError, Value};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use serde::Serialize;
use serde_json::Value as Json;

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

/// One execution of a suite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// `run_…`.
    pub id: String,
    /// Name of the suite.
    pub suite: String,
    /// Digest of the suite's source.
    pub suite_digest: Digest,
    /// Dataset.
    pub dataset: String,
    /// Digest of the dataset version.
    pub dataset_digest: Digest,
    /// Split, `all` without one.
    pub split: String,
    /// [`RUNNING`], [`FINISHED`], [`INCOMPLETE`], [`PARTIAL`] or [`CANCELLED`].
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

/// The outcome of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseRecord {
    /// Target.
    pub target: String,
    /// Sample id.
    pub sample: String,
    /// Place in the split, from 0.
    pub position: usize,
    /// The model's text, empty when it failed.
    pub output: String,
    /// Why there is no answer: the third outcome beside right and wrong.
    pub error: Option<String>,
    /// Value per metric.
    pub scores: Json,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Milliseconds to the answer.
    pub latency_ms: f64,
    /// When, in milliseconds.
    pub finished_at: i64,
}

const SELECT: &str =
    "SELECT id, suite, suite_digest, dataset, dataset_digest, split, status, config, summary, created_at, finished_at FROM runs";

/// Stores a run that begins, with its targets.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn insert(db: &dyn Db, run: &RunRecord, targets: &[RunTarget]) -> Result<(), StoreError> {
    let params: [Value; 11] = [
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
    ];
    let mut statements = vec![Statement::new(
        "INSERT INTO runs (id, suite, suite_digest, dataset, dataset_digest, split, status, config, summary, created_at, finished_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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

/// Stores outcomes in one transaction; a case that had one before gets the new one.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn put_cases(db: &dyn Db, run: &str, cases: &[CaseRecord]) -> Result<(), StoreError> {
    const UPSERT: &str =
        "INSERT INTO run_samples (run, target, sample, repeat_index, position, status, output, error, scores, input_tokens,
         output_tokens, latency_ms, finished_at) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (run, target, sample, repeat_index) DO UPDATE SET status = excluded.status, output = excluded.output,
         error = excluded.error, scores = excluded.scores, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
         latency_ms = excluded.latency_ms, finished_at = excluded.finished_at";
    let statement = |case: &CaseRecord| {
        let params: [Value; 12] = [
            run.into(),
            Value::from(&case.target),
            Value::from(&case.sample),
            case.position.into(),
            if case.error.is_some() { "error" } else { "scored" }.into(),
            Value::from(&case.output),
            case.error.clone().into(),
            Value::from(&case.scores),
            case.input_tokens.into(),
            case.output_tokens.into(),
            case.latency_ms.into(),
            case.finished_at.into(),
        ];
        Statement::new(UPSERT, params)
    };
    db.batch(&cases.iter().map(statement).collect::<Vec<_>>())
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

/// Outcomes of a run in the order of the split.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn cases(db: &dyn Db, run: &str) -> Result<Vec<CaseRecord>, StoreError> {
    let sql = "SELECT target, sample, position, output, error, scores, input_tokens, output_tokens, latency_ms, finished_at
         FROM run_samples WHERE run = ? ORDER BY target, position";
    let read = |row: &Row| {
        Ok(CaseRecord {
            target: row.text(0),
            sample: row.text(1),
            position: row.int(2).unsigned_abs() as usize,
            output: row.text(3),
            error: row.text_or_null(4),
            scores: row.json(5)?,
            input_tokens: row.int(6).unsigned_abs(),
            output_tokens: row.int(7).unsigned_abs(),
            latency_ms: row.real_or_null(8).unwrap_or(0.0),
            finished_at: row.int(9),
        })
    };
    db.query(sql, &[run.into()])?.iter().map(read).collect()
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
    })
}
