//! The `jobs` table: a queue with leases. A worker claims a job, keeps its lease alive with heartbeats and ends it; a job whose worker
//! died is found by its expired lease. Every change is a compare-and-swap, so two workers never own one job.

use super::db::{Bulk, Db, Row, Statement, StoreError, Value};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use serde::Serialize;
use serde_json::json;

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRecord {
    /// `job_…`.
    pub id: String,
    /// What runs it: `eval`, `tune`, …
    pub kind: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: String,
    /// What to do.
    pub spec: serde_json::Value,
    /// How far it is.
    pub progress: serde_json::Value,
    /// What came of it.
    pub result: serde_json::Value,
    /// Why it failed.
    pub error: Option<String>,
    /// Worker that holds it.
    pub owner: Option<String>,
    /// When the lease ends.
    pub lease_until: i64,
    /// Whether somebody asked to cancel it.
    pub cancel_requested: bool,
    /// How often it was claimed.
    pub attempts: i64,
    /// When it was queued.
    pub created_at: i64,
    /// When it was first claimed.
    pub started_at: Option<i64>,
    /// When it ended.
    pub finished_at: Option<i64>,
}

/// A worker's hold on a job.
#[derive(Debug, Clone, Copy)]
pub struct Lease<'a> {
    /// Job.
    pub job: &'a str,
    /// Worker; unique per process.
    pub owner: &'a str,
    /// How long a heartbeat keeps it, in milliseconds.
    pub lease_ms: i64,
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// With a result.
    Succeeded(serde_json::Value),
    /// With the reason.
    Failed(String),
    /// As somebody asked.
    Cancelled,
}

const COLUMNS: &str =
    "id, kind, status, spec, progress, result, error, owner, lease_until, cancel_requested, attempts, created_at, started_at, finished_at";

/// Queues a job.
///
/// # Errors
/// What the database says.
pub fn enqueue(db: &dyn Db, kind: &str, spec: &serde_json::Value) -> Result<JobRecord, StoreError> {
    let id = new_id("job");
    db.batch(&[queueing(&id, kind, spec)])?;
    get(db, &id)
}

/// The statement that queues a job, for batches of statements that make the thing it works on.
pub fn queueing(id: &str, kind: &str, spec: &serde_json::Value) -> Statement {
    let sql = "INSERT INTO jobs (id, kind, status, spec, progress, result, lease_until, cancel_requested, attempts, created_at)
        VALUES (?, ?, 'queued', ?, '{}', 'null', 0, 0, 0, ?)";
    Statement::new(sql, [id.into(), kind.into(), spec.into(), now_ms().into()])
}

/// The statement that stores how far a running job is, for batches of statements that make what it will work on. A conflict where another
/// works on it by now.
pub fn progressing(id: &str, owner: &str, progress: &serde_json::Value) -> Statement {
    let sql = "UPDATE jobs SET progress = ? WHERE id = ? AND owner = ? AND status = 'running'";
    Statement::new(sql, [progress.into(), id.into(), owner.into()]).expecting(1)
}

