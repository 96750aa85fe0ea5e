//! Rows of OpenAI's Evals API: `openai_evals`, `openai_eval_runs` and `openai_eval_items`. Each row belongs to a project; no other
//! sees it. The lease on a run's work is the row of `jobs` that the run names.

use super::db::{Db, Row, Statement, StoreError, Value};
use super::jobs;
use crate::types::time::now_ms;
use serde_json::Value as Json;
use serde_json::json;

/// Kind of a run's job.
pub const JOB_KIND: &str = "openai_eval";

/// What is tested, and by which criteria.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRow {
    /// `eval_…`.
    pub id: String,
    /// Project (tenant) it belongs to.
    pub project: String,
    /// Name, of any form.
    pub name: String,
    /// `data_source_config` as it is answered.
    pub data_source: Json,
    /// `testing_criteria`.
    pub criteria: Json,
    /// The caller's labels.
    pub metadata: Json,
    /// Key that made it.
    pub created_by: String,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When its name or labels were last changed.
    pub updated_at: i64,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nobody works on it yet.
    Queued,
    /// Its items are being asked and graded.
    InProgress,
    /// Every item has an outcome.
    Completed,
    /// It cannot go on.
    Failed,
    /// Somebody asked to cancel it.
    Canceled,
}

impl Status {
    const ALL: [(Status, &'static str); 5] = [
        (Status::Queued, "queued"),
        (Status::InProgress, "in_progress"),
        (Status::Completed, "completed"),
        (Status::Failed, "failed"),
        (Status::Canceled, "canceled"),
    ];

    /// The word on the wire and in the row.
    pub fn word(self) -> &'static str {
        Status::ALL.iter().find(|(status, _)| *status == self).map_or("", |(_, word)| word)
    }

    /// The status of a word.
    pub fn of(word: &str) -> Option<Self> {
        Status::ALL.iter().find(|(_, known)| *known == word).map(|(status, _)| *status)
    }

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Canceled)
    }
}

/// One run of an eval.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRunRow {
    /// `evalrun_…`.
    pub id: String,
    /// Its eval.
    pub eval: String,
    /// Project it belongs to.
    pub project: String,
    /// Key that made it and on whose behalf models are asked.
    pub api_key: String,
    /// Its job.
    pub job: String,
    /// Name.
    pub name: String,
    /// `data_source`, as it was given.
    pub data_source: Json,
    /// Model that is asked; empty where none is.
    pub model: String,
    /// The caller's labels.
    pub metadata: Json,
    /// The eval's criteria when the run was made.
    pub criteria: Json,
    /// Ids of the stored completions that it is about; null for other sources.
    pub chosen: Json,
    /// Where it stands.
    pub status: Status,
    /// Why it failed: `{code, message}`, else null.
    pub error: Json,
    /// `per_model_usage`.
    pub usage: Json,
    /// `per_testing_criteria_results`.
    pub per_criteria: Json,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When it ended.
    pub finished_at: Option<i64>,
}

/// How many items have which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items that met every criterion.
    pub passed: u64,
    /// Items that missed one.
    pub failed: u64,
    /// Items that could not be asked or graded.
    pub errored: u64,
}

/// What became of an item: `pass`, `fail` or `error`.
pub const ITEM_STATUS: [&str; 3] = ["pass", "fail", "error"];

/// One item of a run, with its outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalItemRow {
    /// Its place in the data source, from 0.
    pub number: u64,
    /// One of [`ITEM_STATUS`].
    pub status: String,
    /// The item.
    pub item: Json,
    /// What each criterion said.
    pub results: Json,
    /// What was asked and answered.
    pub sample: Json,
    /// When, milliseconds.
    pub created_at: i64,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Id that it begins behind.
    pub after: Option<&'a str>,
    /// Rows at most.
    pub limit: usize,
    /// Oldest first.
    pub ascending: bool,
}

const EVAL: &str = "id, project, name, data_source, criteria, metadata, created_by, created_at, updated_at";
const RUN: &str = "id, eval, project, api_key, job, name, data_source, model, metadata, criteria, status, error, usage, per_criteria,
    created_at, finished_at, chosen";
const ITEM: &str = "number, status, item, results, sample, created_at";

