//! `refit route …`: make, list and show routes: the names that applications put in `model`.

use super::{Context, output};
use crate::access::audit::commit;
use crate::datasets::Datasets;
use crate::evals::Suite;
use crate::releases::{Condition, Gate, route};
use crate::store::routes::{all_stages, decisions, get, list as all_routes, stages};
use crate::store::{Store, runs};
use crate::types::time::rfc3339;
use crate::types::{Code, Digest, Failure};
use clap::Subcommand;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit route create support-intake --suite support-intake --split test --require exact_match:ci_low>=0.5
  refit route show support-intake";

/// Arguments of `refit route`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a route with the gate that every promotion on it must pass
    #[command(after_help = "Conditions are METRIC>=NUMBER (the mean) or METRIC:ci_low>=NUMBER (lower end of its 95 % interval).\n\n\
        Example:\n  refit route create support-intake --suite support-intake --require 'exact_match:ci_low>=0.5' --require 'json_schema>=0.95'")]
    Create {
        /// Name that applications will call
        name: String,
        /// Suite whose runs prove a release
        #[arg(long)]
        suite: String,
        /// Condition that must be met; repeat for more
        #[arg(long, required = true, value_name = "CONDITION")]
        require: Vec<Condition>,
        /// Only runs on this split of the dataset count [default: any]
        #[arg(long)]
        split: Option<String>,
        /// Only runs on this version of the dataset count: name, name@version or digest [default: any]
        #[arg(long)]
        dataset: Option<String>,
        /// Only runs with these scorers count: those of a suite file or of a run; `any` for any [default: those of the suite's newest
        /// finished run, where there is one]
        #[arg(long, value_name = "SUITE|RUN|any")]
        scorers: Option<String>,
        /// Print the route as JSON
        #[arg(long)]
        json: bool,
    },
    /// List routes and what is live on them
    #[command(after_help = "Example:\n  refit route list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one route: gate, stages, every decision
    #[command(after_help = "Example:\n  refit route show support-intake")]
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
/// What `releases` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Create { name, suite, require, split, dataset, scorers, json } => {
            let dataset_digest = dataset.map(|reference| Datasets::new(&store).get(&reference)).transpose()?.map(|row| row.digest);
            let scorers_digest = scorers_of(&store, &suite, scorers.as_deref())?;
            let gate = Gate { conditions: require, split, dataset_digest, scorers_digest };
            let made = route::create(&store, &name, &suite, gate, (&context.actor(), &commit(&store)))?;
            if json { output::json(&made) } else { output::line(&made.name) }
        }
        Verb::List { json } => list(&store, json),
        Verb::Show { name, json } => show(&store, &name, json),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The digest of the scorers that runs must have; none for any.
fn scorers_of(store: &Store, suite: &str, named: Option<&str>) -> Result<Option<Digest>, Failure> {
    let db = store.db.as_ref();
    match named {
        Some("any") => Ok(None),
        Some(file) if file.ends_with(".yaml") || file.ends_with(".yml") => {
            Ok(Some(Suite::open(Path::new(file))?.scorers_digest.ok_or_else(|| unpinned(&format!("scorers of {file}")))?))
        }
        Some(run) => match runs::get(db, run)? {
            runs::RunRecord { scorers_digest: Some(digest), .. } => Ok(Some(digest)),
            run => Err(unpinned(&format!("scorers of run {}", run.id))),
        },
        None => {
            let newest = runs::list(db, Some(suite))?.into_iter().find(|run| run.status == runs::FINISHED);
            let digest = newest.and_then(|run| run.scorers_digest);
            if digest.is_none() {
                output::note(format!(
                    "the gate takes runs with any scorers: no finished run of suite \"{suite}\" says which; pin them with --scorers SUITE.yaml"
                ));
            }
            Ok(digest)
        }
    }
}

/// Nothing that can be pinned.
fn unpinned(what: &str) -> Failure {
    let message =
        format!("the {what} cannot be pinned: a program outside of the suite scores (`command`), or nobody wrote down which they were");
    let hint = "a `wasm` scorer is pinned with its module; `--scorers any` takes runs with whatever scorers, and proves that much less";
    Failure::on(Code::INVALID_VALUE, "--scorers", message).with_hint(hint)
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let (routes, stages) = (all_routes(store.db.as_ref())?, all_stages(store.db.as_ref())?);
    let of = |name: &str| stages.iter().filter(|stage| stage.route == name).collect::<Vec<_>>();
    if json {
        let all: Vec<_> = routes
            .iter()
            .map(|r| json!({"name": r.name, "suite": r.suite, "gate": r.gate, "created_at": r.created_at, "stages": of(&r.name)}))
            .collect();
        return output::json(&all);
    }
    let held = |name: &str, stage: &str| of(name).iter().find(|held| held.stage == stage).map_or("-".into(), |held| held.release.short());
    let rows: Vec<_> = routes
        .iter()
        .map(|r| vec![r.name.clone(), r.suite.clone(), held(&r.name, "live"), held(&r.name, "canary"), held(&r.name, "shadow")])
        .collect();
    output::line(output::table(&["route", "suite", "live", "canary", "shadow"], &rows))
}

fn show(store: &Store, name: &str, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&route::describe(store, name)?);
    }
    let db = store.db.as_ref();
    let route = get(db, name)?;
    let gate = Gate::of(&route)?;
    let conditions: Vec<_> = gate.conditions.iter().map(Condition::to_string).collect();
    output::line(format!("route   {}\nsuite   {}", route.name, route.suite))?;
    output::line(format!("gate    {} on {}", conditions.join(", "), gate.split.as_deref().unwrap_or("any split")))?;
    if let Some(digest) = gate.scorers_digest {
        output::line(format!("scorers {}", digest.short()))?;
    }
    for stage in stages(db, name)? {
        output::line(format!(
            "{:<8}{} weight {} since {} proven by {}",
            stage.stage,
            stage.release,
            stage.weight,
            rfc3339(stage.since),
            stage.run
        ))?;
    }
    let rows: Vec<_> = decisions(db, name)?
        .into_iter()
        .map(|d| vec![rfc3339(d.decided_at), d.decision, d.stage, d.release.short(), d.previous.map_or("-".into(), |p| p.short()), d.actor])
        .collect();
    if rows.is_empty() {
        return output::line("no decisions yet");
    }
    output::line(output::table(&["decided", "decision", "stage", "release", "previous", "by"], &rows))
}
