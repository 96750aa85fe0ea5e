//! Stored chat completions: rows of the request log that the caller asked to be kept for reading (`store: true`). They go when the log's
//! own rules say so. Of rows with one reply id, as replies of the cache have, the newest counts.

use super::db::{Db, StoreError, Value};
use super::requests::{COLUMNS, RequestRow, read};
use serde_json::Value as Json;

/// Rows that are looked through at once.
const LOOK: usize = 200;

/// Which part of a project's stored completions is listed.
#[derive(Debug, Clone, Default)]
pub struct Page<'a> {
    /// Project.
    pub project: &'a str,
    /// Only those of this model: `provider/model`, the model alone, or the route that was called.
    pub model: Option<&'a str>,
    /// Only those whose metadata has these.
    pub metadata: &'a [(String, String)],
    /// Only what comes after this reply.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: usize,
    /// Oldest first; newest first otherwise.
    pub ascending: bool,
    /// Only those from this moment on, and before that one, in milliseconds.
    pub between: (Option<i64>, Option<i64>),
}

/// What makes a row one of them.
const IS_ONE: &str = "project = ? AND stored IS NOT NULL AND reply_id IS NOT NULL AND reply IS NOT NULL AND error_code IS NULL";
/// No newer one has its id.
const IS_NEWEST: &str = "NOT EXISTS (SELECT 1 FROM requests AS newer WHERE newer.reply_id = requests.reply_id AND newer.stored IS NOT NULL \
    AND newer.project = requests.project AND newer.error_code IS NULL AND newer.reply IS NOT NULL \
    AND (newer.at > requests.at OR (newer.at = requests.at AND newer.id > requests.id)))";

/// Whether of a logged body only a part was kept.
pub fn is_cut(body: &str) -> bool {
    serde_json::from_str::<Json>(body).map_or(true, |body| body["refit"].get("cut").is_some())
}

/// The stored completion of that reply id.
///
/// # Errors
/// [`StoreError::Unknown`] when the project has none.
pub fn get(db: &dyn Db, project: &str, id: &str) -> Result<RequestRow, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM requests WHERE {IS_ONE} AND reply_id = ? ORDER BY at DESC, id DESC LIMIT 1");
    let found = db.query(&sql, &[project.into(), id.into()])?;
    found.first().map(read).ok_or_else(|| unknown(id))
}

/// One page, and whether more follow.
///
/// # Errors
/// [`StoreError::Unknown`] when `after` is none of them.
pub fn list(db: &dyn Db, page: &Page<'_>) -> Result<(Vec<RequestRow>, bool), StoreError> {
    let mut last = page.after.map(|id| get(db, page.project, id)).transpose()?.map(|row| (row.at, row.id));
    let mut found = Vec::new();
    'pages: while found.len() <= page.limit {
        let rows = look(db, page, last.as_ref())?;
        let is_last = rows.len() < LOOK;
        last = rows.last().map(|(at, id, _)| (*at, id.clone()));
        for (_, id, _) in rows.into_iter().filter(|(_, _, metadata)| has(metadata, page.metadata)) {
            // Those of which the log kept only a part are none: a page without them is full all the same.
            found.extend(super::requests::by_id(db, &id)?.filter(|row| row.reply.as_deref().is_some_and(|reply| !is_cut(reply))));
            if found.len() > page.limit {
                break 'pages;
            }
        }
        if is_last {
            break;
        }
    }
    let more = found.len() > page.limit;
    found.truncate(page.limit);
    Ok((found, more))
}

/// Times, ids and metadata of the next rows.
fn look(db: &dyn Db, page: &Page<'_>, last: Option<&(i64, String)>) -> Result<Vec<(i64, String, String)>, StoreError> {
    let mut params: Vec<Value> = vec![page.project.into()];
    let mut sql = format!("SELECT at, id, stored FROM requests WHERE {IS_ONE} AND {IS_NEWEST}");
    if let Some(model) = page.model {
        let (provider, rest) = model.split_once('/').unwrap_or(("", model));
        sql.push_str(" AND (model = ? OR route = ? OR (provider = ? AND model = ?))");
        params.extend([model.into(), model.into(), provider.into(), rest.into()]);
    }
    for (bound, sign) in [(page.between.0, ">="), (page.between.1, "<")] {
        if let Some(at) = bound {
            sql.push_str(&format!(" AND at {sign} ?"));
            params.push(at.into());
        }
    }
    let (beyond, order) = if page.ascending { (">", "ASC") } else { ("<", "DESC") };
    if let Some((at, id)) = last {
        sql.push_str(&format!(" AND (at {beyond} ? OR (at = ? AND id {beyond} ?))"));
        params.extend([(*at).into(), (*at).into(), id.into()]);
    }
    sql.push_str(&format!(" ORDER BY at {order}, id {order} LIMIT ?"));
    params.push(LOOK.into());
    Ok(db.query(&sql, &params)?.iter().map(|row| (row.int(0), row.text(1), row.text(2))).collect())
}

fn has(metadata: &str, wanted: &[(String, String)]) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let metadata: Json = serde_json::from_str(metadata).unwrap_or_default();
    wanted.iter().all(|(key, value)| metadata.get(key).and_then(Json::as_str) == Some(value))
}

/// Puts other metadata in the place of what a stored completion has.
///
/// # Errors
/// [`StoreError::Unknown`] when the project has none of that id.
pub fn set_metadata(db: &dyn Db, project: &str, id: &str, metadata: &Json) -> Result<RequestRow, StoreError> {
    let mut row = get(db, project, id)?;
    let text = metadata.to_string();
    let changed = db.execute("UPDATE requests SET stored = ? WHERE id = ? AND stored IS NOT NULL", &[(&text).into(), (&row.id).into()])?;
    if changed == 0 {
        return Err(unknown(id));
    }
    row.stored = Some(text);
    Ok(row)
}

/// Takes a completion out of the stored ones. The log keeps its row as long as its own rules say.
///
/// # Errors
/// [`StoreError::Unknown`] when the project has none of that id.
pub fn forget(db: &dyn Db, project: &str, id: &str) -> Result<(), StoreError> {
    let sql = "UPDATE requests SET stored = NULL WHERE project = ? AND reply_id = ? AND stored IS NOT NULL";
    if db.execute(sql, &[project.into(), id.into()])? == 0 { Err(unknown(id)) } else { Ok(()) }
}

fn unknown(id: &str) -> StoreError {
    StoreError::Unknown { what: "stored completion", name: id.to_string(), nearest: String::new() }
}