/// Stores a new eval.
///
/// # Errors
/// When the database fails.
pub fn insert(db: &dyn Db, eval: &EvalRow) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO openai_evals ({EVAL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
    let params = [
        Value::from(&eval.id),
        (&eval.project).into(),
        (&eval.name).into(),
        (&eval.data_source).into(),
        (&eval.criteria).into(),
        (&eval.metadata).into(),
        (&eval.created_by).into(),
        eval.created_at.into(),
        eval.updated_at.into(),
    ];
    db.execute(&sql, &params).map(drop)
}

/// A project's eval.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none of that id, or it is another project's.
pub fn get(db: &dyn Db, project: &str, id: &str) -> Result<EvalRow, StoreError> {
    let sql = format!("SELECT {EVAL} FROM openai_evals WHERE id = ? AND project = ?");
    db.query(&sql, &[id.into(), project.into()])?.first().map(read_eval).transpose()?.ok_or_else(|| unknown("eval", id))
}

/// One page of a project's evals by when they were made, or by when they were last changed; and whether more follow.
///
/// # Errors
/// [`StoreError::Unknown`] when the page begins behind an eval that is not there.
pub fn list(db: &dyn Db, project: &str, page: Page<'_>, by_update: bool) -> Result<(Vec<EvalRow>, bool), StoreError> {
    let mut list = List::new(format!("SELECT {EVAL} FROM openai_evals WHERE project = ?"), vec![project.into()], page);
    if by_update {
        let (sign, direction) = list.direction();
        if let Some(after) = page.after {
            let from = get(db, project, after)?;
            list.sql.push_str(&format!(" AND (updated_at {sign} ? OR (updated_at = ? AND id {sign} ?))"));
            list.params.extend([from.updated_at.into(), from.updated_at.into(), after.into()]);
        }
        list.sql.push_str(&format!(" ORDER BY updated_at {direction}, id {direction}"));
    } else {
        list.by_id("id");
    }
    list.read(db, read_eval)
}

/// Gives an eval another name or other labels.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn update(db: &dyn Db, project: &str, id: &str, name: Option<&str>, metadata: Option<&Json>) -> Result<EvalRow, StoreError> {
    let known = get(db, project, id)?;
    let (name, metadata) = (name.unwrap_or(&known.name), metadata.unwrap_or(&known.metadata));
    let sql = "UPDATE openai_evals SET name = ?, metadata = ?, updated_at = ? WHERE id = ? AND project = ?";
    db.execute(sql, &[name.into(), metadata.into(), now_ms().into(), id.into(), project.into()])?;
    get(db, project, id)
}

/// Removes an eval with its runs; none of them may be worked on.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none, [`StoreError::Conflict`] when a run has not ended.
pub fn delete(db: &dyn Db, project: &str, id: &str) -> Result<(), StoreError> {
    get(db, project, id)?;
    let guard = "UPDATE openai_evals SET name = name WHERE id = ? AND NOT EXISTS
        (SELECT 1 FROM openai_eval_runs WHERE eval = ? AND status IN ('queued', 'in_progress'))";
    let items = "DELETE FROM openai_eval_items WHERE run IN (SELECT id FROM openai_eval_runs WHERE eval = ?)";
    let answers = "DELETE FROM openai_eval_answers WHERE run IN (SELECT id FROM openai_eval_runs WHERE eval = ?)";
    db.batch(&[
        Statement::new(guard, [id.into(), id.into()]).expecting(1),
        Statement::new(items, [id.into()]),
        Statement::new(answers, [id.into()]),
        Statement::new("DELETE FROM openai_eval_runs WHERE eval = ?", [id.into()]),
        Statement::new("DELETE FROM openai_evals WHERE id = ?", [id.into()]),
    ])
}

/// Stores a new run and queues its job, or neither.
///
/// # Errors
/// [`StoreError::Conflict`] when its eval is gone.
pub fn insert_run(db: &dyn Db, run: &EvalRunRow) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO openai_eval_runs ({RUN}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?
        WHERE EXISTS (SELECT 1 FROM openai_evals WHERE id = ? AND project = ?)"
    );
    let params = [
        Value::from(&run.id),
        (&run.eval).into(),
        (&run.project).into(),
        (&run.api_key).into(),
        (&run.job).into(),
        (&run.name).into(),
        (&run.data_source).into(),
        (&run.model).into(),
        (&run.metadata).into(),
        (&run.criteria).into(),
        run.status.word().into(),
        (&run.error).into(),
        (&run.usage).into(),
        (&run.per_criteria).into(),
        run.created_at.into(),
        (&run.chosen).into(),
        (&run.eval).into(),
        (&run.project).into(),
    ];
    db.batch(&[jobs::queueing(&run.job, JOB_KIND, &json!({"run": run.id})), Statement::new(sql, params).expecting(1)])
}

