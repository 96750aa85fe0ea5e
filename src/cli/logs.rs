//! `refit logs …`: the request log.

use super::{Context, output};
use crate::monitor::record;
use crate::store::requests::RequestRow;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit logs tail
  refit logs tail --limit 100 --json
  refit logs show req_0197…";

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
    #[command(after_help = "Example:\n  refit logs tail --limit 5")]
    Tail {
        /// How many
        #[arg(long, short = 'n', default_value_t = 20)]
        limit: usize,
        /// Print a JSON array, without bodies
        #[arg(long)]
        json: bool,
    },
    /// Show one request with its bodies
    #[command(after_help = "The id is the `x-request-id` header of the reply.\n\nExample:\n  refit logs show req_0197… --json")]
    Show {
        /// Request id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// [`Code::UNKNOWN_NAME`] for an unknown id; otherwise what the store says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Tail { limit, json } => {
            let mut rows = record::newest(&store, limit)?;
            rows.reverse();
            if json { output::json(&rows.iter().map(figures).collect::<Vec<_>>())? } else { output::line(table(&rows))? }
        }
        Verb::Show { id, json } => {
            let unknown =
                || Failure::new(Code::UNKNOWN_NAME, format!("no request has the id \"{id}\"")).with_hint("`refit logs tail` lists ids");
            let row = record::find(&store, &id)?.ok_or_else(unknown)?;
            let whole = whole(&row);
            if json { output::json(&whole)? } else { output::line(serde_json::to_string_pretty(&whole).unwrap_or_default())? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[RequestRow]) -> String {
    let cells = |row: &RequestRow| {
        let tokens = |count: Option<u64>| count.map_or("-".to_string(), |count| count.to_string());
        let target = row
            .route
            .clone()
            .unwrap_or_else(|| if row.provider.is_empty() { row.model.clone() } else { format!("{}/{}", row.provider, row.model) });
        let status = row.error_code.as_ref().map_or(row.status.to_string(), |code| format!("{} {code}", row.status));
        let tokens = format!("{}+{}", tokens(row.input_tokens), tokens(row.output_tokens));
        vec![row.id.clone(), rfc3339(row.at), target, status, tokens, format!("{:.0}", row.total_ms)]
    };
    output::table(&["id", "time", "target", "status", "tokens", "ms"], &rows.iter().map(cells).collect::<Vec<_>>())
}

/// A row without its bodies.
fn figures(row: &RequestRow) -> Value {
    let mut value = serde_json::to_value(row).unwrap_or(Value::Null);
    for body in ["request", "reply"] {
        value.as_object_mut().map(|fields| fields.shift_remove(body));
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
