//! The audit chain: each row's hash covers the row and the hash before it, so editing, deleting or reordering any row shows.
//! The head (newest sequence and hash) moves in the same transaction, so that a chain whose end was cut off shows too.

use super::AccessError;
use crate::store::audit::{self as rows, AuditRow};
use crate::store::{Change, Statement, Store, StoreError};
use crate::types::Digest;
use crate::types::time::now_ms;
use serde_json::{Value, json};
use std::time::Duration;

/// What the first row has for a previous hash.
pub const GENESIS: &str = "genesis";
const ATTEMPTS: u32 = 200;
const PAGE: usize = 1000;

/// Appends a row to the chain; safe beside other writers. `action` is `noun.verb`, `detail` the figures behind the decision.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn append(store: &Store, actor: &str, action: &str, subject: &str, detail: &Value) -> Result<(), StoreError> {
    append_with(store, Entry { actor, action, subject, detail }, &[])
}

/// What is to be written down.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Who did it: a key id, or a word in brackets.
    pub actor: &'a str,
    /// `noun.verb`, such as `release.promote`.
    pub action: &'a str,
    /// To what.
    pub subject: &'a str,
    /// Figures used.
    pub detail: &'a Value,
}

/// Appends a row in one transaction with `changes`: the row stands if and only if the changes do.
///
/// # Errors
/// [`StoreError::Conflict`] when the changes conflict (a race about the chain itself is run again).
pub fn append_with(store: &Store, entry: Entry<'_>, changes: &[Statement]) -> Result<(), StoreError> {
    let db = store.db.as_ref();
    for attempt in 0..ATTEMPTS {
        let (sequence, previous) = rows::head(db)?.unwrap_or((0, GENESIS.to_string()));
        let mut row = AuditRow {
            sequence: sequence + 1,
            at: now_ms(),
            actor: entry.actor.to_string(),
            action: entry.action.to_string(),
            subject: entry.subject.to_string(),
            detail: entry.detail.to_string(),
            previous,
            hash: String::new(),
        };
        row.hash = hash(&row);
        let statements: Vec<_> = changes.iter().cloned().chain(rows::append(&row)).collect();
        match db.batch(&statements) {
            Err(StoreError::Conflict(reason)) => {
                let moved = rows::head(db)?.map_or(0, |(newest, _)| newest) != sequence;
                if !moved {
                    return Err(StoreError::Conflict(reason));
                }
                std::thread::sleep(Duration::from_micros(200) * (attempt % 10));
            }
            done => return done,
        }
    }
    Err(StoreError::Conflict(format!("the audit chain moved {ATTEMPTS} times while one row was to be appended")))
}

/// What applies changes of other rooms together with their rows of the chain.
pub fn commit(store: &Store) -> impl Fn(&Change) -> Result<(), StoreError> + Clone + Send + Sync + 'static {
    let store = store.clone();
    move |change| {
        let Change { actor, action, subject, detail, statements } = change;
        append_with(&store, Entry { actor, action, subject, detail }, statements)
    }
}

/// Walks the whole chain; returns the number of rows.
///
/// # Errors
/// [`AccessError::Broken`] names the first bad row.
pub fn verify(store: &Store) -> Result<i64, AccessError> {
    let db = store.db.as_ref();
    // The head first: rows appended meanwhile are checked as well, but not missed.
    let head = rows::head(db)?;
    let (mut sequence, mut previous) = (0, GENESIS.to_string());
    let mut head_hash = None;
    loop {
        let page = rows::after(db, sequence, PAGE)?;
        for row in &page {
            check(row, sequence, &previous)?;
            (sequence, previous) = (row.sequence, row.hash.clone());
            if head.as_ref().is_some_and(|(newest, _)| *newest == sequence) {
                head_hash = Some(row.hash.clone());
            }
        }
        if page.len() < PAGE {
            break;
        }
    }
    match head {
        None if sequence > 0 => Err(AccessError::Broken { sequence, reason: "the head of the chain is missing".into() }),
        Some((newest, _)) if newest > sequence => {
            Err(AccessError::Broken { sequence: sequence + 1, reason: format!("it is missing; the chain had {newest} rows") })
        }
        Some((newest, hash)) if head_hash.as_ref() != Some(&hash) => {
            Err(AccessError::Broken { sequence: newest, reason: "its hash is not the one the head names".into() })
        }
        _ => Ok(sequence),
    }
}

fn check(row: &AuditRow, before: i64, previous: &str) -> Result<(), AccessError> {
    let broken = |sequence, reason: &str| Err(AccessError::Broken { sequence, reason: reason.to_string() });
    if row.sequence != before + 1 {
        return broken(before + 1, "it is missing");
    }
    if row.previous != previous {
        return broken(row.sequence, "it does not follow the row before it");
    }
    if row.hash != hash(row) {
        return broken(row.sequence, "its content does not match its hash");
    }
    Ok(())
}

fn hash(row: &AuditRow) -> String {
    Digest::of_json(&json!({
        "sequence": row.sequence, "at": row.at, "actor": row.actor, "action": row.action,
        "subject": row.subject, "detail": row.detail, "previous": row.previous,
    }))
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with_rows(n: usize) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        for i in 0..n {
            append(&store, "test", "thing.make", &format!("thing-{i}"), &json!({"i": i})).expect("append");
        }
        (directory, store)
    }

    #[test]
    fn parallel_writers_lose_no_row() {
        let (_directory, store) = store_with_rows(0);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for i in 0..25 {
                        append(store, &format!("writer-{writer}"), "thing.make", &i.to_string(), &Value::Null).expect("append");
                    }
                });
            }
        });
        assert_eq!(verify(&store).expect("intact"), 100);
    }
}