/// A run of a project's eval.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn get_run(db: &dyn Db, project: &str, eval: &str, id: &str) -> Result<EvalRunRow, StoreError> {
    let sql = format!("SELECT {RUN} FROM openai_eval_runs WHERE id = ? AND eval = ? AND project = ?");
    let found = db.query(&sql, &[id.into(), eval.into(), project.into()])?;
    found.first().map(read_run).transpose()?.ok_or_else(|| unknown("run", id))
}

/// The run that a job works on.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none.
pub fn of_job(db: &dyn Db, job: &str) -> Result<EvalRunRow, StoreError> {
    let found = db.query(&format!("SELECT {RUN} FROM openai_eval_runs WHERE job = ?"), &[job.into()])?;
    found.first().map(read_run).transpose()?.ok_or_else(|| unknown("run", job))
}

/// One page of an eval's runs, of one status or all, and whether more follow.
///
/// # Errors
/// When the database fails.
pub fn list_runs(db: &dyn Db, eval: &str, page: Page<'_>, status: Option<Status>) -> Result<(Vec<EvalRunRow>, bool), StoreError> {
    let mut list = List::new(format!("SELECT {RUN} FROM openai_eval_runs WHERE eval = ?"), vec![eval.into()], page);
    if let Some(status) = status {
        list.sql.push_str(" AND status = ?");
        list.params.push(status.word().into());
    }
    list.by_id("id");
    list.read(db, read_run)
}

/// Removes a run that has ended, with its items.
///
/// # Errors
/// [`StoreError::Conflict`] when it has not ended.
pub fn delete_run(db: &dyn Db, id: &str) -> Result<(), StoreError> {
    let run = "DELETE FROM openai_eval_runs WHERE id = ? AND status NOT IN ('queued', 'in_progress')";
    let items = Statement::new("DELETE FROM openai_eval_items WHERE run = ?", [id.into()]);
    db.batch(&[Statement::new(run, [id.into()]).expecting(1), items, forgetting_answers(id)])
}

/// Queued runs, oldest first: `(job, project)`.
///
/// # Errors
/// When the database fails.
pub fn queued(db: &dyn Db) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT jobs.id, openai_eval_runs.project FROM jobs JOIN openai_eval_runs ON openai_eval_runs.job = jobs.id
        WHERE jobs.status = 'queued' AND jobs.kind = ? ORDER BY jobs.created_at, jobs.id";
    Ok(db.query(sql, &[JOB_KIND.into()])?.iter().map(|row| (row.text(0), row.text(1))).collect())
}

/// Says that a run is worked on.
///
/// # Errors
/// [`StoreError::Conflict`] when it has ended.
pub fn begin(db: &dyn Db, id: &str) -> Result<(), StoreError> {
    let sql = "UPDATE openai_eval_runs SET status = 'in_progress' WHERE id = ? AND status IN ('queued', 'in_progress')";
    db.batch(&[Statement::new(sql, [id.into()]).expecting(1)])
}

/// Asks for cancellation: a run that nobody works on yet is canceled at once, one that has begun when its worker has stopped.
///
/// # Errors
/// [`StoreError::Conflict`] when it has ended.
pub fn request_cancel(db: &dyn Db, run: &EvalRunRow) -> Result<(), StoreError> {
    let queued =
        "UPDATE jobs SET status = 'cancelled', cancel_requested = 1, finished_at = ? WHERE id = ? AND status = 'queued' AND attempts = 0";
    let at_once =
        [Statement::new(queued, [now_ms().into(), (&run.job).into()]).expecting(1), ending(&run.id, Status::Canceled, &Json::Null)];
    match db.batch(&at_once) {
        Err(StoreError::Conflict(_)) => {}
        other => return other,
    }
    let asked = "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND status IN ('queued', 'running')";
    db.batch(&[Statement::new(asked, [(&run.job).into()]).expecting(1)])
}

