//! One row per target, sample and repeat of an evaluation run (`run_samples`): where a run resumes, and what every number of its report is
//! made of. Rows are written in batches and read page by page, so that a long run takes no more memory than a short one.

use super::db::{Bound, Bulk, Db, Row, Statement, StoreError, Value};
use serde::Serialize;
use serde_json::Value as Json;

/// Rows of a page.
const PAGE: i64 = 500;

/// The outcome of one case.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CaseRecord {
    /// Target.
    pub target: String,
    /// Sample id.
    pub sample: String,
    /// Place in the split, from 0.
    pub position: usize,
    /// Which of the repeats, from 0.
    pub repeat: usize,
    /// The model's text, empty when it failed.
    pub output: String,
    /// Tools that the model wanted to call; `null` where there are none.
    #[serde(skip_serializing_if = "Json::is_null")]
    pub tool_calls: Json,
    /// The provider's word that the model declined, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Why there is no answer: the third outcome beside right and wrong.
    pub error: Option<String>,
    /// Value per metric.
    pub scores: Json,
    /// What scorers say about their values, by metric; `null` where they say nothing.
    #[serde(skip_serializing_if = "Json::is_null")]
    pub notes: Json,
    /// Group of the sample, where the suite names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether the answer is one that was given before.
    pub cached: bool,
    /// What the reply says in `model`; none where it says nothing, for local models, and in runs from before it was written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_as: Option<String>,
    /// What the call cost in micro-dollars; none where nobody knows.
    pub cost_micro_usd: Option<i64>,
    /// What its scorers' calls cost in micro-dollars; none where nobody knows.
    pub scoring_cost_micro_usd: Option<i64>,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Milliseconds to the answer.
    pub latency_ms: f64,
    /// When, in milliseconds.
    pub finished_at: i64,
}

/// An answer that may be given again.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptReply {
    /// Digest of everything that changes an answer.
    pub key: String,
    /// The answer, as JSON.
    pub reply: String,
}

/// Where a page ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    target: String,
    position: i64,
    repeat: i64,
}

const COLUMNS: &str =
    "target, sample, position, repeat_index, output, tool_calls, error, scores, notes, grouping, cached, cost, input_tokens,
    output_tokens, latency_ms, finished_at, refusal, scoring_cost, answered_as";

/// Values of a row.
const COLUMN_COUNT: usize = 21;

/// Stores outcomes in one transaction, with the answers that may be given again; a case that had an outcome before gets the new one, and
/// costs what both did.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn put_cases(db: &dyn Db, run: &str, cases: &[CaseRecord], replies: &[KeptReply]) -> Result<(), StoreError> {
    const UPSERT: &str = "INSERT INTO run_samples (run, target, sample, position, repeat_index, status, output, tool_calls, error, scores,
         notes, grouping, cached, cost, input_tokens, output_tokens, latency_ms, finished_at, refusal, scoring_cost,
         answered_as) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (run, target, position, repeat_index) DO UPDATE SET sample = excluded.sample, status = excluded.status,
         output = excluded.output, tool_calls = excluded.tool_calls, error = excluded.error, scores = excluded.scores,
         notes = excluded.notes, grouping = excluded.grouping, cached = excluded.cached,
         cost = CASE WHEN run_samples.cost IS NULL AND excluded.cost IS NULL THEN NULL
                ELSE COALESCE(run_samples.cost, 0) + COALESCE(excluded.cost, 0) END,
         scoring_cost = CASE WHEN run_samples.scoring_cost IS NULL AND excluded.scoring_cost IS NULL THEN NULL
                ELSE COALESCE(run_samples.scoring_cost, 0) + COALESCE(excluded.scoring_cost, 0) END,
         input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, latency_ms = excluded.latency_ms,
         finished_at = excluded.finished_at, refusal = excluded.refusal, answered_as = excluded.answered_as";
    let text = |value: &Json| (!value.is_null()).then(|| value.to_string());
    let texts: Vec<_> = cases.iter().map(|case| (case.scores.to_string(), text(&case.notes), text(&case.tool_calls))).collect();
    let mut values = Vec::with_capacity(cases.len() * COLUMN_COUNT);
    for (case, (scores, notes, tool_calls)) in cases.iter().zip(&texts) {
        let status = if case.error.is_some() { "error" } else { "scored" };
        values.extend([
            Bound::Text(run),
            Bound::Text(&case.target),
            Bound::Text(&case.sample),
            whole(case.position as u64),
            whole(case.repeat as u64),
            Bound::Text(status),
            Bound::Text(&case.output),
            tool_calls.into(),
            (&case.error).into(),
            Bound::Text(scores),
            notes.into(),
            (&case.group).into(),
            (&case.cached).into(),
            (&case.cost_micro_usd).into(),
            whole(case.input_tokens),
            whole(case.output_tokens),
            (&case.latency_ms).into(),
            (&case.finished_at).into(),
            (&case.refusal).into(),
            (&case.scoring_cost_micro_usd).into(),
            (&case.answered_as).into(),
        ]);
    }
    let keep = |kept: &KeptReply| {
        let params: [Value; 3] = [(&kept.key).into(), (&kept.reply).into(), crate::types::time::now_ms().into()];
        Statement::new(
            "INSERT INTO eval_replies (key, reply, created_at) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET
            reply = excluded.reply, created_at = excluded.created_at",
            params,
        )
    };
    // Nothing in memory is made of these rows, so that what is looked up for each call stays known.
    db.batch_apart(&Bulk { sql: UPSERT.into(), columns: COLUMN_COUNT, values }, &replies.iter().map(keep).collect::<Vec<_>>())
}

