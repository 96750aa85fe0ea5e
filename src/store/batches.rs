//! Rows of `batches`: many requests in one file, answered when there is time. The lease on the work is the row of `jobs` that each
//! names; status and counters live here.

use super::db::{Bulk, Db, Row, Statement, StoreError, Value};
use super::jobs;
use crate::types::Digest;
use crate::types::time::now_ms;
use serde_json::json;

/// Kind of a batch's job.
pub const JOB_KIND: &str = "batch";

/// Where a batch stands. The order is that of a life without trouble; `failed`, `expired` and `cancelled` are the other ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its lines are being checked; nothing has been asked yet.
    Validating,
    /// Its lines are being answered.
    InProgress,
    /// Its files are being written.
    Finalizing,
    /// Every line was answered, well or not.
    Completed,
    /// Its input was refused; nothing was asked.
    Failed,
    /// The time ran out.
    Expired,
    /// Somebody asked to cancel it.
    Cancelling,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    const ALL: [(Status, &'static str); 8] = [
        (Status::Validating, "validating"),
        (Status::InProgress, "in_progress"),
        (Status::Finalizing, "finalizing"),
        (Status::Completed, "completed"),
        (Status::Failed, "failed"),
        (Status::Expired, "expired"),
        (Status::Cancelling, "cancelling"),
        (Status::Cancelled, "cancelled"),
    ];

    /// The word on the wire and in the row; with `_at`, the column of its time.
    pub fn word(self) -> &'static str {
        Status::ALL.iter().find(|(status, _)| *status == self).map_or("", |(_, word)| word)
    }

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Expired | Status::Cancelled)
    }

    fn of(word: &str) -> Result<Self, StoreError> {
        let found = Status::ALL.iter().find(|(_, known)| *known == word).map(|(status, _)| *status);
        found.ok_or_else(|| StoreError::Corrupt(format!("a batch is {word:?}")))
    }
}

/// How far a batch is, and what it cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines in all.
    pub total: u64,
    /// Answered well.
    pub completed: u64,
    /// Not answered well.
    pub failed: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Of those, read from a cache.
    pub cached_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of those, thoughts.
    pub reasoning_tokens: u64,
}

/// One batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRow {
    /// `batch_…`.
    pub id: String,
    /// Project (tenant) it belongs to; no other sees it.
    pub project: String,
    /// Key that made it and on whose behalf its lines are asked.
    pub api_key: String,
    /// Its job.
    pub job: String,
    /// Path that every line asks.
    pub endpoint: String,
    /// File with the lines.
    pub input_file: String,
    /// `24h`.
    pub completion_window: String,
    /// The caller's labels: a JSON object or null.
    pub metadata: serde_json::Value,
    /// Seconds that its files live.
    pub output_expires_s: Option<i64>,
    /// The client's `Idempotency-Key`.
    pub retry_key: Option<String>,
    /// Of the request that made it.
    pub request_digest: Digest,
    /// Where it stands.
    pub status: Status,
    /// What its lines name in `model`, where that is one name.
    pub model: Option<String>,
    /// Why it failed: a list of `{code, message, param, line}`.
    pub errors: serde_json::Value,
    /// How far it is.
    pub counts: Counts,
    /// File with the good answers.
    pub output_file: Option<String>,
    /// File with the bad ones.
    pub error_file: Option<String>,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When it ends at the latest.
    pub expires_at: i64,
    /// When it got to each status, as `(status, milliseconds)`.
    pub times: Vec<(Status, i64)>,
}

const COLUMNS: &str = "id, project, api_key, job, endpoint, input_file, completion_window, metadata, output_expires_s, retry_key,
    request_digest, status, model, errors, total, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
    output_file, error_file, created_at, expires_at, in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at,
    cancelled_at";
/// The statuses whose times are the last columns, in their order.
const TIMED: [Status; 7] =
    [Status::InProgress, Status::Finalizing, Status::Completed, Status::Failed, Status::Expired, Status::Cancelling, Status::Cancelled];
/// The statuses of a batch that still reads its input, for SQL.
pub(super) const UNFINISHED: &str = "('validating', 'in_progress', 'finalizing', 'cancelling')";

