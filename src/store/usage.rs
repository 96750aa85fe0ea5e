//! Rows of `usage_by_day` (what was used, summed up) and `log_segments` (how far the sums have come). Both change in the transaction
//! that stores the log rows, so that a row is counted exactly once.

use super::db::{Db, Row, Statement, StoreError, Value};
use super::requests::RequestRow;
use crate::types::time::{date, day_of};
use serde::Serialize;

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Requests, failed ones too.
    pub requests: i64,
    /// Requests with an error.
    pub failed: i64,
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// Tokens read that the provider had in its cache.
    pub cached_tokens: i64,
    /// Tokens written that were spent on reasoning.
    pub reasoning_tokens: i64,
    /// Cost of the requests whose price is known.
    pub cost_micro_usd: i64,
    /// What caches and cascades saved.
    pub saved_micro_usd: i64,
    /// Requests whose price is not known: their cost is not in the sum.
    pub unpriced: i64,
}

const SUMS: [&str; 9] = [
    "requests",
    "failed",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_micro_usd",
    "saved_micro_usd",
    "unpriced",
];

impl Used {
    fn columns(&self) -> [i64; 9] {
        let Used { requests, failed, input_tokens, output_tokens, cached_tokens, .. } = *self;
        let Used { reasoning_tokens, cost_micro_usd, saved_micro_usd, unpriced, .. } = *self;
        [requests, failed, input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost_micro_usd, saved_micro_usd, unpriced]
    }

    fn read(row: &Row, first: usize) -> Self {
        let at = |place: usize| row.int(first + place);
        Used {
            requests: at(0),
            failed: at(1),
            input_tokens: at(2),
            output_tokens: at(3),
            cached_tokens: at(4),
            reasoning_tokens: at(5),
            cost_micro_usd: at(6),
            saved_micro_usd: at(7),
            unpriced: at(8),
        }
    }

    fn add(&mut self, row: &RequestRow) {
        let count = |tokens: Option<u64>| tokens.and_then(|tokens| i64::try_from(tokens).ok()).unwrap_or(0);
        self.requests += 1;
        self.failed += i64::from(row.error_code.is_some());
        self.input_tokens = self.input_tokens.saturating_add(count(row.input_tokens));
        self.output_tokens = self.output_tokens.saturating_add(count(row.output_tokens));
        self.cached_tokens = self.cached_tokens.saturating_add(count(row.cached_tokens));
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(count(row.reasoning_tokens));
        self.cost_micro_usd = self.cost_micro_usd.saturating_add(row.cost_micro_usd.unwrap_or(0));
        self.saved_micro_usd = self.saved_micro_usd.saturating_add(row.saved_micro_usd.unwrap_or(0));
        self.unpriced += i64::from(row.cost_micro_usd.is_none());
    }
}

/// The sums of some log rows: as a rule few sums for many rows.
#[derive(Debug, Default)]
pub struct Sums(Vec<(Bucket, Used)>);

/// What a row of `usage_by_day` is about.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket {
    day: i64,
    project: String,
    api_key: String,
    provider: String,
    model: String,
}

impl Sums {
    /// Adds a row.
    pub fn add(&mut self, row: &RequestRow) {
        // A name that no provider answered to is the caller's invention: it gets no line of its own.
        let invented = row.provider.is_empty() || row.error_code.as_deref() == Some("model_not_found");
        let (day, model) = (day_of(row.at), if invented { "" } else { row.model.as_str() });
        let same = |bucket: &Bucket| {
            let of_row = (row.api_key.as_str(), row.project.as_str(), row.provider.as_str(), model, day);
            (bucket.api_key.as_str(), bucket.project.as_str(), bucket.provider.as_str(), bucket.model.as_str(), bucket.day) == of_row
        };
        if let Some((_, used)) = self.0.iter_mut().rev().find(|(bucket, _)| same(bucket)) {
            return used.add(row);
        }
        let mut used = Used::default();
        used.add(row);
        let (project, api_key, provider) = (row.project.clone(), row.api_key.clone(), row.provider.clone());
        self.0.push((Bucket { day, project, api_key, provider, model: model.to_string() }, used));
    }

    /// The statements that add the sums to what is stored; nothing is left here.
    pub fn take(&mut self) -> Vec<Statement> {
        let added = SUMS.map(|column| format!("{column} = usage_by_day.{column} + excluded.{column}")).join(", ");
        let sql = format!(
            "INSERT INTO usage_by_day (day, project, api_key, provider, model, {}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (day, project, api_key, provider, model) DO UPDATE SET {added}",
            SUMS.join(", ")
        );
        let statement = |(Bucket { day, project, api_key, provider, model }, used): (Bucket, Used)| {
            let mut params: Vec<Value> = vec![day.into(), project.into(), api_key.into(), provider.into(), model.into()];
            params.extend(used.columns().map(Value::from));
            Statement::new(sql.clone(), params)
        };
        let mut sums = std::mem::take(&mut self.0);
        // Everybody locks rows in the same order.
        sums.sort_by(|(a, _), (b, _)| a.cmp(b));
        sums.into_iter().map(statement).collect()
    }
}

