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

/// The statement that takes a project from some limits to others; a conflict when it has others than `before` by now.
pub fn set(name: &str, before: &LimitsRow, after: &LimitsRow, at: i64) -> Statement {
    let columns: Vec<_> = LIMITS.split(", ").collect();
    let set = columns.iter().map(|column| format!("{column} = excluded.{column}")).collect::<Vec<_>>().join(", ");
    let same = columns.iter().map(|column| format!("projects.{column} IS NOT DISTINCT FROM ?")).collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "INSERT INTO projects (name, {LIMITS}, created_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET {set} WHERE {same}"
    );
    let mut params = vec![Value::from(name)];
    params.extend(after.params());
    params.push(at.into());
    params.extend(before.params());
    Statement::new(sql, params).expecting(1)
}
