//! Rows of `projects`: the limits of tenants. A project exists as soon as a key names it; a row it has when it has limits.

use super::db::{Db, Row, Statement, StoreError, Value};
use super::keys::LimitsRow;

/// One project as stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProjectRow {
    /// Name.
    pub name: String,
    /// What all its keys together may use.
    pub limits: LimitsRow,
    /// Keys that are not revoked.
    pub keys: i64,
}

const LIMITS: &str = "requests_per_minute, tokens_per_minute, budget_micro_usd, budget_period";

/// The limits of a project; none where it has no row.
///
/// # Errors
/// When the database fails.
pub fn limits(db: &dyn Db, name: &str) -> Result<Option<LimitsRow>, StoreError> {
    let rows = db.query(&format!("SELECT {LIMITS} FROM projects WHERE name = ?"), &[name.into()])?;
    Ok(rows.first().map(|row| LimitsRow::read(row, 0)))
}

/// Every project that has a row or a key, by name.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db) -> Result<Vec<ProjectRow>, StoreError> {
    let sql = "SELECT n.name, (SELECT COUNT(*) FROM api_keys k WHERE k.project = n.name AND k.revoked_at IS NULL), \
        p.requests_per_minute, p.tokens_per_minute, p.budget_micro_usd, p.budget_period \
        FROM (SELECT name FROM projects UNION SELECT project FROM api_keys) n LEFT JOIN projects p ON p.name = n.name ORDER BY n.name";
    let read = |row: &Row| ProjectRow { name: row.text(0), keys: row.int(1), limits: LimitsRow::read(row, 2) };
    Ok(db.query(sql, &[])?.iter().map(read).collect())
}

/// The statement that gives a project these limits.
pub fn set(name: &str, limits: &LimitsRow, at: i64) -> Statement {
    let sql = format!(
        "INSERT INTO projects (name, {LIMITS}, created_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET \
         requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute, \
         budget_micro_usd = excluded.budget_micro_usd, budget_period = excluded.budget_period"
    );
    let mut params = vec![Value::from(name)];
    params.extend(limits.params());
    params.push(at.into());
    Statement::new(sql, params)
}