/// Stores a new batch and queues its job, or neither.
///
/// # Errors
/// [`StoreError::Conflict`] when the project has a batch with that retry key, or no longer the input file.
pub fn insert(db: &dyn Db, batch: &BatchRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO batches (id, project, api_key, job, endpoint, input_file, completion_window, metadata, output_expires_s,
        retry_key, request_digest, status, errors, total, completed, failed, input_tokens, cached_tokens, output_tokens,
        reasoning_tokens, created_at, expires_at)
        SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '[]', 0, 0, 0, 0, 0, 0, 0, ?, ?
        WHERE EXISTS (SELECT 1 FROM files WHERE id = ? AND project = ?)";
    let params = [
        Value::from(&batch.id),
        (&batch.project).into(),
        (&batch.api_key).into(),
        (&batch.job).into(),
        (&batch.endpoint).into(),
        (&batch.input_file).into(),
        (&batch.completion_window).into(),
        (&batch.metadata).into(),
        batch.output_expires_s.into(),
        batch.retry_key.clone().into(),
        batch.request_digest.into(),
        batch.status.word().into(),
        batch.created_at.into(),
        batch.expires_at.into(),
        (&batch.input_file).into(),
        (&batch.project).into(),
    ];
    db.batch(&[jobs::queueing(&batch.job, JOB_KIND, &json!({"batch": batch.id})), Statement::new(sql, params).expecting(1)])
}

/// A project's batch.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none of that id, or it is another project's.
pub fn get(db: &dyn Db, project: &str, id: &str) -> Result<BatchRow, StoreError> {
    one(db, "id = ? AND project = ?", &[id.into(), project.into()])?.ok_or_else(|| unknown(id))
}

/// The batch that a job works on.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn of_job(db: &dyn Db, job: &str) -> Result<BatchRow, StoreError> {
    one(db, "job = ?", &[job.into()])?.ok_or_else(|| unknown(job))
}

/// The batch that a project made with a retry key.
///
/// # Errors
/// When the database fails.
pub fn of_retry(db: &dyn Db, project: &str, retry_key: &str) -> Result<Option<BatchRow>, StoreError> {
    one(db, "project = ? AND retry_key = ?", &[project.into(), retry_key.into()])
}

fn unknown(id: &str) -> StoreError {
    StoreError::Unknown { what: "batch", name: id.to_string(), nearest: String::new() }
}

/// One page of a project's batches, newest first, and whether more follow.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db, project: &str, after: Option<&str>, limit: usize) -> Result<(Vec<BatchRow>, bool), StoreError> {
    let (mut condition, mut params): (_, Vec<Value>) = ("project = ?".to_string(), vec![project.into()]);
    if let Some(after) = after {
        condition.push_str(" AND id < ?");
        params.push(after.into());
    }
    params.push((limit + 1).into());
    let sql = format!("SELECT {COLUMNS} FROM batches WHERE {condition} ORDER BY id DESC LIMIT ?");
    let mut rows = db.query(&sql, &params)?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    Ok((rows, more))
}

/// Queued batches, oldest first: `(job, project)`.
///
/// # Errors
/// When the database fails.
pub fn queued(db: &dyn Db) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT jobs.id, batches.project FROM jobs JOIN batches ON batches.job = jobs.id
        WHERE jobs.status = 'queued' AND jobs.kind = ? ORDER BY jobs.created_at, jobs.id";
    Ok(db.query(sql, &[JOB_KIND.into()])?.iter().map(|row| (row.text(0), row.text(1))).collect())
}

/// Whether a batch is there that has not ended.
///
/// # Errors
/// When the database fails.
pub fn is_unfinished(db: &dyn Db, id: &str) -> Result<bool, StoreError> {
    let sql = format!("SELECT 1 FROM batches WHERE id = ? AND status IN {UNFINISHED}");
    Ok(!db.query(&sql, &[id.into()])?.is_empty())
}

/// A batch that still reads this file.
///
/// # Errors
/// When the database fails.
pub fn reading(db: &dyn Db, file: &str) -> Result<Option<String>, StoreError> {
    let sql = format!("SELECT id FROM batches WHERE input_file = ? AND status IN {UNFINISHED} LIMIT 1");
    Ok(db.query(&sql, &[file.into()])?.first().map(|row| row.text(0)))
}