/// Claims the oldest queued job of a kind; none when there is none.
///
/// # Errors
/// What the database says.
pub fn claim(db: &dyn Db, kind: &str, owner: &str, lease_ms: i64) -> Result<Option<JobRecord>, StoreError> {
    let sql = "SELECT id FROM jobs WHERE status = 'queued' AND kind = ? ORDER BY created_at, id LIMIT 8";
    for row in db.query(sql, &[kind.into()])? {
        if let Some(job) = claim_one(db, Lease { job: &row.text(0), owner, lease_ms })? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Claims this job if it is queued; none when somebody else was faster.
///
/// # Errors
/// What the database says.
pub fn claim_one(db: &dyn Db, lease: Lease<'_>) -> Result<Option<JobRecord>, StoreError> {
    let now = now_ms();
    let sql =
        "UPDATE jobs SET status = 'running', owner = ?, lease_until = ?, attempts = attempts + 1, started_at = COALESCE(started_at, ?)
        WHERE id = ? AND status = 'queued'";
    let changed = db.execute(sql, &[lease.owner.into(), (now + lease.lease_ms).into(), now.into(), lease.job.into()])?;
    if changed == 1 { get(db, lease.job).map(Some) } else { Ok(None) }
}

/// Keeps the lease alive and stores the progress, each second and without a new generation: nothing in memory is made of it. Returns
/// whether somebody asked to cancel.
///
/// # Errors
/// [`StoreError::Conflict`] when the lease was lost: the worker must stop.
pub fn heartbeat(db: &dyn Db, lease: Lease<'_>, progress: &serde_json::Value) -> Result<bool, StoreError> {
    let sql = "UPDATE jobs SET lease_until = ?, progress = ? WHERE id = ? AND owner = ? AND status = 'running'";
    let params = [(now_ms() + lease.lease_ms).into(), progress.into(), lease.job.into(), lease.owner.into()];
    match db.batch_apart(&Bulk::empty(), &[Statement::new(sql, params).expecting(1)]) {
        Err(StoreError::Conflict(_)) => {
            return Err(StoreError::Conflict(format!("job {} is no longer held by {}", lease.job, lease.owner)));
        }
        other => other?,
    }
    Ok(get(db, lease.job)?.cancel_requested)
}

/// Keeps a lease alive that may have run out, if nobody has taken the job since.
///
/// # Errors
/// What the database says.
pub fn renew(db: &dyn Db, owner: &str, lease_ms: i64) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET lease_until = ? WHERE owner = ? AND status = 'running'";
    db.execute(sql, &[(now_ms() + lease_ms).into(), owner.into()]).map(drop)
}

/// Ends a job that this worker holds.
///
/// # Errors
/// [`StoreError::Conflict`] when the lease was lost.
pub fn end(db: &dyn Db, lease: Lease<'_>, end: &End) -> Result<(), StoreError> {
    let (status, result, error) = match end {
        End::Succeeded(result) => ("succeeded", result.clone(), Value::Null),
        End::Failed(reason) => ("failed", json!(null), reason.into()),
        End::Cancelled => ("cancelled", json!(null), Value::Null),
    };
    let sql = "UPDATE jobs SET status = ?, result = ?, error = ?, owner = NULL, lease_until = 0, finished_at = ?
        WHERE id = ? AND owner = ? AND status = 'running'";
    let params = [status.into(), (&result).into(), error, now_ms().into(), lease.job.into(), lease.owner.into()];
    match db.execute(sql, &params)? {
        0 => Err(StoreError::Conflict(format!("job {} is no longer held by {}", lease.job, lease.owner))),
        _ => Ok(()),
    }
}

/// Gives a job back that this worker holds: it is queued again at once.
///
/// # Errors
/// [`StoreError::Conflict`] when the lease was lost.
pub fn release(db: &dyn Db, lease: Lease<'_>) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET status = 'queued', owner = NULL, lease_until = 0 WHERE id = ? AND owner = ? AND status = 'running'";
    match db.execute(sql, &[lease.job.into(), lease.owner.into()])? {
        0 => Err(StoreError::Conflict(format!("job {} is no longer held by {}", lease.job, lease.owner))),
        _ => Ok(()),
    }
}

/// Queues every running job of a kind again. For whoever knows that their workers are gone: `refit serve`, which alone works on this
/// kind and alone holds the data directory's lock.
///
/// # Errors
/// What the database says.
pub fn take_over(db: &dyn Db, kind: &str) -> Result<usize, StoreError> {
    db.execute("UPDATE jobs SET status = 'queued', owner = NULL, lease_until = 0 WHERE kind = ? AND status = 'running'", &[kind.into()])
}

/// Asks for cancellation: a queued job is cancelled at once, a running one learns of it at its next heartbeat, an ended one stays.
///
/// # Errors
/// [`StoreError::Unknown`] when there is no such job.
pub fn request_cancel(db: &dyn Db, id: &str) -> Result<JobRecord, StoreError> {
    db.batch(&cancelling(id))?;
    get(db, id)
}

/// The statements of [`request_cancel`], for batches of statements that change the thing it works on.
pub fn cancelling(id: &str) -> [Statement; 2] {
    let queued = "UPDATE jobs SET status = 'cancelled', cancel_requested = 1, finished_at = ? WHERE id = ? AND status = 'queued'";
    let running = "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND status = 'running'";
    [Statement::new(queued, [now_ms().into(), id.into()]), Statement::new(running, [id.into()])]
}

/// Ends the leases that ran out: jobs that may resume are queued again until they were claimed `max_attempts` times (also when
/// somebody asked to cancel them: their worker has to tidy up), others fail or are cancelled. Returns the jobs that changed.
///
/// # Errors
/// What the database says.
pub fn reap(db: &dyn Db, resumable: &[&str], max_attempts: i64) -> Result<Vec<JobRecord>, StoreError> {
    let now = now_ms();
    let expired = list_where(db, "status = 'running' AND lease_until < ?", &[now.into()])?;
    let mut changed = Vec::new();
    for job in expired {
        let held = [(&job.id).into(), job.owner.clone().into(), job.lease_until.into()];
        let [id, owner, lease_until] = held;
        let resumes = resumable.contains(&job.kind.as_str()) && job.attempts < max_attempts;
        let count = if job.cancel_requested && !resumes {
            let sql = "UPDATE jobs SET status = 'cancelled', owner = NULL, finished_at = ? WHERE id = ? AND owner = ? AND lease_until = ?";
            db.execute(sql, &[now.into(), id, owner, lease_until])?
        } else if resumes {
            let sql = "UPDATE jobs SET status = 'queued', owner = NULL WHERE id = ? AND owner = ? AND lease_until = ?";
            db.execute(sql, &[id, owner, lease_until])?
        } else {
            let error = format!("the worker {} stopped without a word", job.owner.as_deref().unwrap_or("of this job"));
            let sql = "UPDATE jobs SET status = 'failed', error = ?, owner = NULL, finished_at = ? WHERE id = ? AND owner = ? AND lease_until = ?";
            db.execute(sql, &[error.into(), now.into(), id, owner, lease_until])?
        };
        if count == 1 {
            changed.push(get(db, &job.id)?);
        }
    }
    Ok(changed)
}

/// Queues a failed or cancelled job again, keeping its spec, so that it resumes from what it stored.
///
/// # Errors
/// [`StoreError::Conflict`] when it is queued, running or succeeded; [`StoreError::Unknown`] when there is no such job.
pub fn requeue(db: &dyn Db, id: &str) -> Result<JobRecord, StoreError> {
    match db.batch(&[requeueing(id)]) {
        Err(StoreError::Conflict(_)) => Err(StoreError::Conflict(format!("job {id} is {}", get(db, id)?.status))),
        other => other.and_then(|()| get(db, id)),
    }
}

/// The statement of [`requeue`], for batches of statements that change the thing it works on.
pub fn requeueing(id: &str) -> Statement {
    let sql = "UPDATE jobs SET status = 'queued', error = NULL, owner = NULL, cancel_requested = 0, finished_at = NULL
        WHERE id = ? AND status IN ('failed', 'cancelled')";
    Statement::new(sql, [id.into()]).expecting(1)
}

/// Puts another spec in the place of a job's, which nobody may be working on.
///
/// # Errors
/// [`StoreError::Conflict`] when it is running.
pub fn respec(db: &dyn Db, id: &str, spec: &serde_json::Value) -> Result<(), StoreError> {
    match db.execute("UPDATE jobs SET spec = ? WHERE id = ? AND status <> 'running'", &[spec.into(), id.into()])? {
        0 => Err(StoreError::Conflict(format!("job {id} is running"))),
        _ => Ok(()),
    }
}

/// The job with that id.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn get(db: &dyn Db, id: &str) -> Result<JobRecord, StoreError> {
    let found = list_where(db, "id = ?", &[id.into()])?.pop();
    found.ok_or_else(|| StoreError::Unknown { what: "job", name: id.to_string(), nearest: String::new() })
}

