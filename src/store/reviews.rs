//! Rows of `review_items` and `reviews`: samples that people look at before they become part of a dataset, and what they think of them.

use super::db::{Bulk, Db, Row, Statement, StoreError, Value};
use crate::types::time::now_ms;
use serde::Serialize;
use serde_json::Value as Json;

/// Nobody, or too few, have looked at it.
pub const OPEN: &str = "open";
/// The reviewers do not agree.
pub const DISPUTED: &str = "disputed";
/// It may become part of the dataset.
pub const ACCEPTED: &str = "accepted";
/// It may not.
pub const REJECTED: &str = "rejected";
/// It is part of a version.
pub const PUBLISHED: &str = "published";
/// Every status.
pub const STATUSES: [&str; 5] = [OPEN, DISPUTED, ACCEPTED, REJECTED, PUBLISHED];

/// A sample to be looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReviewItem {
    /// `item_…`.
    pub id: String,
    /// Project of the request that it was made of.
    pub project: String,
    /// Dataset that it is meant for.
    pub dataset: String,
    /// Id of the request.
    pub source: String,
    /// Why it was chosen.
    pub reason: String,
    /// The sample as proposed.
    pub sample: Json,
    /// One of [`STATUSES`].
    pub status: String,
    /// The sample as it was accepted; none before.
    pub outcome: Option<Json>,
    /// How many people must look at it.
    pub needed: i64,
    /// When it was proposed, milliseconds.
    pub created_at: i64,
    /// When it was accepted or rejected.
    pub closed_at: Option<i64>,
}

/// What one person thinks of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    /// Item.
    pub item: String,
    /// Who looked.
    pub reviewer: String,
    /// `accept`, `edit` or `reject`.
    pub verdict: String,
    /// The sample as edited.
    pub sample: Option<Json>,
    /// Why.
    pub comment: Option<String>,
    /// Whether it settles a dispute.
    pub is_final: bool,
    /// When, milliseconds.
    pub at: i64,
}

const ITEM: &str = "id, project, dataset, source, reason, sample, status, outcome, needed, created_at, closed_at";
const REVIEW: &str = "item, reviewer, verdict, sample, comment, is_final, at";

/// Which items are listed.
#[derive(Debug, Clone, Default)]
pub struct Page<'a> {
    /// Only those of this project.
    pub project: Option<&'a str>,
    /// Only those for this dataset.
    pub dataset: Option<&'a str>,
    /// Only those of this status.
    pub status: Option<&'a str>,
    /// Only those after this id.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: usize,
}

/// Adds items, but for those whose request is proposed for the dataset already. Returns how many are new.
///
/// # Errors
/// When the database fails.
pub fn add(db: &dyn Db, items: &[ReviewItem]) -> Result<usize, StoreError> {
    let before = count(db)?;
    let sql = format!(
        "INSERT INTO review_items ({ITEM}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (project, dataset, source) DO NOTHING"
    );
    let values: Vec<Value> = items
        .iter()
        .flat_map(|item| -> [Value; 11] {
            [
                (&item.id).into(),
                (&item.project).into(),
                (&item.dataset).into(),
                (&item.source).into(),
                (&item.reason).into(),
                (&item.sample).into(),
                (&item.status).into(),
                item.outcome.as_ref().into(),
                item.needed.into(),
                item.created_at.into(),
                item.closed_at.into(),
            ]
        })
        .collect();
    let values = values.iter().map(|value: &Value| value.into()).collect();
    db.batch_apart(&Bulk { sql: sql.as_str().into(), columns: 11, values }, &[])?;
    Ok(count(db)?.saturating_sub(before))
}

fn count(db: &dyn Db) -> Result<usize, StoreError> {
    let rows = db.query("SELECT COUNT(*) FROM review_items", &[])?;
    Ok(rows.first().map_or(0, |row| usize::try_from(row.int(0)).unwrap_or(0)))
}

/// An item.
///
/// # Errors
/// [`StoreError::Unknown`] when there is none of that id, or it is another project's.
pub fn get(db: &dyn Db, project: Option<&str>, id: &str) -> Result<ReviewItem, StoreError> {
    let rows = db.query(&format!("SELECT {ITEM} FROM review_items WHERE id = ?"), &[id.into()])?;
    let found = rows.first().map(item).transpose()?.filter(|item| project.is_none_or(|project| item.project == project));
    found.ok_or_else(|| StoreError::Unknown { what: "review item", name: id.to_string(), nearest: String::new() })
}

/// One page of items in the order in which they were proposed, and whether more follow.
///
/// # Errors
/// When the database fails.
pub fn list(db: &dyn Db, page: &Page<'_>) -> Result<(Vec<ReviewItem>, bool), StoreError> {
    let (mut all, mut params) = (vec!["id > ?"], vec![Value::from(page.after.unwrap_or_default())]);
    for (condition, value) in [("project = ?", page.project), ("dataset = ?", page.dataset), ("status = ?", page.status)] {
        if let Some(value) = value {
            all.push(condition);
            params.push(value.into());
        }
    }
    params.push((page.limit + 1).into());
    let sql = format!("SELECT {ITEM} FROM review_items WHERE {} ORDER BY id LIMIT ?", all.join(" AND "));
    let mut items = db.query(&sql, &params)?.iter().map(item).collect::<Result<Vec<_>, _>>()?;
    let more = items.len() > page.limit;
    items.truncate(page.limit);
    Ok((items, more))
}