/// The statement that ends a run; it expects that the run had not ended.
pub fn ending(id: &str, status: Status, error: &Json) -> Statement {
    let sql = "UPDATE openai_eval_runs SET status = ?, error = ?, finished_at = ? WHERE id = ? AND status IN ('queued', 'in_progress')";
    Statement::new(sql, [status.word().into(), error.into(), now_ms().into(), id.into()]).expecting(1)
}

/// The statement that stores what a run used and what each criterion said.
pub fn summing(id: &str, usage: &Json, per_criteria: &Json) -> Statement {
    let sql = "UPDATE openai_eval_runs SET usage = ?, per_criteria = ? WHERE id = ?";
    Statement::new(sql, [usage.into(), per_criteria.into(), id.into()])
}

/// Stores outcomes in one transaction.
///
/// # Errors
/// When the database fails.
pub fn put_items(db: &dyn Db, run: &str, items: &[EvalItemRow]) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO openai_eval_items (run, {ITEM}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, number) DO UPDATE SET
        status = excluded.status, item = excluded.item, results = excluded.results, sample = excluded.sample,
        created_at = excluded.created_at"
    );
    let statement = |item: &EvalItemRow| {
        let params = [
            run.into(),
            item.number.into(),
            Value::from(&item.status),
            (&item.item).into(),
            (&item.results).into(),
            (&item.sample).into(),
            item.created_at.into(),
        ];
        Statement::new(sql.clone(), params)
    };
    db.batch(&items.iter().map(statement).collect::<Vec<_>>())
}

/// An answer to an item that is not graded yet.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalAnswerRow {
    /// The item's place in the data source, from 0.
    pub number: u64,
    /// What graders see.
    pub sample: Json,
    /// What is told of the call.
    pub shown: Json,
}

/// Keeps answers whose grading was cut off.
///
/// # Errors
/// When the database fails.
pub fn put_answers(db: &dyn Db, run: &str, answers: &[EvalAnswerRow]) -> Result<(), StoreError> {
    let sql = "INSERT INTO openai_eval_answers (run, number, sample, shown) VALUES (?, ?, ?, ?) ON CONFLICT (run, number) DO UPDATE SET
        sample = excluded.sample, shown = excluded.shown";
    let statement =
        |answer: &EvalAnswerRow| Statement::new(sql, [run.into(), answer.number.into(), (&answer.sample).into(), (&answer.shown).into()]);
    db.batch(&answers.iter().map(statement).collect::<Vec<_>>())
}

/// Answers of a run whose grading was cut off.
///
/// # Errors
/// When the database fails.
pub fn answers(db: &dyn Db, run: &str) -> Result<Vec<EvalAnswerRow>, StoreError> {
    let rows = db.query("SELECT number, sample, shown FROM openai_eval_answers WHERE run = ? ORDER BY number", &[run.into()])?;
    let read = |row: &Row| Ok(EvalAnswerRow { number: u64::try_from(row.int(0)).unwrap_or(0), sample: row.json(1)?, shown: row.json(2)? });
    rows.iter().map(read).collect()
}

/// Forgets the answers of a run that has ended: its items have what became of them.
pub fn forgetting_answers(run: &str) -> Statement {
    Statement::new("DELETE FROM openai_eval_answers WHERE run = ?", [run.into()])
}

/// Places of the items that have an outcome.
///
/// # Errors
/// When the database fails.
pub fn done(db: &dyn Db, run: &str) -> Result<Vec<u64>, StoreError> {
    let rows = db.query("SELECT number FROM openai_eval_items WHERE run = ? ORDER BY number", &[run.into()])?;
    Ok(rows.iter().map(|row| u64::try_from(row.int(0)).unwrap_or(0)).collect())
}

/// How many items have which outcome.
///
/// # Errors
/// When the database fails.
pub fn counts(db: &dyn Db, run: &str) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    for row in db.query("SELECT status, COUNT(*) FROM openai_eval_items WHERE run = ? GROUP BY status", &[run.into()])? {
        let number = u64::try_from(row.int(1)).unwrap_or(0);
        match row.text(0).as_str() {
            "pass" => counts.passed = number,
            "fail" => counts.failed = number,
            _ => counts.errored += number,
        }
    }
    Ok(counts)
}

