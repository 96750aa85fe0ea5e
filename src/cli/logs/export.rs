//! `refit logs export`: requests on stdout, one at a time, however many there are.

use super::filters::Filters;
use super::show::of_feedback;
use super::{figures, usd, whole};
use crate::cli::{Context, output};
use crate::monitor::rows;
use crate::store::feedback::{self, FeedbackRow};
use crate::store::requests::RequestRow;
use crate::types::Failure;
use crate::types::time::rfc3339;
use clap::ValueEnum;
use serde_json::{Map, Value, json};

const EXAMPLES: &str = "\
Formats:
  jsonl        everything that is known, bodies as JSON, with the feedback
  csv          the figures, and the bodies as JSON text
  openai-chat  {\"messages\": [...]} of each conversation that was answered whole, to train on; where feedback has a correction,
               it stands in the place of the reply. What has no such conversation is left out and counted on stderr.

Examples:
  refit logs export --since 7d > week.jsonl
  refit logs export --format csv --no-bodies --project shop > figures.csv
  refit logs export --format openai-chat --route support --min-feedback helpful=1 > train.jsonl";

/// Bytes that are written at once.
const GATHERED: usize = 64 << 10;

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What is written
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    filters: Filters,
    /// At most so many, oldest first
    #[arg(long, short = 'n')]
    limit: Option<usize>,
    /// Leave request and reply out
    #[arg(long)]
    no_bodies: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
    OpenaiChat,
}

/// Runs the verb.
///
/// # Errors
/// What the store says; [`Code::INVALID_REQUEST`](crate::types::Code::INVALID_REQUEST) for conversations without bodies.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let Args { format, filters, limit, no_bodies } = args;
    if no_bodies && format == Format::OpenaiChat {
        let failure = Failure::new(crate::types::Code::INVALID_REQUEST, "openai-chat is nothing but bodies: --no-bodies leaves nothing");
        return Err(failure.with_hint("leave --no-bodies out, or take --format jsonl"));
    }
    let store = context.open_store()?;
    let (mut written, mut left_out, mut gathered) = (0, 0, String::new());
    if format == Format::Csv {
        gathered.push_str(&heading(no_bodies));
    }
    rows::each(&store, &filters.filter(), |row| -> Result<bool, Failure> {
        if limit.is_some_and(|limit| written >= limit) {
            return Ok(false);
        }
        let row = if no_bodies { RequestRow { request: None, reply: None, ..row } } else { rows::with_bodies(&store, row)? };
        let given = feedback::of_request(store.db.as_ref(), &row.id, None)?;
        match formatted(format, &row, &given, no_bodies) {
            Some(line) => {
                gathered.push_str(&line);
                gathered.push('\n');
                written += 1;
            }
            None => left_out += 1,
        }
        if gathered.len() < GATHERED { Ok(true) } else { output::offer(std::mem::take(&mut gathered).as_bytes()) }
    })?;
    output::bytes(gathered.as_bytes())?;
    let more = if left_out > 0 { format!("; {left_out} have no whole conversation and were left out") } else { String::new() };
    output::note(format!("{written} requests written{more}"));
    Ok(())
}

fn formatted(format: Format, row: &RequestRow, given: &[FeedbackRow], no_bodies: bool) -> Option<String> {
    match format {
        Format::Jsonl => {
            let mut value = if no_bodies { figures(row) } else { whole(row) };
            value["feedback"] = given.iter().map(of_feedback).collect();
            Some(value.to_string())
        }
        Format::Csv => Some(cells(row, given, no_bodies)),
        Format::OpenaiChat => conversation(row, given).map(|conversation| conversation.to_string()),
    }
}

const COLUMNS: [&str; 33] = [
    "id",
    "time",
    "project",
    "api_key",
    "endpoint",
    "route",
    "release",
    "provider",
    "model",
    "adapter",
    "streamed",
    "status",
    "error_code",
    "finish_reason",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "saved_usd",
    "price",
    "cache",
    "attempts",
    "queue_ms",
    "first_token_ms",
    "upstream_ms",
    "overhead_ms",
    "total_ms",
    "reply_id",
    "conversation",
    "trace_id",
    "feedback",
];

fn heading(no_bodies: bool) -> String {
    format!("{}{}\n", COLUMNS.join(","), if no_bodies { "" } else { ",request,reply" })
}

fn cells(row: &RequestRow, given: &[FeedbackRow], no_bodies: bool) -> String {
    let figures = figures(row);
    let given = if given.is_empty() { String::new() } else { Value::from_iter(given.iter().map(of_feedback)).to_string() };
    let cell = |name: &&str| match *name {
        "time" => rfc3339(row.at),
        "cost_usd" => usd(row.cost_micro_usd),
        "saved_usd" => row.saved_micro_usd.map(|saved| usd(Some(saved))).unwrap_or_default(),
        "feedback" => given.clone(),
        name => match &figures[name] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        },
    };
    let mut cells: Vec<_> = COLUMNS.iter().map(|name| quoted(&cell(name))).collect();
    if !no_bodies {
        cells.extend([&row.request, &row.reply].map(|body| quoted(body.as_deref().unwrap_or(""))));
    }
    cells.join(",")
}

/// A cell of RFC 4180.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// The conversation with its answer, as OpenAI's fine-tuning takes it; none where it is not whole.
fn conversation(row: &RequestRow, given: &[FeedbackRow]) -> Option<Value> {
    if row.error_code.is_some() {
        return None;
    }
    let request: Value = serde_json::from_str(row.request.as_deref()?).ok()?;
    let mut messages = request.get("messages")?.as_array().filter(|messages| !messages.is_empty())?.clone();
    let corrected = given.iter().rev().find_map(|row| row.correction.as_ref());
    messages.push(match corrected {
        Some(correction) => json!({"role": "assistant", "content": correction}),
        None => answer(&serde_json::from_str(row.reply.as_deref()?).ok()?)?,
    });
    let mut line = Map::from_iter([("messages".to_string(), messages.into())]);
    for name in ["tools", "parallel_tool_calls"] {
        line.extend(request.get(name).filter(|value| !value.is_null()).map(|value| (name.to_string(), value.clone())));
    }
    Some(line.into())
}

/// What the model said: its text or its calls. None where the log has cut it, or the model was.
fn answer(reply: &Value) -> Option<Value> {
    let choice = reply.get("choices")?.get(0)?;
    let cut = reply.get("refit").is_some_and(|refit| refit.get("cut").is_some());
    if cut || choice.get("finish_reason").and_then(Value::as_str) == Some("length") {
        return None;
    }
    let said =
        |name: &str| choice.get("message")?.get(name).filter(|value| !value.is_null()).map(|value| (name.to_string(), value.clone()));
    let parts: Vec<_> = [said("content"), said("tool_calls")].into_iter().flatten().collect();
    if parts.is_empty() {
        return None;
    }
    Some(Map::from_iter(std::iter::once(("role".to_string(), json!("assistant"))).chain(parts)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
    }

    #[test]
    fn every_column_is_one_of_the_row() {
        let value = figures(&RequestRow::default());
        let own = ["time", "cost_usd", "saved_usd", "feedback"];
        assert!(COLUMNS.iter().all(|name| own.contains(name) || value.get(name).is_some()), "{value}");
    }
}