/// An answer that was given before to what has this key, no earlier than `since`, in milliseconds.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn kept_reply(db: &dyn Db, key: &str, since: i64) -> Result<Option<String>, StoreError> {
    let sql = "SELECT reply FROM eval_replies WHERE key = ? AND created_at >= ?";
    Ok(db.query(sql, &[key.into(), since.into()])?.first().map(|row| row.text(0)))
}

/// Deletes answers from before a time, in milliseconds; at most so many. How many went.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn delete_replies_before(db: &dyn Db, before: i64, most: usize) -> Result<usize, StoreError> {
    let sql = "DELETE FROM eval_replies WHERE key IN (SELECT key FROM eval_replies WHERE created_at < ? ORDER BY created_at LIMIT ?)";
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    db.execute(sql, &[before.into(), most.into()])
}

/// All outcomes of a run by target, in the order of the split: for runs that fit into memory.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn cases(db: &dyn Db, run: &str) -> Result<Vec<CaseRecord>, StoreError> {
    let mut all = Vec::new();
    each_case(db, run, &mut |case| {
        all.push(case);
        Ok(())
    })?;
    Ok(all)
}

/// Hands over all outcomes of a run by target, in the order of the split, reading page by page.
///
/// # Errors
/// [`StoreError`] when the database fails; what `take` says ends the reading.
pub fn each_case<E: From<StoreError>>(db: &dyn Db, run: &str, take: &mut dyn FnMut(CaseRecord) -> Result<(), E>) -> Result<(), E> {
    let sql = format!(
        "SELECT {COLUMNS} FROM run_samples WHERE run = ? AND (target, position, repeat_index) > (?, ?, ?)
         ORDER BY target, position, repeat_index LIMIT {PAGE}"
    );
    let mut after = Place { target: String::new(), position: -1, repeat: -1 };
    loop {
        let rows = db.query(&sql, &[run.into(), (&after.target).into(), after.position.into(), after.repeat.into()])?;
        let is_last = (rows.len() as i64) < PAGE;
        if let Some(last) = rows.last() {
            after = Place { target: last.text(0), position: last.int(2), repeat: last.int(3) };
        }
        for row in rows {
            take(read(&row)?)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Takes a case's target, sample position and repeat, and why it has no answer.
pub type Take<'t> = dyn FnMut((&str, usize, usize), Option<&str>) + 't;

/// Hands over target, position and repeat of every case with its error, where it has one, in the same order.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn each_outcome(db: &dyn Db, run: &str, take: &mut Take<'_>) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT target, position, repeat_index, error FROM run_samples WHERE run = ? AND (target, position, repeat_index) > (?, ?, ?)
         ORDER BY target, position, repeat_index LIMIT {PAGE}"
    );
    let mut after = Place { target: String::new(), position: -1, repeat: -1 };
    loop {
        let rows = db.query(&sql, &[run.into(), (&after.target).into(), after.position.into(), after.repeat.into()])?;
        for row in &rows {
            after = Place { target: row.text(0), position: row.int(1), repeat: row.int(2) };
            take((&after.target, unsigned(after.position), unsigned(after.repeat)), row.text_or_null(3).as_deref());
        }
        if (rows.len() as i64) < PAGE {
            return Ok(());
        }
    }
}

/// The outcome of one case, by target, position and repeat; none where it has none.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn case(db: &dyn Db, run: &str, target: &str, (position, repeat): (usize, usize)) -> Result<Option<CaseRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM run_samples WHERE run = ? AND target = ? AND position = ? AND repeat_index = ?");
    let whole = |count: usize| Value::from(i64::try_from(count).unwrap_or(i64::MAX));
    db.query(&sql, &[run.into(), target.into(), whole(position), whole(repeat)])?.first().map(read).transpose()
}

/// What the answers of a target in a run said in `model`, each once, and whether one of those was given again.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn answered_as(db: &dyn Db, run: &str, target: &str) -> Result<Vec<(Option<String>, bool)>, StoreError> {
    let sql = "SELECT DISTINCT answered_as, cached FROM run_samples WHERE run = ? AND target = ?";
    let rows = db.query(sql, &[run.into(), target.into()])?;
    Ok(rows.iter().map(|row| (row.text_or_null(0), row.int(1) != 0)).collect())
}

/// What the calls of a run have cost so far, in micro-dollars, as far as it is known.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn spent(db: &dyn Db, run: &str) -> Result<i64, StoreError> {
    Ok(db
        .query("SELECT SUM(COALESCE(cost, 0) + COALESCE(scoring_cost, 0)) FROM run_samples WHERE run = ?", &[run.into()])?
        .first()
        .map_or(0, |row| row.int(0)))
}

fn read(row: &Row) -> Result<CaseRecord, StoreError> {
    let json = |column: usize| if row.text_or_null(column).is_some() { row.json(column) } else { Ok(Json::Null) };
    Ok(CaseRecord {
        target: row.text(0),
        sample: row.text(1),
        position: unsigned(row.int(2)),
        repeat: unsigned(row.int(3)),
        output: row.text(4),
        tool_calls: json(5)?,
        error: row.text_or_null(6),
        scores: row.json(7)?,
        notes: json(8)?,
        group: row.text_or_null(9),
        cached: row.int(10) != 0,
        cost_micro_usd: row.int_or_null(11),
        input_tokens: row.int(12).unsigned_abs(),
        output_tokens: row.int(13).unsigned_abs(),
        latency_ms: row.real_or_null(14).unwrap_or(0.0),
        finished_at: row.int(15),
        refusal: row.text_or_null(16),
        scoring_cost_micro_usd: row.int_or_null(17),
        answered_as: row.text_or_null(18),
    })
}

fn unsigned(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

fn whole(count: u64) -> Bound<'static> {
    Bound::Int(i64::try_from(count).unwrap_or(i64::MAX))
}
