//! The narrow database interface: query, execute, batch. SQL is written in the subset that SQLite and Postgres share,
//! with `?` placeholders.

use crate::types::{Code, Coded};
use std::borrow::Cow;
use std::path::PathBuf;

/// A bound parameter or a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// 64-bit integer; booleans are 0 and 1.
    Int(i64),
    /// Double.
    Real(f64),
    /// UTF-8 text; JSON is kept as text.
    Text(String),
}

macro_rules! from_value {
    ($($t:ty => |$x:ident| $e:expr),* $(,)?) => { $(impl From<$t> for Value { fn from($x: $t) -> Self { $e } })* };
}
from_value! {
    i64 => |x| Value::Int(x),
    i32 => |x| Value::Int(x.into()),
    u32 => |x| Value::Int(x.into()),
    bool => |x| Value::Int(x.into()),
    f64 => |x| Value::Real(x),
    String => |x| Value::Text(x),
    &str => |x| Value::Text(x.to_string()),
    &String => |x| Value::Text(x.clone()),
    crate::types::Digest => |x| Value::Text(x.to_string()),
    &serde_json::Value => |x| Value::Text(x.to_string()),
}
impl From<u64> for Value {
    fn from(x: u64) -> Self {
        Value::Int(i64::try_from(x).unwrap_or(i64::MAX))
    }
}
impl From<usize> for Value {
    fn from(x: usize) -> Self {
        Value::from(x as u64)
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(x: Option<T>) -> Self {
        x.map_or(Value::Null, Into::into)
    }
}

/// One SQL statement with its parameters, for [`Db::batch`].
#[derive(Debug, Clone)]
pub struct Statement {
    /// SQL text with `?` placeholders.
    pub sql: Cow<'static, str>,
    /// Parameters in order.
    pub params: Vec<Value>,
    /// When set, the number of rows that must change; otherwise the whole batch is rolled back with [`StoreError::Conflict`].
    pub expect: Option<usize>,
}

impl Statement {
    /// A statement whose count of changed rows does not matter.
    pub fn new(sql: impl Into<Cow<'static, str>>, params: impl Into<Vec<Value>>) -> Self {
        Statement { sql: sql.into(), params: params.into(), expect: None }
    }

    /// A statement that must change exactly `rows` rows.
    pub fn expecting(self, rows: usize) -> Self {
        Statement { expect: Some(rows), ..self }
    }
}

/// A bound parameter that is only borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound<'a> {
    /// SQL NULL.
    Null,
    /// 64-bit integer.
    Int(i64),
    /// Double.
    Real(f64),
    /// UTF-8 text.
    Text(&'a str),
}

macro_rules! to_bound {
    ($($t:ty => |$x:ident| $e:expr),* $(,)?) => { $(impl<'a> From<&'a $t> for Bound<'a> { fn from($x: &'a $t) -> Self { $e } })* };
}
to_bound! {
    i64 => |x| Bound::Int(*x),
    u16 => |x| Bound::Int((*x).into()),
    u64 => |x| Bound::Int(i64::try_from(*x).unwrap_or(i64::MAX)),
    bool => |x| Bound::Int((*x).into()),
    f64 => |x| Bound::Real(*x),
    String => |x| Bound::Text(x),
}
impl<'a> From<&'a Value> for Bound<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Bound::Null,
            Value::Int(x) => Bound::Int(*x),
            Value::Real(x) => Bound::Real(*x),
            Value::Text(text) => Bound::Text(text),
        }
    }
}
impl<'a, T> From<&'a Option<T>> for Bound<'a>
where
    Bound<'a>: From<&'a T>,
{
    fn from(x: &'a Option<T>) -> Self {
        x.as_ref().map_or(Bound::Null, <Bound<'a> as From<&'a T>>::from)
    }
}

/// One statement, run for many rows of parameters.
#[derive(Debug)]
pub struct Bulk<'a> {
    /// SQL text with `?` placeholders.
    pub sql: Cow<'a, str>,
    /// Parameters of a row.
    pub columns: usize,
    /// The parameters of all rows.
    pub values: Vec<Bound<'a>>,
}

