//! `refit release …`: make, list, show, promote and roll back releases.

use super::{Context, output};
use crate::access::audit::commit;
use crate::models;
use crate::prompts::library::Library;
use crate::releases::create::{self, Authorship};
use crate::releases::manifest::PromptRef;
use crate::releases::route::{self, Decided, Expected, Promotion, Stage};
use crate::releases::{Manifest, ReleaseError};
use crate::store::releases::{ReleaseRecord, get, list as all_releases};
use crate::store::routes::{StageRecord, all_stages, proofs};
use crate::store::{Store, adapters};
use crate::types::error::did_you_mean;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit release create --run run_0193… --target adapter -m \"first adapter\"
  refit release promote sha256:2c26b4… --route support-intake
  refit release rollback support-intake";

/// Arguments of `refit release`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a release from a run's target, from parts, or from a manifest file
    #[command(after_help = "Prints the release's digest. The same content always has the same digest.\n\nExamples:\n  \
        refit release create --run run_0193… --target adapter\n  \
        refit release create --model local/smollm2-135m-instruct --adapter support --prompt support-intake@production -P temperature=0\n  \
        refit release create --model openai/gpt-4o-mini --prompt reply@production --guardrails pii\n  \
        refit release create --manifest release.json")]
    Create(Create),
    /// List releases, newest first, with the stages they are in
    #[command(after_help = "Example:\n  refit release list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one release: manifest, stages, runs that measured it
    #[command(after_help = "Example:\n  refit release show sha256:2c26")]
    Show {
        /// Digest, or its first digits
        release: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a release to a stage of a route, if the route's gate lets it pass
    #[command(
        after_help = "The gate looks for a finished run of the route's suite that measured exactly this digest. Exit code 1: refused.\n\n\
        Example:\n  refit release promote sha256:2c26 --route support-intake --stage canary --weight 0.1"
    )]
    Promote {
        /// Digest, or its first digits
        release: String,
        /// Route
        #[arg(long)]
        route: String,
        /// shadow, canary or live
        #[arg(long, default_value = "live")]
        stage: Stage,
        /// Share of requests for a canary [default: 0.1]
        #[arg(long)]
        weight: Option<f64>,
        /// Refuse unless the stage holds this digest now; "none" for an empty stage
        #[arg(long, value_name = "DIGEST")]
        expect: Option<Expected>,
        /// Print the decision as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the release back that was live before
    #[command(after_help = "Example:\n  refit release rollback support-intake")]
    Rollback {
        /// Route
        route: String,
        /// Print the decision as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `refit release create`.
#[derive(clap::Args)]
struct Create {
    /// Take the manifest that a run measured
    #[arg(long, requires = "target", conflicts_with_all = ["manifest", "model"])]
    run: Option<String>,
    /// Target of the run
    #[arg(long, requires = "run")]
    target: Option<String>,
    /// Read the manifest from a JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    manifest: Option<PathBuf>,
    /// provider/model
    #[arg(long, required_unless_present_any = ["run", "manifest"])]
    model: Option<String>,
    /// Adapter of a local model: name, name@version or digest
    #[arg(long, requires = "model")]
    adapter: Option<String>,
    /// Prompt: name, name@version, name@label
    #[arg(long, requires = "model")]
    prompt: Option<String>,
    /// Decoding parameter, such as temperature=0; repeat for more
    #[arg(short = 'P', long = "parameter", value_name = "NAME=VALUE", requires = "model")]
    parameters: Vec<String>,
    /// Set of guardrails, copied from refit.toml as it stands there; repeat for more
    #[arg(long = "guardrails", value_name = "SET", requires = "model")]
    guardrails: Vec<String>,
    /// Why this release
    #[arg(short, long, default_value = "")]
    message: String,
    /// Print the release as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What `releases` says; a refused promotion is [`Code::GATE_REFUSED`].
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Create(args) => create(context, &store, args),
        Verb::List { json } => list(&store, json),
        Verb::Show { release, json } => show(&store, &release, json),
        Verb::Promote { release, route, stage, weight, expect, json } => {
            let release = get(store.db.as_ref(), &release)?.digest;
            let expected = expect.unwrap_or(Expected::Current);
            let promotion = Promotion { route, release, stage, weight, expected, actor: context.actor() };
            report(route::promote(&store, &promotion, &commit(&store)), json)
        }
        Verb::Rollback { route, json } => report(route::rollback(&store, &route, &context.actor(), &commit(&store)), json),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn create(context: &Context, store: &Store, args: Create) -> Result<(), Failure> {
    let manifest = match (&args.run, &args.target, &args.manifest) {
        (Some(run), Some(target), _) => create::of_run(store, run, target)?,
        (.., Some(path)) => from_file(path)?,
        _ => from_parts(context, store, &args)?,
    };
    let by = Authorship { author: context.actor(), message: args.message };
    let release = create::create(store, &manifest, &by, &commit(store))?;
    if args.json { output::json(&release) } else { output::line(release.digest.to_string()) }
}

fn from_file(path: &PathBuf) -> Result<Manifest, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::new(Code::INVALID_FILE, format!("cannot read {name}: {error}")))?;
    let value = serde_json::from_str(&text).map_err(|error| Failure::new(Code::INVALID_FILE, format!("{name} is not JSON: {error}")))?;
    Ok(create::parse(value)?)
}

fn from_parts(context: &Context, store: &Store, args: &Create) -> Result<Manifest, Failure> {
    let model = args.model.clone().unwrap_or_default();
    let local = model.strip_prefix("local/");
    let model_digest = local.map(|name| models::find(store, name)).transpose()?.map(|found| found.record.digest);
    let adapter = match (local, &args.adapter) {
        (_, None) => None,
        (Some(model), Some(reference)) => Some(adapters::get(store.db.as_ref(), model, reference)?.digest),
        (None, Some(_)) => return Err(Failure::on(Code::UNSUPPORTED, "--adapter", "only local models take adapters")),
    };
    let prompt = match &args.prompt {
        None => None,
        Some(reference) => Library::new(store).get(reference).map(|found| Some(PromptRef { name: found.prompt, digest: found.digest }))?,
    };
    let parameters = args.parameters.iter().map(|text| parameter(text)).collect::<Result<Map<_, _>, _>>()?;
    let guardrails = guardrails(context, &args.guardrails)?;
    let (tools, response_format) = (Vec::new(), None);
    Ok(Manifest { model, model_digest, adapter, prompt, parameters, tools, response_format, guardrails })
}

/// Sets of the configuration, to be held by a release: what is proven with them must not change with the file.
fn guardrails(context: &Context, names: &[String]) -> Result<Vec<Value>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sets = context.config()?.guardrails.sets;
    let one = |name: &String| match sets.get(name) {
        Some(set) => Ok(set.to_inline()),
        None => {
            let nearest = did_you_mean(name, sets.keys().map(String::as_str));
            let failure =
                Failure::on(Code::UNKNOWN_NAME, "--guardrails", format!("there is no set \"{name}\" in the configuration{nearest}"));
            Err(failure.with_hint("sets are written in refit.toml as [guardrails.NAME]"))
        }
    };
    names.iter().map(one).collect()
}