/// Whose usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Of a key, by id.
    Key(&'a str),
    /// Of all keys of a project.
    Project(&'a str),
}

/// Micro-dollars spent from a day on.
///
/// # Errors
/// When the database fails.
pub fn spent(db: &dyn Db, whose: Whose<'_>, since_day: i64) -> Result<i64, StoreError> {
    let (column, name) = match whose {
        Whose::Key(id) => ("api_key", id),
        Whose::Project(name) => ("project", name),
    };
    let sql = format!("SELECT SUM(cost_micro_usd) FROM usage_by_day WHERE {column} = ? AND day >= ?");
    Ok(db.query(&sql, &[name.into(), since_day.into()])?.first().map_or(0, |row| row.int(0)))
}

/// What a report has a line for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Each day.
    Day,
    /// Each key.
    Key,
    /// Each project.
    Project,
    /// Each model, as `provider/model`.
    Model,
}

impl By {
    /// Every grouping with its word.
    pub const ALL: [(By, &'static str); 4] = [(By::Day, "day"), (By::Key, "key"), (By::Project, "project"), (By::Model, "model")];
}

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Day number, key id, project, or `provider/model`; empty for requests that reached no provider.
    pub what: String,
    /// What was used.
    pub used: Used,
}

impl Line {
    /// What the line is about; none for requests that reached no provider.
    pub fn what(&self, by: By) -> Option<String> {
        match by {
            By::Day => Some(date(self.what.parse().unwrap_or_default())),
            _ => Some(self.what.clone()).filter(|what| !what.is_empty()),
        }
    }

    /// The line as it is shown, by the command line and over HTTP: what it is about stands under the name of the grouping.
    pub fn shown(&self, by: By) -> serde_json::Value {
        let name = By::ALL.iter().find(|(known, _)| *known == by).map_or("", |(_, word)| word);
        let mut value = serde_json::json!(self.used);
        value[name] = self.what(by).into();
        value
    }
}

/// What a report is about.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// What it has a line for.
    pub by: By,
    /// First day.
    pub since_day: i64,
    /// Only this project.
    pub project: Option<&'a str>,
}

/// A report, sorted by what it has a line for.
///
/// # Errors
/// When the database fails.
pub fn report(db: &dyn Db, report: Report<'_>) -> Result<Vec<Line>, StoreError> {
    let what = match report.by {
        By::Day => "CAST(day AS TEXT)",
        By::Key => "api_key",
        By::Project => "project",
        By::Model => "CASE WHEN provider = '' THEN '' ELSE provider || '/' || model END",
    };
    let sums = SUMS.map(|column| format!("SUM({column})")).join(", ");
    let narrowed = if report.project.is_some() { " AND project = ?" } else { "" };
    let sql = format!("SELECT {what} AS what, {sums} FROM usage_by_day WHERE day >= ?{narrowed} GROUP BY 1 ORDER BY 1");
    let params: Vec<Value> = [report.since_day.into()].into_iter().chain(report.project.map(Value::from)).collect();
    Ok(db.query(&sql, &params)?.iter().map(|row| Line { what: row.text(0), used: Used::read(row, 1) }).collect())
}

/// How many lines of a segment are in the database; none where none is.
///
/// # Errors
/// When the database fails.
pub fn moved_lines(db: &dyn Db, segment: &str) -> Result<Option<i64>, StoreError> {
    let rows = db.query("SELECT moved_lines FROM log_segments WHERE name = ?", &[segment.into()])?;
    Ok(rows.first().map(|row| row.int(0)))
}

/// The statement that says how many lines of a segment are in the database; a conflict when they are not as many as `before` any more.
pub fn move_lines(segment: &str, before: Option<i64>, after: i64) -> Statement {
    match before {
        None => Statement::new("INSERT INTO log_segments (name, moved_lines) VALUES (?, ?)", [segment.into(), after.into()]),
        Some(before) => Statement::new(
            "UPDATE log_segments SET moved_lines = ? WHERE name = ? AND moved_lines = ?",
            [after.into(), segment.into(), before.into()],
        )
        .expecting(1),
    }
}

/// Files that are named in one statement: a database takes some ten thousand parameters, and those that are forgotten can wait.
const MAX_STANDING: usize = 500;

/// The statement that forgets the segments before this one that are not among the `standing`: their files are gone. Names of segments
/// are sorted by time, so that what another process makes meanwhile comes after. None where so many stand, as after a long outage,
/// that it is left to a later transaction.
pub fn forget_segments(before: &str, standing: &[String]) -> Option<Statement> {
    if standing.len() > MAX_STANDING {
        return None;
    }
    let marks = vec!["?"; standing.len()].join(", ");
    let sql = format!("DELETE FROM log_segments WHERE name < ? AND name NOT IN ({marks})");
    let params: Vec<Value> = [before.into()].into_iter().chain(standing.iter().map(Value::from)).collect();
    Some(Statement::new(sql, params))
}
