//! `refit logs show`: one request, with its bodies, where its time went, what was tried and what was thought of it.

use super::{printable, target, usd, whole};
use crate::cli::{Context, output};
use crate::monitor::record;
use crate::store::feedback::{self, FeedbackRow};
use crate::store::requests::RequestRow;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use serde_json::{Value, json};
use std::fmt::Write;

const EXAMPLES: &str = "\
The id is the `x-request-id` header of the reply.

Example:
  refit logs show req_0197… --json";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Request id
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// [`Code::UNKNOWN_NAME`] for an unknown id; otherwise what the store says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let store = context.open_store()?;
    let Args { id, json } = args;
    let unknown = || Failure::new(Code::UNKNOWN_NAME, format!("no request has the id \"{id}\"")).with_hint("`refit logs tail` lists ids");
    let row = record::find(&store, &id)?.ok_or_else(unknown)?;
    let given = feedback::of_request(store.db.as_ref(), &row.id, None)?;
    if json {
        let mut value = whole(&row);
        value["feedback"] = given.iter().map(of_feedback).collect();
        return output::json(&value);
    }
    output::line(pretty(&row, &given))
}

/// A piece of feedback as exports and `show` have it.
pub(super) fn of_feedback(row: &FeedbackRow) -> Value {
    let value: Value = serde_json::from_str(&row.value).unwrap_or(Value::Null);
    json!({"id": row.id, "name": row.name, "value": value, "comment": row.comment, "correction": row.correction,
        "source": row.source, "created_at": row.created_at})
}

fn pretty(row: &RequestRow, given: &[FeedbackRow]) -> String {
    let mut text = String::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{name:<12}{}", printable(&value));
        }
    };
    put("id", Some(row.id.clone()));
    put("time", Some(rfc3339(row.at)));
    put("status", Some(row.error_code.as_ref().map_or(row.status.to_string(), |code| format!("{} {code}", row.status))));
    put("endpoint", Some(if row.streamed { format!("{}, streamed", row.endpoint) } else { row.endpoint.clone() }));
    put("project", Some(format!("{}, key {}", row.project, row.api_key)));
    put("route", row.route.clone());
    put("release", row.release.clone());
    put("target", Some(target(row)));
    put("adapter", row.adapter.clone());
    put("reply id", row.reply_id.clone());
    put("conversation", row.conversation.clone());
    put("trace", row.trace_id.clone());
    put("tokens", Some(tokens(row)));
    let saved = row.saved_micro_usd.map(|saved| format!(", saved {} USD", usd(Some(saved))));
    let cost = row.cost_micro_usd.map_or("unknown".to_string(), |_| format!("{} USD", usd(row.cost_micro_usd)));
    put("cost", Some(format!("{cost}{}", saved.unwrap_or_default())));
    put("price", row.price.clone());
    put("cache", row.cache.clone());
    put("ms", Some(times(row)));
    put("attempts", row.attempts.map(|attempts| format!("{attempts}{}", attempted(row))));
    put("guardrails", row.guardrails.clone());
    put("ended", row.finish_reason.clone());
    for row in given {
        let more = [("by", &row.source), ("comment:", &row.comment), ("correction:", &row.correction)];
        let more: String = more.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!(", {name} {value}"))).collect();
        put("feedback", Some(format!("{} = {}{more}", row.name, row.value)));
    }
    for (name, body) in [("request", &row.request), ("reply", &row.reply)] {
        let body = body.as_ref().map_or("not kept".to_string(), |body| lines(body));
        let _ = write!(text, "\n{name}\n{body}\n");
    }
    text.trim_end().to_string()
}

fn tokens(row: &RequestRow) -> String {
    let part = |count: Option<u64>, what: &str| count.map(|count| format!("{count} {what}"));
    let parts = [
        part(row.input_tokens, "read"),
        part(row.cached_tokens, "of them cached"),
        part(row.output_tokens, "written"),
        part(row.reasoning_tokens, "of them reasoning"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Where the time went.
fn times(row: &RequestRow) -> String {
    let part = |ms: Option<f64>, what: &str| ms.map(|ms| format!("{what} {ms:.3}"));
    let parts = [
        part(Some(row.total_ms), "total"),
        part(row.queue_ms, "queue"),
        part(row.upstream_ms, "provider"),
        part(row.overhead_ms, "refit"),
        part(row.first_token_ms, "first token after"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The calls that failed before the one that counts.
fn attempted(row: &RequestRow) -> String {
    let list: Vec<Value> = row.attempted.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let one = |call: &Value| {
        let text = |name: &str| call[name].as_str().unwrap_or("?").to_string();
        format!("; {} {} after {} ms", text("target"), text("code"), call["ms"])
    };
    list.iter().map(one).collect()
}

/// A body over several lines, without what would steer a terminal.
fn lines(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
    let text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
