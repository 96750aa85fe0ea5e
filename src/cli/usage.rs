//! `refit usage`: what was used, and what it cost.

use super::{Context, output};
use crate::monitor::segment;
use crate::store::keys;
use crate::store::usage::{self, By, Line, Report, Used};
use crate::types::money::MicroUsd;
use crate::types::time::day_of_date;
use crate::types::{Code, Failure};
use std::collections::HashMap;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Costs are sums of the requests whose price is known; the others are counted under \"unpriced\".

Examples:
  refit usage
  refit usage --by model --since 2026-11-01
  refit usage --by key --project shop --json";

/// Arguments of `refit usage`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What there is a line for: day, key, project, model
    #[arg(long, default_value = "day")]
    by: String,
    /// First day (UTC), such as 2026-11-01 [default: the first one]
    #[arg(long, value_name = "DATE")]
    since: Option<String>,
    /// Only this project
    #[arg(long)]
    project: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// [`Code::INVALID_VALUE`] for an option; otherwise what the store says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let wrong = |option: &str, given: &str, expected: &str| {
        Failure::on(Code::INVALID_VALUE, option, format!("--{option} {given:?}: expected {expected}"))
    };
    let by = By::ALL.iter().find(|(_, word)| *word == args.by).map(|(by, _)| *by);
    let by = by.ok_or_else(|| wrong("by", &args.by, "day, key, project or model"))?;
    let since = args.since.as_deref().map(|text| day_of_date(text).ok_or_else(|| wrong("since", text, "a date such as 2026-11-01")));
    let store = context.open_store()?;
    // What a killed server left behind is used, too.
    segment::drain_abandoned(&segment::directory(store.directory()), &store, &|| true)?;
    let report = Report { by, since_day: since.transpose()?.unwrap_or(i64::MIN), project: args.project.as_deref() };
    let lines = usage::report(store.db.as_ref(), report)?;
    if args.json {
        output::json(&lines.iter().map(|line| line.shown(by)).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let names: HashMap<_, _> = keys::list(store.db.as_ref())?.into_iter().map(|key| (key.id, key.name)).collect();
    let named = |line: &Line| match by {
        By::Key => names.get(&line.what).map_or(line.what.clone(), |name| format!("{name} ({})", line.what)),
        _ => line.what(by).unwrap_or_else(|| "-".into()),
    };
    output::line(table(&args.by, &lines, named))?;
    Ok(ExitCode::SUCCESS)
}

fn table(heading: &str, lines: &[Line], named: impl Fn(&Line) -> String) -> String {
    let cells = |line: &Line| {
        let Used { requests, failed, input_tokens, output_tokens, cached_tokens, cost_micro_usd, unpriced, .. } = line.used;
        // A sum of nothing known is no cost of nothing.
        let cost = if unpriced > 0 && cost_micro_usd == 0 { "unknown".to_string() } else { MicroUsd(cost_micro_usd).to_string() };
        let counts = [requests, failed, input_tokens, cached_tokens, output_tokens].map(|count| count.to_string());
        [vec![named(line)], counts.into(), vec![cost, unpriced.to_string()]].concat()
    };
    let heading = [heading, "requests", "failed", "input", "cached", "output", "cost", "unpriced"];
    output::table(&heading, &lines.iter().map(cells).collect::<Vec<_>>())
}