/// Stores how far a batch is, without a new generation: nothing in memory is made of it.
///
/// # Errors
/// When the database fails.
pub fn count(db: &dyn Db, id: &str, counts: &Counts) -> Result<(), StoreError> {
    db.batch_apart(&Bulk::empty(), &[counting(id, counts)])
}

/// The statement of [`count`].
pub fn counting(id: &str, counts: &Counts) -> Statement {
    let sql = "UPDATE batches SET total = ?, completed = ?, failed = ?, input_tokens = ?, cached_tokens = ?, output_tokens = ?,
        reasoning_tokens = ? WHERE id = ?";
    let Counts { total, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens } = *counts;
    let numbers = [total, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens];
    let params: Vec<Value> = numbers.into_iter().map(Value::from).chain([id.into()]).collect();
    Statement::new(sql, params)
}

/// The statement that takes a batch from one of some statuses to another; it expects that the batch was there.
pub fn advancing(id: &str, from: &[Status], to: Status) -> Statement {
    let known: Vec<_> = from.iter().map(|status| format!("'{}'", status.word())).collect();
    let word = to.word();
    let sql =
        format!("UPDATE batches SET status = ?, {word}_at = COALESCE({word}_at, ?) WHERE id = ? AND status IN ({})", known.join(", "));
    Statement::new(sql, [word.into(), now_ms().into(), id.into()]).expecting(1)
}

/// The statement that names what a batch's lines ask for.
pub fn naming_model(id: &str, model: Option<&str>) -> Statement {
    Statement::new("UPDATE batches SET model = ? WHERE id = ?", [model.map(str::to_string).into(), id.into()])
}

/// The statement that says why a batch failed.
pub fn failing(id: &str, errors: &serde_json::Value) -> Statement {
    Statement::new("UPDATE batches SET errors = ? WHERE id = ?", [errors.into(), id.into()])
}

/// The statement that names a batch's files.
pub fn filing(id: &str, output: Option<&str>, error: Option<&str>) -> Statement {
    let texts = [output, error].map(|file| Value::from(file.map(str::to_string)));
    let [output, error] = texts;
    Statement::new("UPDATE batches SET output_file = ?, error_file = ? WHERE id = ?", [output, error, id.into()])
}

/// Asks for cancellation. A batch that nobody works on yet is cancelled at once; one that has begun is `cancelling` until its worker
/// has stopped; one that ended stays as it is.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn request_cancel(db: &dyn Db, project: &str, id: &str) -> Result<BatchRow, StoreError> {
    let batch = get(db, project, id)?;
    let running = [Status::Validating, Status::InProgress];
    let queued =
        "UPDATE jobs SET status = 'cancelled', cancel_requested = 1, finished_at = ? WHERE id = ? AND status = 'queued' AND attempts = 0";
    let cancelled =
        [Statement::new(queued, [now_ms().into(), (&batch.job).into()]).expecting(1), advancing(id, &running, Status::Cancelled)];
    match db.batch(&cancelled) {
        Err(StoreError::Conflict(_)) => {}
        other => return other.and_then(|()| get(db, project, id)),
    }
    let asked = "UPDATE jobs SET cancel_requested = 1 WHERE id = ?";
    match db.batch(&[advancing(id, &running, Status::Cancelling), Statement::new(asked, [(&batch.job).into()])]) {
        Err(StoreError::Conflict(_)) | Ok(()) => get(db, project, id),
        Err(error) => Err(error),
    }
}

fn one(db: &dyn Db, condition: &str, params: &[Value]) -> Result<Option<BatchRow>, StoreError> {
    db.query(&format!("SELECT {COLUMNS} FROM batches WHERE {condition}"), params)?.first().map(read).transpose()
}

