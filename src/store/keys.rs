//! Rows of `api_keys`. The key itself is never here: only its keyed hash (see `access::keys`).

use super::db::{Db, Row, Statement, StoreError, Value};

/// One API key as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRow {
    /// `key_…`.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Project (tenant) it belongs to.
    pub project: String,
    /// Role word.
    pub role: String,
    /// First and last characters of the key, to recognise it by.
    pub hint: String,
    /// HMAC-SHA256 of the key, hex.
    pub hash: String,
    /// When it was made, milliseconds.
    pub created_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
    /// JSON list of the names that it may call; none for all.
    pub routes: Option<String>,
    /// When it ends, milliseconds.
    pub expires_at: Option<i64>,
    /// What it may use.
    pub limits: LimitsRow,
}

/// What a key or a project may use, as stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LimitsRow {
    /// Requests in any minute.
    pub requests_per_minute: Option<i64>,
    /// Tokens in any minute.
    pub tokens_per_minute: Option<i64>,
    /// Micro-dollars in a period.
    pub budget_micro_usd: Option<i64>,
    /// `day`, `month`, `total`.
    pub budget_period: Option<String>,
}

impl LimitsRow {
    /// From four columns.
    pub(super) fn read(row: &Row, first: usize) -> Self {
        LimitsRow {
            requests_per_minute: row.int_or_null(first),
            tokens_per_minute: row.int_or_null(first + 1),
            budget_micro_usd: row.int_or_null(first + 2),
            budget_period: row.text_or_null(first + 3),
        }
    }

    /// As four parameters.
    pub(super) fn params(&self) -> [Value; 4] {
        let LimitsRow { requests_per_minute, tokens_per_minute, budget_micro_usd, budget_period } = self;
        [(*requests_per_minute).into(), (*tokens_per_minute).into(), (*budget_micro_usd).into(), budget_period.clone().into()]
    }
}

const COLUMNS: &str = "id, name, project, role, hint, hash, created_at, revoked_at, routes, expires_at, \
    requests_per_minute, tokens_per_minute, budget_micro_usd, budget_period";

fn read(row: &Row) -> KeyRow {
    KeyRow {
        id: row.text(0),
        name: row.text(1),
        project: row.text(2),
        role: row.text(3),
        hint: row.text(4),
        hash: row.text(5),
        created_at: row.int(6),
        revoked_at: row.int_or_null(7),
        routes: row.text_or_null(8),
        expires_at: row.int_or_null(9),
        limits: LimitsRow::read(row, 10),
    }
}

/// The statement that stores a new key; a conflict when the id or hash exists.
pub fn insert(key: &KeyRow) -> Statement {
    let mut params = vec![
        Value::from(&key.id),
        (&key.name).into(),
        (&key.project).into(),
        (&key.role).into(),
        (&key.hint).into(),
        (&key.hash).into(),
        key.created_at.into(),
        key.revoked_at.into(),
        key.routes.clone().into(),
        key.expires_at.into(),
    ];
    params.extend(key.limits.params());
    Statement::new(format!("INSERT INTO api_keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"), params)
}

/// The statement that takes a key from one row to another, but for its secret; a conflict when anything of it is not as in `before` any
/// more, or it was revoked.
pub fn update(before: &KeyRow, after: &KeyRow) -> Statement {
    const CHANGEABLE: [&str; 8] =
        ["name", "role", "routes", "expires_at", "requests_per_minute", "tokens_per_minute", "budget_micro_usd", "budget_period"];
    let of = |key: &KeyRow| {
        let own = [Value::from(&key.name), (&key.role).into(), key.routes.clone().into(), key.expires_at.into()];
        own.into_iter().chain(key.limits.params())
    };
    let set = CHANGEABLE.map(|column| format!("{column} = ?")).join(", ");
    let same = CHANGEABLE.map(|column| format!("{column} IS NOT DISTINCT FROM ?")).join(" AND ");
    let sql = format!("UPDATE api_keys SET {set} WHERE id = ? AND revoked_at IS NULL AND {same}");
    let params: Vec<Value> = of(after).chain([Value::from(&after.id)]).chain(of(before)).collect();
    Statement::new(sql, params).expecting(1)
}

/// The statement that gives a key the secret of this row; a conflict when it was revoked, or its hash is not `hash` any more.
pub fn rotate(key: &KeyRow, hash: &str) -> Statement {
    let sql = "UPDATE api_keys SET hint = ?, hash = ? WHERE id = ? AND hash = ? AND revoked_at IS NULL";
    Statement::new(sql, [Value::from(&key.hint), (&key.hash).into(), (&key.id).into(), hash.into()]).expecting(1)
}

/// All keys, oldest first, revoked ones too.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db) -> Result<Vec<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys ORDER BY created_at, id"), &[])?;
    Ok(rows.iter().map(read).collect())
}

/// The key with this hash.
///
/// # Errors
/// When the database fails.
pub fn by_hash(db: &dyn Db, hash: &str) -> Result<Option<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys WHERE hash = ?"), &[hash.into()])?;
    Ok(rows.first().map(read))
}

/// The key with this id.
///
/// # Errors
/// When the database fails.
pub fn by_id(db: &dyn Db, id: &str) -> Result<Option<KeyRow>, StoreError> {
    let rows = db.query(&format!("SELECT {COLUMNS} FROM api_keys WHERE id = ?"), &[id.into()])?;
    Ok(rows.first().map(read))
}

/// The statement that marks a key as revoked; a conflict when it is unknown or was revoked before.
pub fn revoke(id: &str, at: i64) -> Statement {
    Statement::new("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", [at.into(), id.into()]).expecting(1)
}
