//! `refit logs …`: the request log. [`filters`] say which rows are meant, [`rows`](crate::monitor::rows) finds them wherever they stand, a file a verb.

mod export;
pub mod filters;
mod prune;
mod show;
mod tail;

use super::Context;
use crate::store::requests::RequestRow;
use crate::types::Failure;
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit logs tail --since 1h --status failed
  refit logs tail -f --route support
  refit logs show req_0197…
  refit logs export --format openai-chat --min-feedback helpful=1 > train.jsonl
  refit logs prune --dry-run";

/// Arguments of `refit logs`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the newest requests, oldest of them first
    Tail(tail::Args),
    /// Show one request with its bodies, its times and its feedback
    Show(show::Args),
    /// Write requests to stdout: JSON lines, CSV, or conversations to train on
    Export(export::Args),
    /// Delete what is older than the configuration lets the log keep
    Prune(prune::Args),
}

/// Runs the verb.
///
/// # Errors
/// What the verb says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Tail(args) => tail::run(args, context)?,
        Verb::Show(args) => show::run(args, context)?,
        Verb::Export(args) => export::run(args, context)?,
        Verb::Prune(args) => prune::run(args, context)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A row without its bodies.
fn figures(row: &RequestRow) -> Value {
    let mut value = serde_json::to_value(RequestRow { request: None, reply: None, ..row.clone() }).unwrap_or(Value::Null);
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove("request");
        fields.shift_remove("reply");
        // Lists are lists, not texts of them.
        for name in ["attempted", "guardrails"] {
            let list = fields.get(name).and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
            fields.extend(list.map(|list: Value| (name.to_string(), list)));
        }
    }
    value
}

/// A row with its bodies as JSON.
fn whole(row: &RequestRow) -> Value {
    let mut value = figures(row);
    for (name, body) in [("request", &row.request), ("reply", &row.reply)] {
        value[name] = body.as_ref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
    }
    value
}

/// What was called: `provider/model`, or what the caller wrote where nobody was asked.
fn target(row: &RequestRow) -> String {
    if row.provider.is_empty() { row.model.clone() } else { format!("{}/{}", row.provider, row.model) }
}

/// Micro-dollars as dollars; `unknown` where the price is.
fn usd(micro_usd: Option<i64>) -> String {
    let Some(micro_usd) = micro_usd else { return "unknown".to_string() };
    let (sign, units) = (if micro_usd < 0 { "-" } else { "" }, micro_usd.unsigned_abs());
    format!("{sign}{}.{:06}", units / 1_000_000, units % 1_000_000)
}

/// A text for a terminal: what would steer it is a space.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
