//! Questions about the request log: which rows a filter takes, page by page, and what is too old. Writing it is `requests`' business.

use super::db::{Db, Statement, StoreError, Value};
use super::requests::{COLUMNS, RequestRow, read};

/// Which requests are meant; what is none takes all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Came in at or after, milliseconds.
    pub since: Option<i64>,
    /// Came in before, milliseconds.
    pub until: Option<i64>,
    /// Route that was called.
    pub route: Option<String>,
    /// `provider/model`, or the model alone.
    pub model: Option<String>,
    /// Project.
    pub project: Option<String>,
    /// How they ended.
    pub status: Option<Ended>,
    /// What callers thought of them.
    pub feedback: Option<Liked>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With a status from the first to the second.
    Status(u16, u16),
    /// Without an error.
    Well,
    /// With an error.
    Badly,
}

/// Feedback that was good enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Liked {
    /// Only that of this name.
    pub name: Option<String>,
    /// Mean of its numbers, at least; true counts as 1.
    pub least: f64,
}

/// Where a page begins, and in which direction it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// The oldest that are newer than this one.
    After(Option<(i64, String)>),
    /// The newest.
    Newest,
}

impl Ended {
    /// Whether a row ended so.
    pub fn is(self, row: &RequestRow) -> bool {
        match self {
            Ended::Status(least, most) => (least..=most).contains(&row.status),
            Ended::Well => row.error_code.is_none(),
            Ended::Badly => row.error_code.is_some(),
        }
    }
}

impl Filter {
    /// Whether a row that is not in the database yet is meant. It has no feedback: what asks for some does not mean it.
    pub fn takes(&self, row: &RequestRow) -> bool {
        let named = |model: &String| match model.split_once('/') {
            Some((provider, rest)) if row.provider == provider => row.model == rest,
            _ => row.model == *model,
        };
        self.since.is_none_or(|since| row.at >= since)
            && self.until.is_none_or(|until| row.at < until)
            && self.route.as_ref().is_none_or(|route| row.route.as_ref() == Some(route))
            && self.model.as_ref().is_none_or(named)
            && self.project.as_ref().is_none_or(|project| row.project == *project)
            && self.status.is_none_or(|status| status.is(row))
            && self.feedback.is_none()
    }

    /// The conditions, with their parameters.
    fn sql(&self) -> (Vec<String>, Vec<Value>) {
        let (mut all, mut params) = (Vec::new(), Vec::new());
        let mut and = |condition: &str, values: Vec<Value>| {
            all.push(condition.to_string());
            params.extend(values);
        };
        if let Some(since) = self.since {
            and("at >= ?", vec![since.into()]);
        }
        if let Some(until) = self.until {
            and("at < ?", vec![until.into()]);
        }
        if let Some(route) = &self.route {
            and("route = ?", vec![route.into()]);
        }
        if let Some(model) = &self.model {
            let (provider, rest) = model.split_once('/').unwrap_or(("", model));
            and("(model = ? OR (provider = ? AND model = ?))", vec![model.into(), provider.into(), rest.into()]);
        }
        if let Some(project) = &self.project {
            and("project = ?", vec![project.into()]);
        }
        match self.status {
            Some(Ended::Status(least, most)) => and("status BETWEEN ? AND ?", vec![u32::from(least).into(), u32::from(most).into()]),
            Some(Ended::Well) => and("error_code IS NULL", Vec::new()),
            Some(Ended::Badly) => and("error_code IS NOT NULL", Vec::new()),
            None => {}
        }
        match &self.feedback {
            Some(Liked { name: Some(name), least }) => {
                and("(SELECT AVG(number) FROM feedback WHERE request = requests.id AND name = ?) >= ?", vec![name.into(), (*least).into()])
            }
            Some(Liked { name: None, least }) => {
                and("(SELECT AVG(number) FROM feedback WHERE request = requests.id) >= ?", vec![(*least).into()])
            }
            None => {}
        }
        (all, params)
    }
}

/// A page of rows without their bodies: oldest first, or the newest first.
///
/// # Errors
/// When the database fails.
pub fn page(db: &dyn Db, filter: &Filter, page: &Page, limit: usize) -> Result<Vec<RequestRow>, StoreError> {
    let (mut all, mut params) = filter.sql();
    if let Page::After(Some((at, id))) = page {
        // The first condition is what the index answers.
        all.push("at >= ? AND (at > ? OR id > ?)".into());
        params.extend([(*at).into(), (*at).into(), id.into()]);
    }
    let conditions = if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) };
    let order = if *page == Page::Newest { "at DESC, id DESC" } else { "at, id" };
    let columns = COLUMNS.replace(" request, reply,", " NULL, NULL,");
    params.push(limit.into());
    let sql = format!("SELECT {columns} FROM requests{conditions} ORDER BY {order} LIMIT ?");
    Ok(db.query(&sql, &params)?.iter().map(read).collect())
}