fn read(row: &Row) -> Result<BatchRow, StoreError> {
    let number = |column| u64::try_from(row.int(column)).unwrap_or(0);
    let times = TIMED.iter().enumerate().filter_map(|(i, status)| Some((*status, row.int_or_null(25 + i)?)));
    Ok(BatchRow {
        id: row.text(0),
        project: row.text(1),
        api_key: row.text(2),
        job: row.text(3),
        endpoint: row.text(4),
        input_file: row.text(5),
        completion_window: row.text(6),
        metadata: row.json(7)?,
        output_expires_s: row.int_or_null(8),
        retry_key: row.text_or_null(9),
        request_digest: row.digest(10)?,
        status: Status::of(&row.text(11))?,
        model: row.text_or_null(12),
        errors: row.json(13)?,
        counts: Counts {
            total: number(14),
            completed: number(15),
            failed: number(16),
            input_tokens: number(17),
            cached_tokens: number(18),
            output_tokens: number(19),
            reasoning_tokens: number(20),
        },
        output_file: row.text_or_null(21),
        error_file: row.text_or_null(22),
        created_at: row.int(23),
        expires_at: row.int(24),
        times: times.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn batch(id: &str, retry_key: Option<&str>) -> BatchRow {
        BatchRow {
            id: id.into(),
            project: "a".into(),
            api_key: "key_1".into(),
            job: format!("job_{id}"),
            endpoint: "/v1/chat/completions".into(),
            input_file: "file-1".into(),
            completion_window: "24h".into(),
            metadata: json!({"x": "y"}),
            output_expires_s: None,
            retry_key: retry_key.map(str::to_string),
            request_digest: Digest::of(b"r"),
            status: Status::Validating,
            model: None,
            errors: json!([]),
            counts: Counts::default(),
            output_file: None,
            error_file: None,
            created_at: 1,
            expires_at: 2,
            times: Vec::new(),
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let sql = "INSERT INTO files (id, project, filename, purpose, digest, size_bytes, created_by, created_at)
            VALUES ('file-1', 'a', 'x', 'batch', '', 0, '', 0)";
        store.db.execute(sql, &[]).expect("an input file");
        (directory, store)
    }

    #[test]
    fn a_batch_and_its_job_come_together_and_a_retry_makes_no_second() {
        let (_directory, store) = store();
        let db = store.db.as_ref();
        insert(db, &batch("b1", Some("k"))).expect("made");
        assert!(matches!(insert(db, &batch("b2", Some("k"))), Err(StoreError::Conflict(_))));
        assert!(jobs::get(db, "job_b2").is_err(), "the job went with it");
        let fileless = BatchRow { input_file: "file-2".into(), ..batch("b5", None) };
        assert!(matches!(insert(db, &fileless), Err(StoreError::Conflict(_))), "its file is gone");
        insert(db, &batch("b3", None)).and_then(|()| insert(db, &batch("b4", None))).expect("without a key");
        assert_eq!(get(db, "a", "b1").expect("there"), batch("b1", Some("k")));
        assert_eq!(of_retry(db, "a", "k").expect("looked up").map(|row| row.id).as_deref(), Some("b1"));
        assert!(matches!(get(db, "b", "b1"), Err(StoreError::Unknown { .. })), "another project's");
        assert_eq!(reading(db, "file-1").expect("looked up").as_deref(), Some("b1"));
    }

    #[test]
    fn cancelling_waits_for_a_worker_and_never_brings_an_end_back() {
        let (_directory, store) = store();
        let db = store.db.as_ref();
        insert(db, &batch("b1", None)).expect("made");
        assert_eq!(request_cancel(db, "a", "b1").expect("asked").status, Status::Cancelled, "nobody had begun");
        insert(db, &batch("b2", None)).expect("made");
        jobs::claim_one(db, jobs::Lease { job: "job_b2", owner: "w", lease_ms: 1_000 }).expect("a claim").expect("the job");
        db.batch(&[advancing("b2", &[Status::Validating], Status::InProgress)]).expect("begun");
        assert_eq!(request_cancel(db, "a", "b2").expect("asked").status, Status::Cancelling);
        assert!(jobs::get(db, "job_b2").expect("there").cancel_requested);
        let ended = get(db, "a", "b2").expect("there");
        assert_eq!(request_cancel(db, "a", "b2").expect("asked again"), ended);
        assert!(db.batch(&[advancing("b2", &[Status::InProgress], Status::Completed)]).is_err());
    }
}