/// `name=value`; a value that is not JSON is a text.
fn parameter(text: &str) -> Result<(String, Value), Failure> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(Failure::on(Code::INVALID_VALUE, "-P", format!("\"{text}\": expected NAME=VALUE, such as temperature=0")));
    };
    Ok((name.to_string(), serde_json::from_str(value).unwrap_or_else(|_| json!(value))))
}

fn report(decided: Result<Decided, ReleaseError>, json: bool) -> Result<(), Failure> {
    let decided = match decided {
        Ok(decided) => decided,
        Err(ReleaseError::Refused { route, release, suite, reasons }) => {
            if json {
                output::json(&json!({"decision": "refused", "route": route, "release": release, "suite": suite, "reasons": reasons}))?;
            }
            return Err(ReleaseError::Refused { route, release, suite, reasons }.into());
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        return output::json(&decided);
    }
    for verdict in decided.gate.iter().flat_map(|gate| &gate.verdicts) {
        output::note(format!("passed: {}", verdict.reason));
    }
    let decision = &decided.decision;
    output::line(format!("{} {} is {} on {}", decision.decision, decision.release, decision.stage, decision.route))
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let (releases, stages) = (all_releases(store.db.as_ref())?, all_stages(store.db.as_ref())?);
    let of = |release: &ReleaseRecord| stages.iter().filter(|stage| stage.release == release.digest).cloned().collect::<Vec<_>>();
    if json {
        let all: Vec<_> = releases.iter().map(|release| described(release, &of(release))).collect();
        return output::json(&all);
    }
    let row = |release: &ReleaseRecord| {
        let model = release.manifest["model"].as_str().unwrap_or("").to_string();
        let prompt = release.manifest["prompt"]["name"].as_str().unwrap_or("-").to_string();
        let adapter = if release.manifest["adapter"].is_null() { "no" } else { "yes" };
        vec![
            release.digest.short(),
            model,
            adapter.into(),
            prompt,
            places(&of(release)),
            rfc3339(release.created_at),
            release.message.clone(),
        ]
    };
    let rows: Vec<_> = releases.iter().map(row).collect();
    output::line(output::table(&["release", "model", "adapter", "prompt", "stages", "made", "message"], &rows))
}

fn show(store: &Store, reference: &str, json: bool) -> Result<(), Failure> {
    let db = store.db.as_ref();
    let release = get(db, reference)?;
    let stages: Vec<_> = all_stages(db)?.into_iter().filter(|stage| stage.release == release.digest).collect();
    let proofs = proofs(db, None, &release.digest)?;
    let mut shown = described(&release, &stages);
    shown["runs"] = json!(proofs);
    if json {
        return output::json(&shown);
    }
    let manifest = serde_json::to_string_pretty(&release.manifest).unwrap_or_default();
    output::line(format!("release  {}\nby       {} at {}", release.digest, release.author, rfc3339(release.created_at)))?;
    output::line(format!("message  {}\nstages   {}\nmanifest {manifest}", release.message, places(&stages)))?;
    for proof in &proofs {
        output::line(format!("run      {} of suite {} on {}/{}: {}", proof.run, proof.suite, proof.dataset, proof.split, proof.metrics))?;
    }
    Ok(())
}

fn described(release: &ReleaseRecord, stages: &[StageRecord]) -> Value {
    let mut value = json!(release);
    value["stages"] = json!(stages);
    value
}

fn places(stages: &[StageRecord]) -> String {
    if stages.is_empty() {
        return "-".into();
    }
    stages.iter().map(|stage| format!("{}:{}", stage.route, stage.stage)).collect::<Vec<_>>().join(" ")
}
