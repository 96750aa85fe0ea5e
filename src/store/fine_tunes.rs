//! The `fine_tunes` table: OpenAI's fine-tuning API. How far a training is stands in its job's row, which is read together with it.

use super::db::{Db, Row, Statement, StoreError, Value};
use super::jobs::{self, JobRecord};
use crate::types::time::now_ms;
use serde_json::Value as Json;

/// The kind of the jobs that train for it.
pub const JOB_KIND: &str = "fine_tune";

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuneRow {
    /// `ftjob_…`.
    pub id: String,
    /// Project (tenant) it belongs to; no other sees it.
    pub project: String,
    /// Key that made it.
    pub api_key: String,
    /// The job that trains here; none where a provider does.
    pub job: Option<String>,
    /// As the caller wrote it: `local/<model>`, `<provider>/<model>`.
    pub model: String,
    /// What the adapter is called.
    pub name: String,
    /// File that is trained on.
    pub training_file: String,
    /// File that is measured on.
    pub validation_file: Option<String>,
    /// Seed, suffix, method and hyperparameters.
    pub asked: Json,
    /// The caller's labels: an object or null.
    pub metadata: Json,
    /// `{"provider", "files", "answer"}`: who trains, the ids of the files there, and its newest answer; null where it trains here.
    pub upstream: Json,
    /// Whether the caller asked it to pause.
    pub is_paused: bool,
    /// File with the numbers of its steps.
    pub result_file: Option<String>,
    /// When it was made, milliseconds.
    pub created_at: i64,
}

const COLUMNS: &str = "id, project, api_key, job, model, name, training_file, validation_file, asked, metadata, upstream, is_paused, \
    result_file, created_at";

/// What a file's row must be for a fine-tune that is made: there, and the project's.
const FILE_IS_THERE: &str = "UPDATE files SET project = project WHERE id = ? AND project = ?";

/// Stores one with its job, together or not at all.
///
/// # Errors
/// [`StoreError::Conflict`] when a file was deleted meanwhile; what the database says when the name was taken meanwhile.
pub fn insert(db: &dyn Db, row: &FineTuneRow, spec: Option<&Json>) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO fine_tunes ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    let params: [Value; 14] = [
        (&row.id).into(),
        (&row.project).into(),
        (&row.api_key).into(),
        row.job.clone().into(),
        (&row.model).into(),
        (&row.name).into(),
        (&row.training_file).into(),
        row.validation_file.clone().into(),
        (&row.asked).into(),
        (&row.metadata).into(),
        (&row.upstream).into(),
        row.is_paused.into(),
        row.result_file.clone().into(),
        row.created_at.into(),
    ];
    let files = std::iter::once(&row.training_file).chain(&row.validation_file);
    let mut statements: Vec<_> =
        files.map(|file| Statement::new(FILE_IS_THERE, [file.into(), (&row.project).into()]).expecting(1)).collect();
    statements.push(Statement::new(sql, params));
    if let (Some(job), Some(spec)) = (&row.job, spec) {
        statements.push(jobs::queueing(job, JOB_KIND, spec));
    }
    db.batch(&statements)
}

/// One of a project, with its job.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none of that id, or it is another project's.
pub fn get(db: &dyn Db, project: &str, id: &str) -> Result<(FineTuneRow, Option<JobRecord>), StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM fine_tunes WHERE id = ? AND project = ?"), &[id.into(), project.into()])?;
    let unknown = || StoreError::Unknown { what: "fine-tuning job", name: id.to_string(), nearest: String::new() };
    with_job(db, read(rows.first().ok_or_else(unknown)?)?)
}

/// The one that a job trains for.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn of_job(db: &dyn Db, job: &str) -> Result<FineTuneRow, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM fine_tunes WHERE job = ?"), &[job.into()])?;
    let unknown = || StoreError::Unknown { what: "fine-tuning job", name: job.to_string(), nearest: String::new() };
    read(rows.first().ok_or_else(unknown)?)
}

fn with_job(db: &dyn Db, row: FineTuneRow) -> Result<(FineTuneRow, Option<JobRecord>), StoreError> {
    let job = row.job.as_deref().map(|job| jobs::get(db, job)).transpose()?;
    Ok((row, job))
}

/// One with its job.
pub type WithJob = (FineTuneRow, Option<JobRecord>);