/// Items behind a place, in the order of the data source or backwards, of one status or all; and whether more follow.
///
/// # Errors
/// When the database fails.
pub fn items(
    db: &dyn Db,
    run: &str,
    (after, limit, ascending): (Option<u64>, usize, bool),
    status: Option<&str>,
) -> Result<(Vec<EvalItemRow>, bool), StoreError> {
    let page = Page { after: None, limit, ascending };
    let mut list = List::new(format!("SELECT {ITEM} FROM openai_eval_items WHERE run = ?"), vec![run.into()], page);
    if let Some(status) = status {
        list.sql.push_str(" AND status = ?");
        list.params.push(status.into());
    }
    let (sign, direction) = list.direction();
    if let Some(after) = after {
        list.sql.push_str(&format!(" AND number {sign} ?"));
        list.params.push(after.into());
    }
    list.sql.push_str(&format!(" ORDER BY number {direction}"));
    list.read(db, read_item)
}

/// The item at a place.
///
/// # Errors
/// [`StoreError::Unknown`] when it has no outcome yet.
pub fn item(db: &dyn Db, run: &str, number: u64) -> Result<EvalItemRow, StoreError> {
    let sql = format!("SELECT {ITEM} FROM openai_eval_items WHERE run = ? AND number = ?");
    let found = db.query(&sql, &[run.into(), number.into()])?;
    found.first().map(read_item).transpose()?.ok_or_else(|| unknown("output item", &number.to_string()))
}

fn unknown(what: &'static str, id: &str) -> StoreError {
    StoreError::Unknown { what, name: id.to_string(), nearest: String::new() }
}

/// A query for a page of rows.
struct List<'a> {
    sql: String,
    params: Vec<Value>,
    page: Page<'a>,
}

impl<'a> List<'a> {
    fn new(sql: String, params: Vec<Value>, page: Page<'a>) -> Self {
        List { sql, params, page }
    }

    fn direction(&self) -> (&'static str, &'static str) {
        if self.page.ascending { (">", "ASC") } else { ("<", "DESC") }
    }

    /// Ids sort by the time they were made, so that a page begins where the last one ended even when its last row is gone.
    fn by_id(&mut self, column: &str) {
        let (sign, direction) = self.direction();
        if let Some(after) = self.page.after {
            self.sql.push_str(&format!(" AND {column} {sign} ?"));
            self.params.push(after.into());
        }
        self.sql.push_str(&format!(" ORDER BY {column} {direction}"));
    }

    fn read<T>(mut self, db: &dyn Db, read: impl Fn(&Row) -> Result<T, StoreError>) -> Result<(Vec<T>, bool), StoreError> {
        self.sql.push_str(" LIMIT ?");
        self.params.push((self.page.limit + 1).into());
        let mut rows = db.query(&self.sql, &self.params)?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let more = rows.len() > self.page.limit;
        rows.truncate(self.page.limit);
        Ok((rows, more))
    }
}

fn read_eval(row: &Row) -> Result<EvalRow, StoreError> {
    Ok(EvalRow {
        id: row.text(0),
        project: row.text(1),
        name: row.text(2),
        data_source: row.json(3)?,
        criteria: row.json(4)?,
        metadata: row.json(5)?,
        created_by: row.text(6),
        created_at: row.int(7),
        updated_at: row.int(8),
    })
}

fn read_run(row: &Row) -> Result<EvalRunRow, StoreError> {
    let word = row.text(10);
    Ok(EvalRunRow {
        id: row.text(0),
        eval: row.text(1),
        project: row.text(2),
        api_key: row.text(3),
        job: row.text(4),
        name: row.text(5),
        data_source: row.json(6)?,
        model: row.text(7),
        metadata: row.json(8)?,
        criteria: row.json(9)?,
        status: Status::of(&word).ok_or_else(|| StoreError::Corrupt(format!("a run is {word:?}")))?,
        error: row.json(11)?,
        usage: row.json(12)?,
        per_criteria: row.json(13)?,
        created_at: row.int(14),
        finished_at: row.int_or_null(15),
        chosen: row.json(16)?,
    })
}

fn read_item(row: &Row) -> Result<EvalItemRow, StoreError> {
    Ok(EvalItemRow {
        number: u64::try_from(row.int(0)).unwrap_or(0),
        status: row.text(1),
        item: row.json(2)?,
        results: row.json(3)?,
        sample: row.json(4)?,
        created_at: row.int(5),
    })
}
