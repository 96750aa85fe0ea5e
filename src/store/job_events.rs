//! The `job_events` table: what happened to a tuning job, messages and the numbers of every step. Numbers of a step that is taken again after
//! a kill are written over, so that a curve has each step once.

use super::db::{Bulk, Db, Row, Statement, StoreError, Value};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use serde_json::Value as Json;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// `ftevent_…`, as OpenAI's clients see it.
    pub id: String,
    /// When, milliseconds.
    pub at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What it says.
    pub message: String,
    /// Step, of the numbers of one.
    pub step: Option<i64>,
    /// The numbers; null for a message.
    pub data: Json,
}

impl JobEvent {
    /// A message.
    pub fn message(level: &str, message: impl Into<String>) -> Self {
        JobEvent { id: new_id("ftevent"), at: now_ms(), level: level.into(), message: message.into(), step: None, data: Json::Null }
    }

    /// The numbers of a step.
    pub fn metrics(job: &str, step: usize, message: impl Into<String>, data: Json) -> Self {
        let number = job.rsplit('_').next().unwrap_or(job);
        let step_number = i64::try_from(step).unwrap_or(i64::MAX);
        let id = format!("ftevent_{number}_{step:07}");
        JobEvent { id, at: now_ms(), level: "info".into(), message: message.into(), step: Some(step_number), data }
    }
}

/// Stores events. Nothing in memory is made of them, so the generation stays.
///
/// # Errors
/// What the database says.
pub fn append(db: &dyn Db, job: &str, events: &[JobEvent]) -> Result<(), StoreError> {
    let statements: Vec<_> = events.iter().map(|event| appending(job, event)).collect();
    if statements.is_empty() { Ok(()) } else { db.batch_apart(&Bulk::empty(), &statements) }
}

/// The statement that stores an event, for batches with what it tells of.
pub fn appending(job: &str, event: &JobEvent) -> Statement {
    let kind = if event.step.is_some() { "metrics" } else { "message" };
    let sql = "INSERT INTO job_events (job, id, at, level, kind, step, message, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (job, id) DO UPDATE SET at = excluded.at, message = excluded.message, data = excluded.data";
    let params = [
        job.into(),
        (&event.id).into(),
        event.at.into(),
        (&event.level).into(),
        kind.into(),
        event.step.into(),
        (&event.message).into(),
        (&event.data).into(),
    ];
    Statement::new(sql, params)
}

const COLUMNS: &str = "id, at, level, step, message, data";

/// One page of a job's events, newest first, and whether more follow.
///
/// # Errors
/// [`StoreError::Unknown`] when `after` names none.
pub fn list(db: &dyn Db, job: &str, after: Option<&str>, limit: usize) -> Result<(Vec<JobEvent>, bool), StoreError> {
    let mut params: Vec<Value> = vec![job.into()];
    let mut sql = format!("SELECT {COLUMNS} FROM job_events WHERE job = ?");
    if let Some(after) = after {
        let found = db.query("SELECT at FROM job_events WHERE job = ? AND id = ?", &[job.into(), after.into()])?;
        let unknown = || StoreError::Unknown { what: "event", name: after.to_string(), nearest: String::new() };
        let at = found.first().ok_or_else(unknown)?.int(0);
        sql.push_str(" AND (at < ? OR (at = ? AND id < ?))");
        params.extend([at.into(), at.into(), after.into()]);
    }
    sql.push_str(" ORDER BY at DESC, id DESC LIMIT ?");
    params.push((limit + 1).into());
    let mut events = db.query(&sql, &params)?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let more = events.len() > limit;
    events.truncate(limit);
    Ok((events, more))
}

/// The numbers of all steps, in order.
///
/// # Errors
/// What the database says.
pub fn curve(db: &dyn Db, job: &str) -> Result<Vec<JobEvent>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM job_events WHERE job = ? AND kind = 'metrics' ORDER BY step");
    db.query(&sql, &[job.into()])?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<JobEvent, StoreError> {
    Ok(JobEvent { id: row.text(0), at: row.int(1), level: row.text(2), step: row.int_or_null(3), message: row.text(4), data: row.json(5)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use serde_json::json;

    #[test]
    fn pages_follow_one_another_and_a_step_is_there_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let db = store.db.as_ref();
        let events: Vec<_> = (1..=5).map(|step| JobEvent::metrics("job_a", step, "s", json!({"train_loss": step}))).collect();
        append(db, "job_a", &events).expect("stored");
        append(db, "job_a", &[JobEvent::metrics("job_a", 2, "again", json!({"train_loss": 7})), JobEvent::message("info", "m")])
            .expect("stored");
        append(db, "job_b", &[JobEvent::message("info", "another job's")]).expect("stored");
        let losses: Vec<_> = curve(db, "job_a").expect("read").iter().map(|event| event.data["train_loss"].clone()).collect();
        assert_eq!(losses, [1, 7, 3, 4, 5]);
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let (page, more) = list(db, "job_a", after.as_deref(), 2).expect("a page");
            seen.extend(page.iter().map(|event| event.id.clone()));
            after = page.last().map(|event| event.id.clone());
            if !more {
                break;
            }
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((count, seen.len()), (6, 6));
        assert!(matches!(list(db, "job_a", Some("ftevent_x"), 2), Err(StoreError::Unknown { .. })));
    }
}
