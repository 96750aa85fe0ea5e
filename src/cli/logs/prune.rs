//! `refit logs prune`: what `serve` does by itself, now.

use crate::access::audit;
use crate::cli::{Context, output};
use crate::monitor::retention::{self, Pruned, Rules};
use crate::types::Failure;
use serde_json::json;

const EXAMPLES: &str = "\
`refit serve` does this by itself. What was used by day and key is kept: only the log's rows go. The file does not get smaller; the
room is used again.

Examples:
  refit logs prune --dry-run
  refit logs prune --days 90 --bodies-days 7";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Delete nothing, say how much would go
    #[arg(long)]
    dry_run: bool,
    /// Delete requests older than this [default: log.retention_days in refit.toml]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..))]
    days: Option<u64>,
    /// Delete bodies older than this, keep the figures [default: log.bodies_retention_days in refit.toml]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..))]
    bodies_days: Option<u64>,
    /// Print {"requests", "bodies", "dry_run"}
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What the configuration or the store says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let Args { dry_run, days, bodies_days, json } = args;
    let configured = Rules::of(&context.config()?.log);
    let rules = Rules { rows_days: days.or(configured.rows_days), bodies_days: bodies_days.or(configured.bodies_days) };
    let store = context.open_store()?;
    let pruned = if dry_run { retention::would_go(&store, rules)? } else { retention::prune(&store, rules, &mut 0, || true)? };
    let Pruned { requests, bodies } = pruned;
    if !dry_run && pruned != Pruned::default() {
        let detail = json!({"requests": requests, "bodies": bodies, "days": rules.rows_days, "bodies_days": rules.bodies_days});
        audit::append(&store, &context.actor(), "logs.prune", "requests", &detail)?;
    }
    if json {
        return output::json(&json!({"requests": requests, "bodies": bodies, "dry_run": dry_run}));
    }
    if rules == Rules::default() {
        output::note(
            "note: the log keeps everything; log.retention_days, log.bodies_retention_days, --days and --bodies-days say otherwise",
        );
    }
    let verb = if dry_run { "would be" } else { "were" };
    output::line(format!("{requests} requests {verb} deleted, and the bodies of {bodies} more"))
}