/// One page of a project's, newest first, only those with these labels, and whether more follow.
///
/// # Errors
/// What the database says.
pub fn list(
    db: &dyn Db,
    project: &str,
    (after, limit): (Option<&str>, usize),
    labels: &[(String, String)],
) -> Result<(Vec<WithJob>, bool), StoreError> {
    let (mut found, mut from) = (Vec::new(), after.map(String::from));
    loop {
        let mut params: Vec<Value> = vec![project.into()];
        let mut sql = format!("SELECT {COLUMNS} FROM fine_tunes WHERE project = ?");
        if let Some(after) = &from {
            sql.push_str(" AND id < ?");
            params.push(after.into());
        }
        sql.push_str(" ORDER BY id DESC LIMIT ?");
        params.push((limit + 1).into());
        let rows = db.query(&sql, &params)?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let is_last = rows.len() <= limit;
        from = rows.last().map(|row| row.id.clone());
        let has = |row: &FineTuneRow| labels.iter().all(|(name, value)| row.metadata[name] == value.as_str());
        for row in rows.into_iter().filter(has) {
            if found.len() == limit {
                return Ok((found, true));
            }
            found.push(with_job(db, row)?);
        }
        if is_last {
            return Ok((found, false));
        }
    }
}

/// Jobs that wait for a worker, oldest first.
///
/// # Errors
/// What the database says.
pub fn queued(db: &dyn Db) -> Result<Vec<JobRecord>, StoreError> {
    let sql = "SELECT id FROM jobs WHERE kind = ? AND status = 'queued' ORDER BY created_at, id LIMIT 8";
    db.query(sql, &[JOB_KIND.into()])?.iter().map(|row| jobs::get(db, &row.text(0))).collect()
}

/// How many jobs a worker of any process holds.
///
/// # Errors
/// What the database says.
pub fn running(db: &dyn Db) -> Result<usize, StoreError> {
    let rows = db.query("SELECT COUNT(*) FROM jobs WHERE kind = ? AND status = 'running'", &[JOB_KIND.into()])?;
    Ok(rows.first().map_or(0, |row| usize::try_from(row.int(0)).unwrap_or(0)))
}

/// Whether an adapter's name is given to one already.
///
/// # Errors
/// What the database says.
pub fn is_taken(db: &dyn Db, model: &str, name: &str) -> Result<bool, StoreError> {
    let rows = db.query("SELECT id FROM fine_tunes WHERE model = ? AND name = ? LIMIT 1", &[model.into(), name.into()])?;
    Ok(!rows.is_empty())
}

/// The one that still needs a file.
///
/// # Errors
/// What the database says.
pub fn reading(db: &dyn Db, file: &str) -> Result<Option<String>, StoreError> {
    let sql = format!("SELECT id FROM fine_tunes WHERE {READS}");
    Ok(db.query(&sql, &[file.into(), file.into()])?.first().map(|row| row.text(0)))
}

/// Condition on `fine_tunes`: it names the file, and its job has not ended. A paused one goes on from its file.
pub(super) const READS: &str = "(training_file = ? OR validation_file = ?) AND job IN (SELECT id FROM jobs WHERE kind = 'fine_tune' \
    AND (status IN ('queued', 'running') OR (status = 'cancelled' AND is_paused = 1)))";

/// Stops one so that it can go on; it and its job change together.
///
/// # Errors
/// [`StoreError::Conflict`] when its job has ended or is stopping already.
pub fn pause(db: &dyn Db, id: &str, job: &str) -> Result<(), StoreError> {
    let goes_on = "SELECT id FROM jobs WHERE status IN ('queued', 'running') AND cancel_requested = 0";
    stop(db, (id, job), true, goes_on)
}

/// Stops one for good, also where it is paused; it and its job change together.
///
/// # Errors
/// [`StoreError::Conflict`] when its job has ended.
pub fn cancel(db: &dyn Db, id: &str, job: &str) -> Result<(), StoreError> {
    let can_go_on = "SELECT id FROM jobs WHERE status IN ('queued', 'running') OR (status = 'cancelled' AND is_paused = 1)";
    stop(db, (id, job), false, can_go_on)
}

fn stop(db: &dyn Db, (id, job): (&str, &str), is_paused: bool, jobs_that_can: &str) -> Result<(), StoreError> {
    let sql = format!("UPDATE fine_tunes SET is_paused = ? WHERE id = ? AND job IN ({jobs_that_can})");
    let mut statements = vec![Statement::new(sql, [is_paused.into(), id.into()]).expecting(1)];
    statements.extend(jobs::cancelling(job));
    db.batch(&statements)
}