/// All jobs, oldest first.
///
/// # Errors
/// What the database says.
pub fn list(db: &dyn Db) -> Result<Vec<JobRecord>, StoreError> {
    list_where(db, "1 = 1", &[])
}

fn list_where(db: &dyn Db, condition: &str, params: &[Value]) -> Result<Vec<JobRecord>, StoreError> {
    db.query(&format!("SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY created_at, id"), params)?.iter().map(record).collect()
}

fn record(row: &Row) -> Result<JobRecord, StoreError> {
    Ok(JobRecord {
        id: row.text(0),
        kind: row.text(1),
        status: row.text(2),
        spec: row.json(3)?,
        progress: row.json(4)?,
        result: row.json(5)?,
        error: row.text_or_null(6),
        owner: row.text_or_null(7),
        lease_until: row.int(8),
        cancel_requested: row.int(9) != 0,
        attempts: row.int(10),
        created_at: row.int(11),
        started_at: row.int_or_null(12),
        finished_at: row.int_or_null(13),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        (directory, store)
    }

    #[test]
    fn one_worker_gets_the_job_and_a_lost_lease_ends_its_say() {
        let (_directory, store) = store();
        let db = store.db.as_ref();
        let job = enqueue(db, "tune", &json!({"a": 1})).expect("queued");
        let claims: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8).map(|i| scope.spawn(move || claim(db, "tune", &format!("w{i}"), -1).expect("a claim"))).collect();
            workers.into_iter().filter_map(|worker| worker.join().expect("a worker")).collect()
        });
        assert_eq!(claims.len(), 1);
        let owner = claims[0].owner.clone().expect("an owner");
        let lease = Lease { job: &job.id, owner: &owner, lease_ms: -1 };
        assert!(!heartbeat(db, lease, &json!({"step": 3})).expect("alive"));
        // The lease of -1 ms has run out: the job is queued again, then given up after its second worker died too.
        assert_eq!(reap(db, &["tune"], 2).expect("reaped")[0].status, "queued");
        assert!(matches!(heartbeat(db, lease, &json!({})), Err(StoreError::Conflict(_))));
        assert!(matches!(end(db, lease, &End::Cancelled), Err(StoreError::Conflict(_))));
        let second = claim(db, "tune", "w9", -1).expect("a claim").expect("a job");
        let told = |owner: &str| db.batch(&[progressing(&job.id, owner, &json!({"step": 3}))]);
        assert!(matches!(told(&owner), Err(StoreError::Conflict(_))), "another works on it by now");
        told("w9").expect("its own");
        assert_eq!((second.attempts, &second.progress), (2, &json!({"step": 3})));
        let failed = reap(db, &["tune"], 2).expect("reaped");
        assert!(failed[0].status == "failed" && failed[0].error.as_deref().unwrap_or("").contains("w9"));
        assert_eq!(requeue(db, &job.id).expect("again").status, "queued");
    }

    #[test]
    fn a_beat_makes_nobody_read_anything_again() {
        let (_directory, store) = store();
        let db = store.db.as_ref();
        let job = enqueue(db, "batch", &json!({})).expect("queued");
        let lease = Lease { job: &job.id, owner: "w", lease_ms: 60_000 };
        claim_one(db, lease).expect("a claim").expect("the job");
        let before = db.generation().expect("a number");
        heartbeat(db, lease, &json!({"done": 1})).expect("alive");
        crate::store::batches::count(db, "batch_x", &crate::store::batches::Counts::default()).expect("counted");
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!((db.generation().expect("a number"), get(db, &job.id).expect("there").progress), (before, json!({"done": 1})));
    }

    #[test]
    fn cancelling_reaches_queued_and_running_jobs() {
        let (_directory, store) = store();
        let db = store.db.as_ref();
        let queued = enqueue(db, "eval", &json!({})).expect("queued");
        assert_eq!(request_cancel(db, &queued.id).expect("cancelled").status, "cancelled");
        let job = enqueue(db, "eval", &json!({})).expect("queued");
        let lease = Lease { job: &job.id, owner: "w", lease_ms: 60_000 };
        claim_one(db, lease).expect("a claim").expect("the job");
        assert_eq!(request_cancel(db, &job.id).expect("asked").status, "running");
        assert!(heartbeat(db, lease, &json!({})).expect("alive"));
        end(db, lease, &End::Cancelled).expect("ended");
        assert_eq!(get(db, &job.id).expect("there").status, "cancelled");
        assert!(reap(db, &["eval"], 5).expect("reaped").is_empty());
        assert!(matches!(request_cancel(db, "job_x"), Err(StoreError::Unknown { .. })));
    }
}
