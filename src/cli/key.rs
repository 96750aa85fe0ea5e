//! `refit key …`: API keys of applications.

use super::{Context, output};
use crate::access::{Keys, Role};
use crate::store::keys::KeyRow;
use crate::types::Failure;
use crate::types::time::rfc3339;
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit key create my-app
  refit key create dashboard --role viewer --project shop --json
  refit key revoke my-app";

/// Arguments of `refit key`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key; it is shown once and cannot be shown again
    #[command(after_help = "Example:\n  KEY=$(refit key create my-app)")]
    Create {
        /// What the key is for
        name: String,
        /// Project the key belongs to
        #[arg(long, default_value = "default")]
        project: String,
        /// What it may do: app (call models), viewer, developer, admin
        #[arg(long, default_value = "app")]
        role: String,
        /// Print {"id", "name", "project", "role", "key"}
        #[arg(long)]
        json: bool,
    },
    /// List keys, revoked ones too; the keys themselves are not stored
    #[command(after_help = "Example:\n  refit key list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key; its next request is refused
    #[command(after_help = "Example:\n  refit key revoke my-app")]
    Revoke {
        /// Id or name
        key: String,
        /// Print the key's row as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// What `access` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let keys = Keys::open(&context.open_store()?)?;
    match args.verb {
        Verb::Create { name, project, role, json } => {
            let made = keys.create(&name, &project, role.parse::<Role>()?, &context.actor())?;
            if json {
                output::json(&made)?;
            } else {
                output::note(format!(
                    "{} for project {} with role {}; keep it now, it is not shown again",
                    made.id, made.project, made.role
                ));
                output::line(&made.key)?;
            }
        }
        Verb::List { json } => list(&keys.list()?, json)?,
        Verb::Revoke { key, json } => {
            let revoked = keys.revoke(&key, &context.actor())?;
            if json { output::json(&row(&revoked))? } else { output::line(&revoked.id)? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(keys: &[KeyRow], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&keys.iter().map(row).collect::<Vec<_>>());
    }
    let state = |key: &KeyRow| key.revoked_at.map_or("active".to_string(), |at| format!("revoked {}", rfc3339(at)));
    let line = |key: &KeyRow| vec![key.id.clone(), key.name.clone(), key.project.clone(), key.role.clone(), key.hint.clone(), state(key)];
    output::line(output::table(&["id", "name", "project", "role", "key", "state"], &keys.iter().map(line).collect::<Vec<_>>()))
}

/// A key's row without its hash.
fn row(key: &KeyRow) -> Value {
    let KeyRow { id, name, project, role, hint, created_at, revoked_at, .. } = key;
    json!({"id": id, "name": name, "project": project, "role": role, "hint": hint, "created_at": created_at, "revoked_at": revoked_at})
}
