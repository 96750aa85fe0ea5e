//! Rows of `requests`, the log of every model call. They reach the database through `monitor::record`, exactly once.

use super::db::{Bound, Bulk, Db, Row, StoreError, Value};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// One logged request. Also the form of a line in a log segment, so that old segments stay readable: new fields need a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestRow {
    /// `req_…`, also the `x-request-id` of the reply.
    pub id: String,
    /// When it came in, milliseconds.
    pub at: i64,
    /// Project of the key.
    pub project: String,
    /// Id of the key (not the key).
    pub api_key: String,
    /// `chat.completions`, `eval`.
    pub endpoint: String,
    /// Route that was called, when one was.
    pub route: Option<String>,
    /// Digest of the release that answered.
    pub release: Option<String>,
    /// Provider that answered; empty when none was reached.
    pub provider: String,
    /// The provider's model; before a plan is made, what the caller wrote.
    pub model: String,
    /// Adapter digest.
    pub adapter: Option<String>,
    /// Whether the reply was streamed.
    pub streamed: bool,
    /// HTTP status of the reply; for a stream that broke, the status of what broke it.
    pub status: u16,
    /// Error code, when it failed.
    pub error_code: Option<String>,
    /// Tokens read.
    pub input_tokens: Option<u64>,
    /// Tokens written.
    pub output_tokens: Option<u64>,
    /// Why the first choice ended.
    pub finish_reason: Option<String>,
    /// Milliseconds in the provider's queue.
    pub queue_ms: Option<f64>,
    /// Milliseconds to the first chunk of a stream.
    pub first_token_ms: Option<f64>,
    /// Milliseconds in all.
    pub total_ms: f64,
    /// Request body, JSON text.
    pub request: Option<String>,
    /// Reply body, JSON text; a stream is kept put together.
    pub reply: Option<String>,
    /// Milliseconds that the provider took, over all attempts.
    pub upstream_ms: Option<f64>,
    /// Milliseconds that Refit itself took: all but queue and provider.
    pub overhead_ms: Option<f64>,
    /// Tokens read that the provider had in its cache.
    pub cached_tokens: Option<u64>,
    /// Tokens read that the provider wrote to its cache.
    pub cache_write_tokens: Option<u64>,
    /// Tokens written that were spent on reasoning.
    pub reasoning_tokens: Option<u64>,
    /// Cost in micro-dollars; none where the price is unknown.
    pub cost_micro_usd: Option<i64>,
    /// What a cache hit or a cascade saved, in micro-dollars.
    pub saved_micro_usd: Option<i64>,
    /// Which row of the price files was used.
    pub price: Option<String>,
    /// `hit`, `semantic`, `miss`; none where the cache is off.
    pub cache: Option<String>,
    /// Calls made to providers.
    pub attempts: Option<u64>,
    /// JSON list of the calls that failed before the one that counts: `{target, code, ms}`.
    pub attempted: Option<String>,
    /// JSON list of what guardrails found.
    pub guardrails: Option<String>,
    /// Trace that the request belongs to, 32 hex digits.
    pub trace_id: Option<String>,
    /// The reply's own id: `chatcmpl-…`.
    pub reply_id: Option<String>,
    /// Conversation that the request belongs to, where it names one.
    pub conversation: Option<String>,
    /// Prompt that was rendered, where one was.
    pub prompt: Option<String>,
    /// Number of its version.
    pub prompt_version: Option<i64>,
    /// JSON object: the metadata of a completion that the caller asked to be stored; none for all others.
    pub stored: Option<String>,
}

/// Columns of [`read`], in its order.
pub(super) const COLUMNS: &str = "id, at, project, api_key, endpoint, route, release, provider, model, adapter, streamed, status, error_code, \
    input_tokens, output_tokens, finish_reason, queue_ms, first_token_ms, total_ms, request, reply, upstream_ms, overhead_ms, cached_tokens, \
    cache_write_tokens, reasoning_tokens, cost_micro_usd, saved_micro_usd, price, cache, attempts, attempted, guardrails, trace_id, \
    reply_id, conversation, prompt, prompt_version, stored";

/// Columns of a row.
const COUNT: usize = 39;

/// What stores rows: a conflict where one is there already. What none of them has is not named, so that it costs nothing.
pub fn insert<'r>(rows: &[&'r RequestRow]) -> Bulk<'r> {
    let mut has = [false; COUNT];
    for row in rows {
        has.iter_mut().zip(values(row)).for_each(|(has, value)| *has |= value != Bound::Null);
    }
    let names: Vec<_> = COLUMNS.split(", ").zip(has).filter_map(|(name, has)| has.then_some(name)).collect();
    if names.is_empty() {
        return Bulk::empty();
    }
    let mut given = Vec::with_capacity(rows.len() * names.len());
    for row in rows {
        given.extend(values(row).into_iter().zip(has).filter_map(|(value, has)| has.then_some(value)));
    }
    let marks = vec!["?"; names.len()].join(", ");
    Bulk { sql: format!("INSERT INTO requests ({}) VALUES ({marks})", names.join(", ")).into(), columns: names.len(), values: given }
}

