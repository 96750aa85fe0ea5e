//! Rows of the request log, wherever they stand: most in the database, the last moment's in a segment. Of what may be long only one page
//! is in memory, and the bodies of one row.

use super::segment;
use crate::store::log::{self, Filter, Page};
use crate::store::requests::RequestRow;
use crate::store::{Store, StoreError};
use std::collections::HashSet;

/// Rows of a page.
const PAGE: usize = 500;

/// Rows that are not in the database yet, oldest first.
///
/// # Errors
/// When segments cannot be read.
pub fn pending(store: &Store, filter: &Filter) -> Result<Vec<RequestRow>, StoreError> {
    let mut rows = segment::pending(&segment::directory(store.directory()))?;
    rows.retain(|row| filter.takes(row));
    rows.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    rows.dedup_by(|a, b| a.id == b.id);
    Ok(rows)
}

/// The newest rows, oldest of them first. Those of the database have no bodies.
///
/// # Errors
/// When neither segments nor database can be read.
pub fn newest(store: &Store, filter: &Filter, limit: usize) -> Result<Vec<RequestRow>, StoreError> {
    // Segments first: a row moves from there to the database, never back.
    let mut rows = pending(store, filter)?;
    rows.extend(log::page(store.db.as_ref(), filter, &Page::Newest, limit)?);
    rows.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    rows.dedup_by(|a, b| a.id == b.id);
    rows.truncate(limit);
    rows.reverse();
    Ok(rows)
}

/// Gives every row to `take`, oldest first, until it says that it has enough. Those of the database come without bodies.
///
/// # Errors
/// When neither segments nor database can be read, or what `take` says.
pub fn each<E: From<StoreError>>(store: &Store, filter: &Filter, mut take: impl FnMut(RequestRow) -> Result<bool, E>) -> Result<(), E> {
    let mut pending = pending(store, filter)?;
    let mut also_pending: HashSet<String> = pending.iter().map(|row| row.id.clone()).collect();
    let mut after = None;
    loop {
        let rows = log::page(store.db.as_ref(), filter, &Page::After(after), PAGE)?;
        let full = rows.len() == PAGE;
        after = rows.last().map(|row| (row.at, row.id.clone()));
        for row in rows {
            also_pending.remove(&row.id);
            if !take(row)? {
                return Ok(());
            }
        }
        if !full {
            break;
        }
    }
    pending.retain(|row| also_pending.contains(&row.id));
    for row in pending {
        if !take(row)? {
            return Ok(());
        }
    }
    Ok(())
}

/// The row with its bodies, where it has any.
///
/// # Errors
/// When the database cannot be read.
pub fn with_bodies(store: &Store, mut row: RequestRow) -> Result<RequestRow, StoreError> {
    if row.request.is_none() && row.reply.is_none() {
        (row.request, row.reply) = log::bodies(store.db.as_ref(), &row.id)?;
    }
    Ok(row)
}