impl Bulk<'_> {
    /// No rows: for statements that are run apart.
    pub fn empty() -> Self {
        Bulk { sql: "SELECT 1".into(), columns: 1, values: Vec::new() }
    }
}

/// One row of a result. Columns are read by position, in the order of the SELECT list.
#[derive(Debug, Clone, PartialEq)]
pub struct Row(pub Vec<Value>);

impl Row {
    /// Text of a column; NULL and numbers give an empty text.
    pub fn text(&self, column: usize) -> String {
        match self.0.get(column) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    /// Text of a nullable column.
    pub fn text_or_null(&self, column: usize) -> Option<String> {
        match self.0.get(column) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Integer of a column, 0 when NULL.
    pub fn int(&self, column: usize) -> i64 {
        self.int_or_null(column).unwrap_or(0)
    }

    /// Integer of a nullable column.
    pub fn int_or_null(&self, column: usize) -> Option<i64> {
        match self.0.get(column) {
            Some(Value::Int(x)) => Some(*x),
            _ => None,
        }
    }

    /// Number of a nullable column.
    pub fn real_or_null(&self, column: usize) -> Option<f64> {
        match self.0.get(column) {
            Some(Value::Real(x)) => Some(*x),
            Some(Value::Int(x)) => Some(*x as f64),
            _ => None,
        }
    }

    /// Digest of a column.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the text is not a digest.
    pub fn digest(&self, column: usize) -> Result<crate::types::Digest, StoreError> {
        let text = self.text(column);
        text.parse().map_err(|_| StoreError::Corrupt(format!("column {column} is not a digest: {text:?}")))
    }

    /// JSON of a column.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the text is not JSON.
    pub fn json(&self, column: usize) -> Result<serde_json::Value, StoreError> {
        let text = self.text(column);
        serde_json::from_str(&text).map_err(|error| StoreError::Corrupt(format!("column {column} is not JSON: {error}")))
    }
}

/// What the store needs of a database. Calls block; async code goes through `spawn_blocking`.
pub trait Db: Send + Sync {
    /// Rows of a SELECT.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    fn query(&self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError>;

    /// Runs one statement in its own transaction; returns the number of rows changed.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] on a violated constraint, otherwise as `query`.
    fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError>;

    /// Runs all statements in one transaction, or none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a constraint or an expected row count fails.
    fn batch(&self, statements: &[Statement]) -> Result<(), StoreError>;

    /// Runs a statement for many rows, and others after it, in one transaction or not at all: for what nothing in memory is made of, such
    /// as the request log. The generation stays.
    ///
    /// # Errors
    /// As `batch`.
    fn batch_apart(&self, bulk: &Bulk<'_>, statements: &[Statement]) -> Result<(), StoreError>;

    /// A number that is another one a millisecond after every other commit, whoever made it. Takes microseconds; may be called in async
    /// code.
    ///
    /// # Errors
    /// As `query`.
    fn generation(&self) -> Result<u64, StoreError>;
}

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("the database failed: {0}")]
    Database(String),
    /// A uniqueness or row-count expectation was not met: somebody else was faster, or the thing exists.
    #[error("the stored state is not what was expected: {0}")]
    Conflict(String),
    /// Stored bytes do not match their digest, or a row cannot be read.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The database was written by a newer version.
    #[error("the database has schema {found}, this program knows up to {known}")]
    Newer {
        /// Schema version found.
        found: i64,
        /// Newest version this program knows.
        known: i64,
    },
    /// A named thing is not there.
    #[error("{what} \"{name}\" does not exist{nearest}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// `; did you mean …`, or empty.
        nearest: String,
    },
    /// The file system failed.
    #[error("cannot use {}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            StoreError::Conflict(_) => Code::CONFLICT,
            StoreError::Corrupt(_) => Code::CORRUPT,
            StoreError::Unknown { .. } => Code::UNKNOWN_NAME,
            StoreError::Database(_) | StoreError::Newer { .. } | StoreError::Io { .. } => Code::STORAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            StoreError::Newer { .. } => Some("use the newer refit, or another --data-dir".into()),
            StoreError::Io { .. } => Some("check that --data-dir exists, has space and can be written".into()),
            _ => None,
        }
    }
}
