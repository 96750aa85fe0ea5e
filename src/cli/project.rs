//! `refit project …`: tenants and their limits, over all their keys together.

use super::limits::{self, LimitArgs};
use super::{Context, output};
use crate::access::projects::{self, shown};
use crate::store::Store;
use crate::store::projects::ProjectRow;
use crate::store::usage::{self, Whose};
use crate::types::Failure;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use clap::Subcommand;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit project set shop --rpm 600 --budget 500.00 --budget-period month
  refit project set shop --budget none
  refit project show shop";

/// Arguments of `refit project`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Set a project's limits; what is not named stays. They hold beside those of each key
    #[command(after_help = "Example:\n  refit project set shop --tpm 100000 --budget 500.00")]
    Set {
        /// Name; a project needs no making
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// Print the project as JSON
        #[arg(long)]
        json: bool,
    },
    /// List projects that have keys or limits
    #[command(after_help = "Example:\n  refit project list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one project and what it has spent of its budget
    #[command(after_help = "Example:\n  refit project show shop")]
    Show {
        /// Name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// What `access` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Set { name, limits, json } => {
            let set = projects::set(&store, &name, &limits.changes()?, &context.actor())?;
            if json { output::json(&shown(&set))? } else { output::line(table(&[set]))? }
        }
        Verb::List { json } => {
            let all = projects::list(&store)?;
            if json { output::json(&all.iter().map(shown).collect::<Vec<_>>())? } else { output::line(table(&all))? }
        }
        Verb::Show { name, json } => show(&store, &projects::get(&store, &name)?, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(store: &Store, project: &ProjectRow, json: bool) -> Result<(), Failure> {
    let period = project.limits.budget_period.as_deref().map_or(Ok(crate::access::Period::default()), str::parse)?;
    let (first_day, _) = period.around(now_ms());
    let spent = usage::spent(store.db.as_ref(), Whose::Project(&project.name), first_day)?;
    if json {
        let mut value = shown(project);
        value["spent_micro_usd"] = spent.into();
        return output::json(&value);
    }
    output::line(format!("project  {}\nkeys     {}\nlimits   {}", project.name, project.keys, limits::cell(&project.limits)))?;
    output::line(format!("spent    {} this {period}", MicroUsd(spent)).replace("this total", "in all"))
}

fn table(projects: &[ProjectRow]) -> String {
    let line = |project: &ProjectRow| vec![project.name.clone(), project.keys.to_string(), limits::cell(&project.limits)];
    output::table(&["project", "keys", "limits"], &projects.iter().map(line).collect::<Vec<_>>())
}
