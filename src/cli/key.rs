//! `refit key …`: API keys of applications.

use super::limits::{self, LimitArgs};
use super::{Context, output};
use crate::access::keys::{Changes, NewKey, Wanted, shown};
use crate::access::{Keys, Role};
use crate::store::keys::KeyRow;
use crate::types::Failure;
use crate::types::time::{end_of, now_ms, rfc3339};
use clap::Subcommand;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit key create my-app
  refit key create dashboard --role viewer --project shop --json
  refit key create trial --route 'openai/*' --route support --expires 30d --rpm 60 --budget 25.00
  refit key update trial --budget 50.00 --expires none
  refit key rotate my-app
  refit key revoke my-app";

/// Arguments of `refit key`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

/// What a key may do besides its role.
#[derive(clap::Args)]
struct BoundArgs {
    /// Route or provider/model that it may call, * at the end for any rest; repeat for more [default: all]
    #[arg(long = "route", value_name = "NAME")]
    routes: Vec<String>,
    /// When it ends: 30d, 12h, a date (its last day, UTC) or a moment; "none" for never
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key; it is shown once and cannot be shown again
    #[command(after_help = "Example:\n  KEY=$(refit key create my-app --rpm 600 --budget 25.00 --budget-period month)")]
    Create {
        /// What the key is for
        name: String,
        /// Project the key belongs to
        #[arg(long, default_value = "default")]
        project: String,
        /// What it may do: app (call models), viewer, developer, admin
        #[arg(long, default_value = "app")]
        role: String,
        #[command(flatten)]
        bounds: BoundArgs,
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
    /// Show one key
    #[command(after_help = "Example:\n  refit key show my-app")]
    Show {
        /// Id or name
        key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change a key; what is not named stays. Takes effect with its next request
    #[command(after_help = "Example:\n  refit key update my-app --rpm 120 --budget none --all-routes")]
    Update {
        /// Id or name
        key: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another role
        #[arg(long)]
        role: Option<String>,
        #[command(flatten)]
        bounds: BoundArgs,
        /// Let it call every name again
        #[arg(long, conflicts_with = "routes")]
        all_routes: bool,
        /// Print the key's row as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a key another secret, shown once; the old one is refused with the next request
    #[command(after_help = "Id, limits and usage stay.\n\nExample:\n  KEY=$(refit key rotate my-app)")]
    Rotate {
        /// Id or name
        key: String,
        /// Print {"id", "name", "project", "role", "key"}
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
    let actor = context.actor();
    match args.verb {
        Verb::Create { name, project, role, bounds, json } => {
            let wanted = Wanted { name, project, role: role.parse::<Role>()?, changes: changes(bounds)? };
            secret(&keys.make(wanted, &actor)?, json)?;
        }
        Verb::List { json } => list(&keys.list()?, json)?,
        Verb::Show { key, json } => {
            let row = one(&keys, &key)?;
            if json { output::json(&shown(&row))? } else { output::line(described(&row))? }
        }
        Verb::Update { key, name, role, bounds, all_routes, json } => {
            let role = role.map(|role| role.parse()).transpose()?;
            let mut changes = Changes { name, role, ..changes(bounds)? };
            if all_routes {
                changes.routes = Some(None);
            }
            let row = keys.update(&key, changes, &actor)?;
            if json { output::json(&shown(&row))? } else { output::line(described(&row))? }
        }
        Verb::Rotate { key, json } => secret(&keys.rotate(&key, &actor)?, json)?,
        Verb::Revoke { key, json } => {
            let revoked = keys.revoke(&key, &actor)?;
            if json { output::json(&shown(&revoked))? } else { output::line(&revoked.id)? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn changes(bounds: BoundArgs) -> Result<Changes, Failure> {
    let BoundArgs { routes, expires, limits } = bounds;
    let expected = "30d, 12h, a date such as 2027-01-31, or a moment";
    let expires_at = limits::or_none("expires", expires.as_deref(), |text| end_of(text, now_ms()), expected)?;
    Ok(Changes { routes: (!routes.is_empty()).then_some(Some(routes)), expires_at, limits: limits.changes()?, ..Changes::default() })
}

fn secret(made: &NewKey, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(made);
    }
    output::note(format!("{} for project {} with role {}; keep it now, it is not shown again", made.id, made.project, made.role));
    output::line(&made.key)
}

/// A key by id, revoked ones too, or an active one by name.
fn one(keys: &Keys, id_or_name: &str) -> Result<KeyRow, Failure> {
    match keys.list()?.into_iter().find(|row| row.id == id_or_name) {
        Some(row) => Ok(row),
        None => Ok(keys.active(id_or_name)?),
    }
}

fn state(key: &KeyRow) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", rfc3339(at)),
        (None, Some(end)) if end < now_ms() => format!("expired {}", rfc3339(end)),
        (None, Some(end)) => format!("active until {}", rfc3339(end)),
        (None, None) => "active".to_string(),
    }
}

fn names(key: &KeyRow) -> String {
    let routes: Vec<String> = key.routes.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if routes.is_empty() { "all".to_string() } else { routes.join(" ") }
}

fn described(key: &KeyRow) -> String {
    let rows = [
        ("id", key.id.clone()),
        ("name", key.name.clone()),
        ("project", key.project.clone()),
        ("role", key.role.clone()),
        ("key", key.hint.clone()),
        ("state", state(key)),
        ("routes", names(key)),
        ("limits", limits::cell(&key.limits)),
        ("made", rfc3339(key.created_at)),
    ];
    rows.map(|(name, value)| format!("{name:<9}{value}")).join("\n")
}

fn list(keys: &[KeyRow], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&keys.iter().map(shown).collect::<Vec<_>>());
    }
    let line = |key: &KeyRow| {
        let KeyRow { id, name, project, role, hint, .. } = key;
        let mut cells: Vec<_> = [id, name, project, role, hint].map(String::clone).into();
        cells.extend([state(key), names(key), limits::cell(&key.limits)]);
        cells
    };
    let heading = ["id", "name", "project", "role", "key", "state", "routes", "limits"];
    output::line(output::table(&heading, &keys.iter().map(line).collect::<Vec<_>>()))
}