/// What people think of an item, in the order in which they said it.
///
/// # Errors
/// When the database fails.
pub fn of_item(db: &dyn Db, id: &str) -> Result<Vec<Review>, StoreError> {
    let rows = db.query(&format!("SELECT {REVIEW} FROM reviews WHERE item = ? ORDER BY is_final, at, reviewer"), &[id.into()])?;
    rows.iter().map(review).collect()
}

/// What people think of the items of a dataset, item by item.
///
/// # Errors
/// When the database fails.
pub fn of_dataset(db: &dyn Db, project: Option<&str>, dataset: &str) -> Result<Vec<Review>, StoreError> {
    let project = project.unwrap_or_default();
    let sql = format!(
        "SELECT {REVIEW} FROM reviews WHERE item IN (SELECT id FROM review_items WHERE dataset = ? AND (? = '' OR project = ?)) \
        ORDER BY item, is_final, at, reviewer"
    );
    db.query(&sql, &[dataset.into(), project.into(), project.into()])?.iter().map(review).collect()
}

/// What an item becomes by its reviews.
#[derive(Debug, Clone)]
pub struct Settlement<'a> {
    /// How many reviews it follows from.
    pub reviews: usize,
    /// One of [`STATUSES`].
    pub status: &'a str,
    /// The sample as it is accepted.
    pub outcome: Option<&'a Json>,
}

/// Writes down what somebody thinks, once, and what the item becomes by it: both or nothing.
///
/// # Errors
/// [`StoreError::Conflict`] when that person has spoken, when the item is not what it was, or when somebody spoke meanwhile.
pub fn say(db: &dyn Db, said: &Review, settlement: &Settlement<'_>) -> Result<(), StoreError> {
    let sql = "INSERT INTO reviews (item, reviewer, verdict, sample, comment, is_final, at) SELECT ?, ?, ?, ?, ?, ?, ? \
        WHERE EXISTS (SELECT 1 FROM review_items WHERE id = ? AND status = ?)";
    let status = if said.is_final { DISPUTED } else { OPEN };
    let params: [Value; 9] = [
        (&said.item).into(),
        (&said.reviewer).into(),
        (&said.verdict).into(),
        said.sample.as_ref().into(),
        said.comment.clone().into(),
        said.is_final.into(),
        said.at.into(),
        (&said.item).into(),
        status.into(),
    ];
    db.batch(&[Statement::new(sql, params).expecting(1), settled(&said.item, settlement).expecting(1)])
}

/// Puts down what an item has become by its reviews; nothing happens where somebody spoke meanwhile.
///
/// # Errors
/// When the database fails.
pub fn settle(db: &dyn Db, id: &str, settlement: &Settlement<'_>) -> Result<(), StoreError> {
    db.batch(&[settled(id, settlement)])
}

fn settled(id: &str, settlement: &Settlement<'_>) -> Statement {
    let Settlement { reviews, status, outcome } = settlement;
    let closed_at = (*status == ACCEPTED || *status == REJECTED).then(now_ms);
    let sql = "UPDATE review_items SET status = ?, outcome = ?, closed_at = ? WHERE id = ? AND status IN ('open', 'disputed') \
        AND (SELECT COUNT(*) FROM reviews WHERE item = ?) = ?";
    let params: [Value; 6] = [(*status).into(), (*outcome).into(), closed_at.into(), id.into(), id.into(), (*reviews).into()];
    Statement::new(sql, params)
}

/// Whether something of a request is proposed for a dataset already.
///
/// # Errors
/// When the database fails.
pub fn is_known(db: &dyn Db, project: &str, dataset: &str, source: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM review_items WHERE project = ? AND dataset = ? AND source = ?";
    Ok(!db.query(sql, &[project.into(), dataset.into(), source.into()])?.is_empty())
}

/// Marks accepted items as part of a version.
///
/// # Errors
/// [`StoreError::Conflict`] when one of them is not accepted any more; none is marked then.
pub fn publish(db: &dyn Db, ids: &[String]) -> Result<(), StoreError> {
    let mark = |id: &String| {
        Statement::new("UPDATE review_items SET status = ? WHERE id = ? AND status = ?", [PUBLISHED.into(), id.into(), ACCEPTED.into()])
            .expecting(1)
    };
    db.batch(&ids.iter().map(mark).collect::<Vec<_>>())
}

fn item(row: &Row) -> Result<ReviewItem, StoreError> {
    Ok(ReviewItem {
        id: row.text(0),
        project: row.text(1),
        dataset: row.text(2),
        source: row.text(3),
        reason: row.text(4),
        sample: row.json(5)?,
        status: row.text(6),
        outcome: row.text_or_null(7).map(|_| row.json(7)).transpose()?,
        needed: row.int(8),
        created_at: row.int(9),
        closed_at: row.int_or_null(10),
    })
}

fn review(row: &Row) -> Result<Review, StoreError> {
    Ok(Review {
        item: row.text(0),
        reviewer: row.text(1),
        verdict: row.text(2),
        sample: row.text_or_null(3).map(|_| row.json(3)).transpose()?,
        comment: row.text_or_null(4),
        is_final: row.int(5) != 0,
        at: row.int(6),
    })
}
