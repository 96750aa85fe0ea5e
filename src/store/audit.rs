//! Rows of `audit` and its head. How rows are chained is `access::audit`'s business; here they are only read and written.

use super::db::{Db, Row, Statement, StoreError};

/// One link of the audit chain.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// 1, 2, 3, … without gaps.
    pub sequence: i64,
    /// Milliseconds.
    pub at: i64,
    /// Who did it.
    pub actor: String,
    /// What was done, such as `key.create`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// JSON text: the figures used.
    pub detail: String,
    /// Hash of the row before.
    pub previous: String,
    /// Hash of this row.
    pub hash: String,
}

/// The newest link: (sequence, hash), or none in an empty chain.
///
/// # Errors
/// When the database fails.
pub fn head(db: &dyn Db) -> Result<Option<(i64, String)>, StoreError> {
    let rows = db.query("SELECT sequence, hash FROM audit_head WHERE id = 1", &[])?;
    Ok(rows.first().map(|row| (row.int(0), row.text(1))))
}

/// The statements that append a row after `row.previous`; in one batch they fail with a conflict when somebody else was faster.
pub fn append(row: &AuditRow) -> Vec<Statement> {
    let insert = Statement::new(
        "INSERT INTO audit (sequence, at, actor, action, subject, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            row.sequence.into(),
            row.at.into(),
            (&row.actor).into(),
            (&row.action).into(),
            (&row.subject).into(),
            (&row.detail).into(),
            (&row.previous).into(),
            (&row.hash).into(),
        ],
    );
    let head = if row.sequence == 1 {
        Statement::new("INSERT INTO audit_head (id, sequence, hash) VALUES (1, ?, ?)", [row.sequence.into(), (&row.hash).into()])
    } else {
        let sql = "UPDATE audit_head SET sequence = ?, hash = ? WHERE id = 1 AND sequence = ? AND hash = ?";
        Statement::new(sql, [row.sequence.into(), (&row.hash).into(), (row.sequence - 1).into(), (&row.previous).into()]).expecting(1)
    };
    vec![insert, head]
}

/// Up to `limit` rows after a sequence number, in order.
///
/// # Errors
/// When the database fails.
pub fn after(db: &dyn Db, sequence: i64, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
    let sql = "SELECT sequence, at, actor, action, subject, detail, previous, hash FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?";
    Ok(db.query(sql, &[sequence.into(), limit.into()])?.iter().map(read).collect())
}

/// The newest `limit` rows, oldest of them first.
///
/// # Errors
/// When the database fails.
pub fn newest(db: &dyn Db, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
    let sql = "SELECT sequence, at, actor, action, subject, detail, previous, hash FROM audit ORDER BY sequence DESC LIMIT ?";
    let mut rows: Vec<_> = db.query(sql, &[limit.into()])?.iter().map(read).collect();
    rows.reverse();
    Ok(rows)
}

fn read(row: &Row) -> AuditRow {
    AuditRow {
        sequence: row.int(0),
        at: row.int(1),
        actor: row.text(2),
        action: row.text(3),
        subject: row.text(4),
        detail: row.text(5),
        previous: row.text(6),
        hash: row.text(7),
    }
}
