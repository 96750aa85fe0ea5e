//! `refit audit …`: the hash-chained record of decisions.

use super::{Context, output};
use crate::access::audit;
use crate::store::audit::{AuditRow, newest};
use crate::types::Failure;
use crate::types::time::rfc3339;
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit audit verify
  refit audit list --limit 50 --json";

/// Arguments of `refit audit`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check the whole chain; the first row that was edited, deleted or moved is named
    #[command(after_help = "Exit code 0 when the chain holds, 2 when it does not.\n\nExample:\n  refit audit verify --json")]
    Verify {
        /// Print {"rows"}
        #[arg(long)]
        json: bool,
    },
    /// List the newest rows, oldest of them first
    #[command(after_help = "Example:\n  refit audit list --limit 5")]
    List {
        /// How many
        #[arg(long, short = 'n', default_value_t = 20)]
        limit: usize,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// When the chain is broken or the store fails.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Verify { json } => {
            let rows = audit::verify(&store)?;
            if json { output::json(&json!({"rows": rows}))? } else { output::line(format!("the chain of {rows} rows holds"))? }
        }
        Verb::List { limit, json } => {
            let rows = newest(store.db.as_ref(), limit)?;
            if json { output::json(&rows.iter().map(value).collect::<Vec<_>>())? } else { output::line(table(&rows))? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[AuditRow]) -> String {
    let cells = |row: &AuditRow| {
        let AuditRow { sequence, at, actor, action, subject, detail, .. } = row;
        vec![sequence.to_string(), rfc3339(*at), actor.clone(), action.clone(), subject.clone(), detail.chars().take(80).collect()]
    };
    output::table(&["row", "time", "actor", "action", "subject", "detail"], &rows.iter().map(cells).collect::<Vec<_>>())
}

fn value(row: &AuditRow) -> Value {
    let AuditRow { sequence, at, actor, action, subject, detail, previous, hash } = row;
    let detail: Value = serde_json::from_str(detail).unwrap_or_else(|_| json!(detail));
    json!({"sequence": sequence, "at": at, "actor": actor, "action": action, "subject": subject, "detail": detail, "previous": previous, "hash": hash})
}
