//! Rows of `feedback`: what callers and graders think of logged requests. And the other names of requests, by which feedback finds them.

use super::db::{Bulk, Db, Row, Statement, StoreError, Value};
use std::sync::LazyLock;

/// Rows of the log whose names are learned at once.
const LEARNED: usize = 2_000;
/// Rows that reach the database late are learned, too, when they are late by no more: milliseconds.
const LATE_MS: i64 = 3_600_000;

/// One piece of feedback.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackRow {
    /// Chosen by the caller, or `fb_…`; unique within the project.
    pub id: String,
    /// Request that it is about.
    pub request: String,
    /// Project of both.
    pub project: String,
    /// Id of the key that sent it.
    pub api_key: String,
    /// What was judged: `helpful`.
    pub name: String,
    /// JSON: a number, a boolean or a text.
    pub value: String,
    /// The value as a number, where it is one; true is 1.
    pub number: Option<f64>,
    /// Why.
    pub comment: Option<String>,
    /// What the reply should have been.
    pub correction: Option<String>,
    /// Who judged: `user`, `grader`.
    pub source: Option<String>,
    /// When it came, milliseconds.
    pub created_at: i64,
}

/// What a request may be called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its own id.
    Request,
    /// The id of its reply.
    Completion,
    /// The trace that it belongs to; the newest request of it is meant.
    Trace,
    /// The conversation that it belongs to; the newest request of it is meant.
    Conversation,
}

const FIELDS: &str = "id, request, project, api_key, name, value, number, comment, correction, source, created_at";

/// Stores feedback, in the place of what had its id.
///
/// # Errors
/// When the database fails.
pub fn put(db: &dyn Db, row: FeedbackRow) -> Result<(), StoreError> {
    let FeedbackRow { id, request, project, api_key, name, value, number, comment, correction, source, created_at } = row;
    let sql = format!(
        "INSERT INTO feedback ({FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (project, id) DO UPDATE SET \
        request = excluded.request, api_key = excluded.api_key, name = excluded.name, value = excluded.value, number = excluded.number, \
        comment = excluded.comment, correction = excluded.correction, source = excluded.source, created_at = excluded.created_at"
    );
    let params: [Value; 11] = [
        id.into(),
        request.into(),
        project.into(),
        api_key.into(),
        name.into(),
        value.into(),
        number.into(),
        comment.into(),
        correction.into(),
        source.into(),
        created_at.into(),
    ];
    db.execute(&sql, &params).map(drop)
}

/// All feedback on a request, oldest first; only that of a project where one is named.
///
/// # Errors
/// When the database fails.
pub fn of_request(db: &dyn Db, request: &str, project: Option<&str>) -> Result<Vec<FeedbackRow>, StoreError> {
    let sql = format!("SELECT {FIELDS} FROM feedback WHERE request = ? ORDER BY created_at, id");
    let rows = db.query(&sql, &[request.into()])?;
    Ok(rows.iter().map(read).filter(|row| project.is_none_or(|project| row.project == project)).collect())
}

/// How much other feedback a request has: none of this id.
///
/// # Errors
/// When the database fails.
pub fn count_others(db: &dyn Db, request: &str, id: &str) -> Result<usize, StoreError> {
    let rows = db.query("SELECT COUNT(*) FROM feedback WHERE request = ? AND id <> ?", &[request.into(), id.into()])?;
    Ok(rows.first().map_or(0, |row| usize::try_from(row.int(0)).unwrap_or(0)))
}

/// The id of a project's request by one of its names; the newest where several have it.
///
/// # Errors
/// When the database fails.
pub fn request_of(db: &dyn Db, project: &str, kind: Kind, name: &str) -> Result<Option<String>, StoreError> {
    let first = |rows: Vec<Row>| rows.first().map(|row| row.text(0));
    if kind == Kind::Request {
        return Ok(first(db.query("SELECT id FROM requests WHERE id = ? AND project = ?", &[name.into(), project.into()])?));
    }
    let sql = "SELECT requests.id FROM request_names JOIN requests ON requests.id = request_names.request \
        WHERE request_names.kind = ? AND request_names.name = ? AND requests.project = ? ORDER BY requests.at DESC, requests.id DESC LIMIT 1";
    Ok(first(db.query(sql, &[kind.word().into(), name.into(), project.into()])?))
}

