//! `refit logs tail`: the newest requests, and with `-f` those that end from now on.

use super::filters::Filters;
use super::{figures, printable, target, usd};
use crate::cli::{Context, output};
use crate::monitor::rows;
use crate::store::log::{self, Filter};
use crate::store::requests::RequestRow;
use crate::store::{Store, StoreError};
use crate::types::Failure;
use crate::types::time::{now_ms, rfc3339};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  refit logs tail --limit 5
  refit logs tail -f --status failed
  refit logs tail -f --json | jq .total_ms

A line says: when, the id, the status, what answered, tokens read+written, dollars, milliseconds, and the first words of the request.";

/// Pause between two looks, at least.
const LOOK: Duration = Duration::from_millis(300);
/// Requests take no longer than this, milliseconds.
const LONGEST_MS: i64 = 15 * 60_000;
/// Rows may reach the database so late, milliseconds.
const LATE_MS: i64 = 2_000;
/// Rows that one look finds at most; more come with the next.
const MOST: usize = 5_000;
const WORDS: usize = 48;

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: usize,
    /// Go on with those that end from now on
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    filters: Filters,
    /// Print a JSON array without bodies; with --follow one object a line
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What the store says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let store = context.open_store()?;
    let filter = args.filters.filter();
    let begun = now_ms();
    let found = rows::newest(&store, &filter, args.limit)?;
    if args.json && !args.follow {
        return output::json(&found.iter().map(figures).collect::<Vec<_>>());
    }
    let mut printed = BTreeSet::new();
    for row in found {
        printed.insert((row.at, row.id.clone()));
        if !print(&store, row, args.json)? {
            return Ok(());
        }
    }
    if args.follow { follow(&store, &filter, args.json, (begun, printed)) } else { Ok(()) }
}

/// Prints what ends after `begun`, until nobody reads any more.
fn follow(store: &Store, filter: &Filter, json: bool, (begun, mut printed): (i64, BTreeSet<(i64, String)>)) -> Result<(), Failure> {
    let mut looked = begun;
    loop {
        let (now, watch) = (now_ms(), Instant::now());
        let (from, ended) = (looked - LATE_MS - LONGEST_MS, looked - LATE_MS);
        let found = new_rows(store, filter, (from, ended))?;
        let all_seen = found.len() < MOST;
        for row in found {
            if printed.insert((row.at, row.id.clone())) && !print(store, row, json)? {
                return Ok(());
            }
        }
        // What came in before is not found again.
        printed = printed.split_off(&(from, String::new()));
        if all_seen {
            looked = now;
        }
        std::thread::sleep(LOOK.max(watch.elapsed() * 4));
    }
}

fn new_rows(store: &Store, filter: &Filter, since: (i64, i64)) -> Result<Vec<RequestRow>, StoreError> {
    let mut found = rows::pending(store, filter)?;
    found.retain(|row| row.at as f64 + row.total_ms >= since.1 as f64);
    found.extend(log::ended_since(store.db.as_ref(), filter, since, MOST)?);
    found.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    found.dedup_by(|a, b| a.id == b.id);
    Ok(found)
}

/// Prints one row; whether anybody reads.
fn print(store: &Store, row: RequestRow, json: bool) -> Result<bool, Failure> {
    if json {
        return output::offer(format!("{}\n", figures(&row)).as_bytes());
    }
    output::offer(format!("{}\n", line(&rows::with_bodies(store, row)?)).as_bytes())
}

fn line(row: &RequestRow) -> String {
    let count = |tokens: Option<u64>| tokens.map_or("-".to_string(), |tokens| tokens.to_string());
    let tokens = format!("{}+{}", count(row.input_tokens), count(row.output_tokens));
    let status = row.error_code.as_ref().map_or(row.status.to_string(), |code| format!("{} {code}", row.status));
    let target = row.route.as_ref().map_or_else(|| target(row), |route| format!("{route} → {}", target(row)));
    let (time, cost, ms) = (rfc3339(row.at), usd(row.cost_micro_usd), format!("{:.0}", row.total_ms));
    let words = words(row).unwrap_or_default();
    let line = format!("{time}  {:<36}  {status:<22}  {target:<28}  {tokens:>11}  {cost:>9}  {ms:>6}  {words}", row.id);
    printable(line.trim_end())
}

/// The first words of what was asked last.
fn words(row: &RequestRow) -> Option<String> {
    let body: Value = serde_json::from_str(row.request.as_deref()?).ok()?;
    let is_text = |part: &Value| part.get("text")?.as_str().map(str::to_string);
    let content = body.get("messages").and_then(|messages| messages.as_array()?.last()?.get("content")).or_else(|| body.get("input"))?;
    let text = match content {
        Value::Array(parts) => parts.iter().find_map(|part| part.as_str().map(str::to_string).or_else(|| is_text(part)))?,
        text => text.as_str()?.to_string(),
    };
    let joined: Vec<_> = text.split_whitespace().take(WORDS).collect();
    let joined = joined.join(" ");
    let short: String = joined.chars().take(WORDS).collect();
    Some(if short.len() < joined.len() { format!("{short}…") } else { short })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_steers_no_terminal_and_says_unknown() {
        let body = r#"{"messages":[{"role":"user","content":"red \u001b[31m\nand more"}]}"#;
        let row = RequestRow { id: "req_1".into(), model: "m\u{9b}2J".into(), request: Some(body.into()), ..RequestRow::default() };
        let line = line(&row);
        assert!(line.contains("unknown") && line.contains("red  [31m and more") && !line.chars().any(char::is_control), "{line:?}");
    }
}