/// Queues a paused one again; it and its job change together.
///
/// # Errors
/// [`StoreError::Conflict`] when it is not paused, or its worker has not stopped yet.
pub fn resume(db: &dyn Db, id: &str, job: &str) -> Result<(), StoreError> {
    let sql = "UPDATE fine_tunes SET is_paused = 0 WHERE id = ? AND is_paused = 1
        AND job IN (SELECT id FROM jobs WHERE status = 'cancelled')";
    db.batch(&[Statement::new(sql, [id.into()]).expecting(1), jobs::requeueing(job)])
}

/// The statement that names the file with the numbers.
pub fn filing(id: &str, file: &str) -> Statement {
    Statement::new("UPDATE fine_tunes SET result_file = ? WHERE id = ?", [file.into(), id.into()]).expecting(1)
}

/// Keeps a provider's newest answer.
///
/// # Errors
/// What the database says.
pub fn answered(db: &dyn Db, id: &str, upstream: &Json) -> Result<(), StoreError> {
    db.execute("UPDATE fine_tunes SET upstream = ? WHERE id = ?", &[upstream.into(), id.into()]).map(drop)
}

/// Fails a job that nobody holds.
///
/// # Errors
/// What the database says.
pub fn give_up(db: &dyn Db, job: &str, reason: &str) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET status = 'failed', error = ?, finished_at = ? WHERE id = ? AND status = 'queued'";
    db.execute(sql, &[reason.into(), now_ms().into(), job.into()]).map(drop)
}

fn read(row: &Row) -> Result<FineTuneRow, StoreError> {
    Ok(FineTuneRow {
        id: row.text(0),
        project: row.text(1),
        api_key: row.text(2),
        job: row.text_or_null(3),
        model: row.text(4),
        name: row.text(5),
        training_file: row.text(6),
        validation_file: row.text_or_null(7),
        asked: row.json(8)?,
        metadata: row.json(9)?,
        upstream: row.json(10)?,
        is_paused: row.int(11) != 0,
        result_file: row.text_or_null(12),
        created_at: row.int(13),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::jobs::{End, Lease};
    use serde_json::json;

    /// A store with one of them, whose job is queued.
    fn store() -> (tempfile::TempDir, Store, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let job = jobs::enqueue(store.db.as_ref(), JOB_KIND, &json!({})).expect("queued").id;
        let sql = format!(
            "INSERT INTO fine_tunes ({COLUMNS}) VALUES ('f', 'p', 'k', ?, 'm', 'n', 't', NULL, '{{}}', 'null', 'null', 0, NULL, 0)"
        );
        store.db.execute(&sql, &[job.clone().into()]).expect("a row");
        (directory, store, job)
    }

    fn now(db: &dyn Db) -> (String, bool) {
        let (row, job) = get(db, "p", "f").expect("there");
        (job.expect("a job").status, row.is_paused)
    }

    #[test]
    fn one_and_its_job_change_together_or_not_at_all() {
        let (_directory, store, job) = store();
        let db = store.db.as_ref();
        let refused = |done: Result<(), StoreError>| assert!(matches!(done, Err(StoreError::Conflict(_))), "{done:?}");
        refused(resume(db, "f", &job));
        pause(db, "f", &job).expect("paused");
        assert_eq!(now(db), ("cancelled".into(), true));
        refused(pause(db, "f", &job));
        resume(db, "f", &job).expect("resumed");
        assert_eq!(now(db), ("queued".into(), false));
        let lease = Lease { job: &job, owner: "w", lease_ms: 60_000 };
        jobs::claim_one(db, lease).expect("a claim").expect("the job");
        pause(db, "f", &job).expect("asked to pause");
        refused(resume(db, "f", &job));
        assert_eq!(now(db), ("running".into(), true), "what is refused changes nothing");
        // The worker was done before it heard of it.
        jobs::end(db, lease, &End::Succeeded(json!({}))).expect("ended");
        refused(resume(db, "f", &job));
        refused(cancel(db, "f", &job));
        refused(pause(db, "f", &job));
        assert_eq!(now(db), ("succeeded".into(), true));
    }

    #[test]
    fn a_paused_one_can_be_cancelled_for_good() {
        let (_directory, store, job) = store();
        let db = store.db.as_ref();
        pause(db, "f", &job).expect("paused");
        cancel(db, "f", &job).expect("cancelled");
        assert_eq!(now(db), ("cancelled".into(), false));
        assert!(resume(db, "f", &job).is_err() && cancel(db, "f", &job).is_err());
    }
}