/// What a row has in each of [`COLUMNS`].
fn values(row: &RequestRow) -> [Bound<'_>; COUNT] {
    [
        (&row.id).into(),
        (&row.at).into(),
        (&row.project).into(),
        (&row.api_key).into(),
        (&row.endpoint).into(),
        (&row.route).into(),
        (&row.release).into(),
        (&row.provider).into(),
        (&row.model).into(),
        (&row.adapter).into(),
        (&row.streamed).into(),
        (&row.status).into(),
        (&row.error_code).into(),
        (&row.input_tokens).into(),
        (&row.output_tokens).into(),
        (&row.finish_reason).into(),
        (&row.queue_ms).into(),
        (&row.first_token_ms).into(),
        (&row.total_ms).into(),
        (&row.request).into(),
        (&row.reply).into(),
        (&row.upstream_ms).into(),
        (&row.overhead_ms).into(),
        (&row.cached_tokens).into(),
        (&row.cache_write_tokens).into(),
        (&row.reasoning_tokens).into(),
        (&row.cost_micro_usd).into(),
        (&row.saved_micro_usd).into(),
        (&row.price).into(),
        (&row.cache).into(),
        (&row.attempts).into(),
        (&row.attempted).into(),
        (&row.guardrails).into(),
        (&row.trace_id).into(),
        (&row.reply_id).into(),
        (&row.conversation).into(),
        (&row.prompt).into(),
        (&row.prompt_version).into(),
        (&row.stored).into(),
    ]
}

/// Those of the rows that are not stored, each once.
///
/// # Errors
/// When the database fails.
pub fn absent<'r>(db: &dyn Db, rows: &[&'r RequestRow]) -> Result<Vec<&'r RequestRow>, StoreError> {
    let marks = vec!["?"; rows.len()].join(", ");
    let ids: Vec<_> = rows.iter().map(|row| Value::from(&row.id)).collect();
    let stored = db.query(&format!("SELECT id FROM requests WHERE id IN ({marks})"), &ids)?;
    let stored: HashSet<_> = stored.iter().map(|row| row.text(0)).collect();
    let mut seen = HashSet::new();
    Ok(rows.iter().copied().filter(|row| !stored.contains(&row.id) && seen.insert(&row.id)).collect())
}

/// The row with this id.
///
/// # Errors
/// When the database fails.
pub fn by_id(db: &dyn Db, id: &str) -> Result<Option<RequestRow>, StoreError> {
    Ok(db.query(&format!("SELECT {COLUMNS} FROM requests WHERE id = ?"), &[id.into()])?.first().map(read))
}

/// The newest `limit` rows, newest first.
///
/// # Errors
/// When the database fails.
pub fn newest(db: &dyn Db, limit: usize) -> Result<Vec<RequestRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM requests ORDER BY at DESC, id DESC LIMIT ?");
    Ok(db.query(&sql, &[limit.into()])?.iter().map(read).collect())
}

/// Number of rows.
///
/// # Errors
/// When the database fails.
pub fn count(db: &dyn Db) -> Result<i64, StoreError> {
    Ok(db.query("SELECT COUNT(*) FROM requests", &[])?.first().map_or(0, |row| row.int(0)))
}

pub(super) fn read(row: &Row) -> RequestRow {
    let natural = |column| row.int_or_null(column).and_then(|x| u64::try_from(x).ok());
    RequestRow {
        id: row.text(0),
        at: row.int(1),
        project: row.text(2),
        api_key: row.text(3),
        endpoint: row.text(4),
        route: row.text_or_null(5),
        release: row.text_or_null(6),
        provider: row.text(7),
        model: row.text(8),
        adapter: row.text_or_null(9),
        streamed: row.int(10) != 0,
        status: u16::try_from(row.int(11)).unwrap_or(0),
        error_code: row.text_or_null(12),
        input_tokens: natural(13),
        output_tokens: natural(14),
        finish_reason: row.text_or_null(15),
        queue_ms: row.real_or_null(16),
        first_token_ms: row.real_or_null(17),
        total_ms: row.real_or_null(18).unwrap_or(0.0),
        request: row.text_or_null(19),
        reply: row.text_or_null(20),
        upstream_ms: row.real_or_null(21),
        overhead_ms: row.real_or_null(22),
        cached_tokens: natural(23),
        cache_write_tokens: natural(24),
        reasoning_tokens: natural(25),
        cost_micro_usd: row.int_or_null(26),
        saved_micro_usd: row.int_or_null(27),
        price: row.text_or_null(28),
        cache: row.text_or_null(29),
        attempts: natural(30),
        attempted: row.text_or_null(31),
        guardrails: row.text_or_null(32),
        trace_id: row.text_or_null(33),
        reply_id: row.text_or_null(34),
        conversation: row.text_or_null(35),
        prompt: row.text_or_null(36),
        prompt_version: row.int_or_null(37),
        stored: row.text_or_null(38),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn rows_that_have_different_things_are_stored_together() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(data.path()).expect("a store");
        let row = |id: &str| RequestRow { id: id.into(), at: 7, model: "m".into(), total_ms: 1.5, ..RequestRow::default() };
        let rows = [
            row("req_a"),
            RequestRow { route: Some("r".into()), reply: Some("{}".into()), stored: Some("{}".into()), ..row("req_b") },
            RequestRow { request: Some("[]".into()), attempts: Some(2), prompt_version: Some(3), ..row("req_c") },
        ];
        let alone = RequestRow { error_code: Some("e".into()), ..row("req_d") };
        for rows in [&rows.each_ref()[..], &[&alone], &[]] {
            store.db.batch_apart(&insert(rows), &[]).expect("stored");
        }
        let found = newest(store.db.as_ref(), 10).expect("rows");
        assert_eq!(found, [alone, rows[2].clone(), rows[1].clone(), rows[0].clone()]);
    }
}
