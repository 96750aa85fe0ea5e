//! Who may do what: API [`keys`] and the [`Caller`] they stand for, [`roles`](Role), [`projects`] (tenants), their [`limits`] and what
//! they have used of them ([`meter`]), and the hash-chained [`audit`] log.

pub mod audit;
pub mod bounds;
pub mod keys;
pub mod limits;
pub mod meter;
pub mod projects;
pub mod role;
mod window;

pub use bounds::Bounds;
pub use keys::Keys;
pub use limits::{Limits, Period};
pub use role::Role;

use crate::store::StoreError;
use crate::types::{Code, Coded};
use std::sync::Arc;

/// The one principal that a request acts as, whichever header its key came in.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Id of the key (`key_…`), or a word in brackets such as `[eval]` for work that Refit does by itself.
    pub key_id: String,
    /// Project (tenant).
    pub project: String,
    /// What it may do.
    pub role: Role,
    /// What stands in its way, if anything does.
    pub bounds: Option<Arc<Bounds>>,
}

impl Caller {
    /// Work that the person at the command line started: an admin of the default project. `verb` is `eval`, `demo`, ….
    pub fn local(verb: &str) -> Self {
        Caller { key_id: format!("[{verb}]"), project: "default".to_string(), role: Role::Admin, bounds: None }
    }
}

/// What can go wrong with keys and the audit chain.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The key is unknown, revoked or past its end; which of these is not told.
    #[error("the API key is not valid")]
    InvalidKey,
    /// No such key.
    #[error("no active key has the id or name \"{0}\"")]
    UnknownKey(String),
    /// A key changed under somebody's hands.
    #[error("the key \"{0}\" was changed or revoked meanwhile")]
    Changed(String),
    /// Several active keys share the name.
    #[error("{0} active keys are named \"{1}\"")]
    AmbiguousName(usize, String),
    /// A name, project or role that cannot be.
    #[error("{what} \"{given}\" is not allowed: {expected}")]
    Name {
        /// `key name`, `project`, `role`, ….
        what: &'static str,
        /// What was given.
        given: String,
        /// What would do.
        expected: &'static str,
    },
    /// The chain does not hold.
    #[error("the audit chain is broken at row {sequence}: {reason}")]
    Broken {
        /// First bad row.
        sequence: i64,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Coded for AccessError {
    fn code(&self) -> Code {
        match self {
            AccessError::InvalidKey => Code::INVALID_KEY,
            AccessError::UnknownKey(_) => Code::UNKNOWN_NAME,
            AccessError::AmbiguousName(..) | AccessError::Changed(_) => Code::CONFLICT,
            AccessError::Name { .. } => Code::INVALID_VALUE,
            AccessError::Broken { .. } => Code::CORRUPT,
            AccessError::Store(error) => error.code(),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            AccessError::Name { what, .. } => Some((*what).to_string()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            AccessError::InvalidKey => Some("make one with `refit key create NAME`".into()),
            AccessError::UnknownKey(_) => Some("`refit key list` shows the keys".into()),
            AccessError::AmbiguousName(..) => Some("name it by id; `refit key list` shows the ids".into()),
            AccessError::Broken { .. } => Some("somebody changed the table behind Refit's back; compare it with a backup".into()),
            AccessError::Store(error) => error.hint(),
            AccessError::Name { .. } | AccessError::Changed(_) => None,
        }
    }
}
