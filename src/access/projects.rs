//! Projects: tenants with limits of their own, over all their keys together. A project needs no making; it is there with its first key
//! or its first limit.

use super::keys::check_project;
use super::limits::LimitChanges;
use super::{AccessError, Limits, audit};
use crate::store::projects::{self as rows, ProjectRow};
use crate::store::{Store, StoreError};
use crate::types::time::now_ms;
use serde_json::{Value, json};

/// How often a change is tried that others get in the way of.
const ATTEMPTS: u32 = 20;

/// Every project that has limits or keys, by name.
///
/// # Errors
/// [`AccessError::Store`].
pub fn list(store: &Store) -> Result<Vec<ProjectRow>, AccessError> {
    Ok(rows::list(store.db.as_ref())?)
}

/// One of them; one without limits and keys where nobody named it yet.
///
/// # Errors
/// [`AccessError::Name`] for an impossible name; [`AccessError::Store`].
pub fn get(store: &Store, name: &str) -> Result<ProjectRow, AccessError> {
    check_project(name)?;
    let found = list(store)?.into_iter().find(|project| project.name == name);
    Ok(found.unwrap_or_else(|| ProjectRow { name: name.to_string(), ..ProjectRow::default() }))
}

/// Changes a project's limits, with an audit row; takes effect with the next request. Returns its row.
///
/// # Errors
/// [`AccessError::Name`] for an impossible name or limit; [`AccessError::Store`].
pub fn set(store: &Store, name: &str, changes: &LimitChanges, actor: &str) -> Result<ProjectRow, AccessError> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let mut project = get(store, name)?;
        let before = std::mem::take(&mut project.limits);
        project.limits = Limits::of(&before)?.with(changes)?.to_row();
        let detail = shown(&project);
        let entry = audit::Entry { actor, action: "project.set", subject: name, detail: &detail };
        match audit::append_with(store, entry, &[rows::set(name, &before, &project.limits, now_ms())]) {
            // Somebody changed another limit: both changes hold.
            Err(StoreError::Conflict(_)) if attempts.next().is_some() => {}
            written => return Ok(written.map(|()| project)?),
        }
    }
}

/// A project as it is shown, by the command line and over HTTP.
pub fn shown(project: &ProjectRow) -> Value {
    let ProjectRow { name, limits, keys } = project;
    json!({"name": name, "keys": keys, "requests_per_minute": limits.requests_per_minute, "tokens_per_minute": limits.tokens_per_minute,
        "budget_micro_usd": limits.budget_micro_usd, "budget_period": limits.budget_period})
}