/// Rows without their bodies that came in at or after `from` and ended at or after `ended`, oldest first: what is new for somebody who
/// looks again. A long request ends after ones that came in later.
///
/// # Errors
/// When the database fails.
pub fn ended_since(db: &dyn Db, filter: &Filter, (from, ended): (i64, i64), limit: usize) -> Result<Vec<RequestRow>, StoreError> {
    let (mut all, mut params) = filter.sql();
    all.push("at >= ? AND at + total_ms >= ?".into());
    params.extend([from.into(), ended.into(), limit.into()]);
    let columns = COLUMNS.replace(" request, reply,", " NULL, NULL,");
    let sql = format!("SELECT {columns} FROM requests WHERE {} ORDER BY at, id LIMIT ?", all.join(" AND "));
    Ok(db.query(&sql, &params)?.iter().map(read).collect())
}

/// The bodies of a row: request and reply.
///
/// # Errors
/// When the database fails.
pub fn bodies(db: &dyn Db, id: &str) -> Result<(Option<String>, Option<String>), StoreError> {
    let rows = db.query("SELECT request, reply FROM requests WHERE id = ?", &[id.into()])?;
    Ok(rows.first().map_or((None, None), |row| (row.text_or_null(0), row.text_or_null(1))))
}

/// How many rows came in before, and how many of them, or of those before `bodies`, have bodies.
///
/// # Errors
/// When the database fails.
pub fn count_before(db: &dyn Db, rows: Option<i64>, bodies: Option<i64>) -> Result<(u64, u64), StoreError> {
    let count = |sql: &str, params: &[Value]| -> Result<u64, StoreError> {
        Ok(db.query(sql, params)?.first().map_or(0, |row| row.int(0).unsigned_abs()))
    };
    let old = rows.map_or(Ok(0), |before| count("SELECT COUNT(*) FROM requests WHERE at < ?", &[before.into()]))?;
    let with_bodies = bodies.map_or(Ok(0), |before| {
        // Rows that go as a whole are not counted twice.
        let from = rows.unwrap_or(i64::MIN);
        let sql = "SELECT COUNT(*) FROM requests WHERE at >= ? AND at < ? AND (request IS NOT NULL OR reply IS NOT NULL)";
        count(sql, &[from.into(), before.into()])
    })?;
    Ok((old, with_bodies))
}

/// Deletes up to `limit` rows that came in before, oldest first, with their feedback. Returns how many.
///
/// # Errors
/// When the database fails.
pub fn delete_before(db: &dyn Db, before: i64, limit: usize) -> Result<usize, StoreError> {
    let found = db.query("SELECT at, id FROM requests WHERE at < ? ORDER BY at, id LIMIT ?", &[before.into(), limit.into()])?;
    let Some(last) = found.last() else { return Ok(0) };
    // All that are older than the last one, and those of its millisecond up to it.
    let of = [last.int(0).into(), last.int(0).into(), last.text(1).into()];
    let old = "at < ? OR (at = ? AND id <= ?)";
    db.batch(&[
        Statement::new(format!("DELETE FROM feedback WHERE request IN (SELECT id FROM requests WHERE {old})"), of.clone()),
        Statement::new("DELETE FROM request_names WHERE at < ?", [last.int(0).into()]),
        Statement::new(format!("DELETE FROM requests WHERE {old}"), of),
    ])?;
    Ok(found.len())
}

/// Takes the bodies out of up to `limit` rows from `from` on that came in before, oldest first. Returns how many rows were looked at,
/// how many had bodies, and where to go on.
///
/// # Errors
/// When the database fails.
pub fn clear_bodies(db: &dyn Db, from: &(i64, String), before: i64, limit: usize) -> Result<Cleared, StoreError> {
    let sql = "SELECT at, id, request IS NOT NULL OR reply IS NOT NULL FROM requests \
        WHERE at >= ? AND (at > ? OR id > ?) AND at < ? ORDER BY at, id LIMIT ?";
    let found = db.query(sql, &[from.0.into(), from.0.into(), (&from.1).into(), before.into(), limit.into()])?;
    let Some(last) = found.last() else { return Ok(Cleared::default()) };
    let clear = |id: String| Statement::new("UPDATE requests SET request = NULL, reply = NULL WHERE id = ?", [id.into()]);
    let with_bodies: Vec<_> = found.iter().filter(|row| row.int(2) != 0).map(|row| clear(row.text(1))).collect();
    if !with_bodies.is_empty() {
        db.batch(&with_bodies)?;
    }
    Ok(Cleared { looked_at: found.len(), cleared: with_bodies.len(), last: Some((last.int(0), last.text(1))) })
}

/// What [`clear_bodies`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Rows looked at.
    pub looked_at: usize,
    /// Rows whose bodies are gone.
    pub cleared: usize,
    /// The last of them.
    pub last: Option<(i64, String)>,
}
