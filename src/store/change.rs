//! A change of the store together with what the audit log says of it. Rooms of one rank do not import each other, so a room that may
//! not name `access` hands its changes to a [`Commit`], which the caller takes from `access::audit`.

use super::db::{Statement, StoreError};
use serde_json::Value;

/// A change of the store and what the audit log says of it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Who acts.
    pub actor: String,
    /// `noun.verb`, such as `release.promote`.
    pub action: String,
    /// What it is about.
    pub subject: String,
    /// The numbers used.
    pub detail: Value,
    /// Applied all or none, in one transaction with the audit row.
    pub statements: Vec<Statement>,
}

/// Applies a [`Change`] together with its audit row.
pub type Commit<'a> = &'a dyn Fn(&Change) -> Result<(), StoreError>;