/// Learns the names of the requests that were logged since this was last done, in short transactions. What was learned before is not
/// written again.
///
/// # Errors
/// When the database fails.
pub fn learn_names(db: &dyn Db) -> Result<(), StoreError> {
    let at = |sql: &str| -> Result<Option<i64>, StoreError> { Ok(db.query(sql, &[])?.first().and_then(|row| row.int_or_null(0))) };
    let mark = at("SELECT at FROM request_names_mark WHERE id = 1")?;
    let Some(newest) = at("SELECT MAX(at) FROM requests")? else { return Ok(()) };
    let mut last = (mark.map_or(0, |mark| mark.saturating_sub(LATE_MS)), String::new());
    loop {
        let rows = db.query(&UNLEARNED, &[last.0.into(), last.0.into(), (&last.1).into(), LEARNED.into()])?;
        let reached = rows.last().map(|row| (row.int(0), row.text(1)));
        let up_to = reached.as_ref().map_or(newest, |(at, _)| *at);
        if rows.is_empty() && mark.is_some_and(|mark| mark >= newest) {
            return Ok(());
        }
        learn(db, &rows, mark.map_or(up_to, |mark| mark.max(up_to)))?;
        let Some(reached) = reached else { return Ok(()) };
        last = reached;
    }
}

/// Rows from a moment on that have a name which is not known, oldest first.
static UNLEARNED: LazyLock<String> = LazyLock::new(|| {
    let unknown = NAMES.map(|(column, kind)| {
        let known = format!("SELECT 1 FROM request_names WHERE kind = '{}' AND name = {column} AND request = requests.id", kind.word());
        format!("({column} IS NOT NULL AND NOT EXISTS ({known}))")
    });
    let names = NAMES.map(|(column, _)| column).join(", ");
    let unknown = unknown.join(" OR ");
    format!("SELECT at, id, {names} FROM requests WHERE at >= ? AND (at > ? OR id > ?) AND ({unknown}) ORDER BY at, id LIMIT ?")
});

/// Columns of the log with names.
const NAMES: [(&str, Kind); 3] = [("reply_id", Kind::Completion), ("trace_id", Kind::Trace), ("conversation", Kind::Conversation)];

/// Puts the names of rows down. Nothing in memory is made of them.
fn learn(db: &dyn Db, rows: &[Row], mark: i64) -> Result<(), StoreError> {
    let names = rows.iter().flat_map(|row| {
        let named = |(column, (_, kind)): (usize, &(&str, Kind))| {
            let name = row.text_or_null(column + 2)?;
            Some([Value::from(kind.word()), name.into(), row.text(1).into(), row.int(0).into()])
        };
        NAMES.iter().enumerate().filter_map(named)
    });
    let names: Vec<Value> = names.flatten().collect();
    let sql = "INSERT INTO request_names (kind, name, request, at) VALUES (?, ?, ?, ?) ON CONFLICT (kind, name, request) DO NOTHING";
    let bulk = Bulk { sql: sql.into(), columns: 4, values: names.iter().map(|value: &Value| value.into()).collect() };
    let sql = "INSERT INTO request_names_mark (id, at) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    db.batch_apart(&bulk, &[Statement::new(sql, [mark.into()])])
}

impl Kind {
    /// The kind's word in the table.
    const fn word(self) -> &'static str {
        match self {
            Kind::Request => "request",
            Kind::Completion => "completion",
            Kind::Trace => "trace",
            Kind::Conversation => "conversation",
        }
    }
}

fn read(row: &Row) -> FeedbackRow {
    FeedbackRow {
        id: row.text(0),
        request: row.text(1),
        project: row.text(2),
        api_key: row.text(3),
        name: row.text(4),
        value: row.text(5),
        number: row.real_or_null(6),
        comment: row.text_or_null(7),
        correction: row.text_or_null(8),
        source: row.text_or_null(9),
        created_at: row.int(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn log(db: &dyn Db, id: &str, at: i64, conversation: &str) {
        let sql = "INSERT INTO requests (id, at, project, api_key, endpoint, model, provider, streamed, status, total_ms, reply_id, conversation) \
            VALUES (?, ?, 'p', 'k', 'e', 'm', 'x', 0, 200, 1, ?, ?)";
        db.execute(sql, &[id.into(), at.into(), format!("reply-{id}").into(), conversation.into()]).expect("logged");
    }

    #[test]
    fn names_are_learned_once_also_of_rows_that_come_late_and_memory_stays_what_it_was() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = Store::open(directory.path()).expect("a store").db;
        let db = db.as_ref();
        learn_names(db).expect("nothing to learn");
        let found = |name: &str| request_of(db, "p", Kind::Conversation, name).expect("looked up");
        log(db, "a", LATE_MS * 3, "talk");
        log(db, "b", LATE_MS * 3 + 10, "talk");
        std::thread::sleep(std::time::Duration::from_millis(5));
        let before = db.generation().expect("a generation");
        learn_names(db).expect("learned");
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!((found("talk").as_deref(), db.generation().expect("a generation")), (Some("b"), before));
        // A long call is logged after others that began later.
        log(db, "late", LATE_MS * 3 - 5_000, "other");
        learn_names(db).expect("learned");
        assert_eq!(found("other").as_deref(), Some("late"));
        // What is known is not written again: not even where it was forgotten by hand, nobody would know.
        let unlearned = db.query(&UNLEARNED, &[0.into(), 0.into(), "".into(), LEARNED.into()]).expect("rows");
        assert_eq!(unlearned, []);
    }
}
