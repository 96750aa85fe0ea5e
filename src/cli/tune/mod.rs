//! `refit tune …`: fit an adapter on top of a local model with your own examples.

mod advise;
mod compare;
mod curve;
mod estimate;
mod export;
mod sweep;

use super::{Context, FAILED, output};
use crate::jobs::tune::{self, TuneProgress, TuneResult};
use crate::jobs::worker;
use crate::store::jobs::{self, JobRecord};
use crate::store::{Store, adapters};
use crate::tuning::AnyRecipe;
use crate::types::time::rfc3339;
use crate::types::traits::Progress;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Kinds of jobs that train.
const KINDS: [&str; 3] = ["tune", crate::store::fine_tunes::JOB_KIND, SWEEP];
const SWEEP: &str = "sweep";

const EXAMPLES: &str = "\
Examples:
  refit data import evals/data/support-intake.jsonl && refit data split support-intake --by intent
  refit tune run recipes/support-intake.yaml       train, with progress; Ctrl-C stops and keeps a checkpoint
  refit tune estimate recipes/support-intake.yaml  what it will take, before it begins
  refit tune status job_…                          how it goes, with the loss curve
  refit tune resume job_…                          go on from the checkpoint
  refit tune compare job_… job_…                   where two recipes differ, and what came of it
  refit tune advise intents --budget 5m            prompt, head or adapter: which is enough?
  refit tune export smollm2-135m-instruct:support-intake ./adapter";

/// Arguments of `refit tune`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Train an adapter after a recipe
    #[command(after_help = "A recipe names what comes out, the base model, the data and the prompt; every other key has a default:\n\n  \
        name: support-intake\n  model: local/smollm2-135m-instruct\n  dataset: support-intake\n  prompt: support-intake-naive\n  \
        epochs: 4\n  learning_rate: 0.001\n\nFor a classification, try a head on an embedding model first; it takes seconds:\n\n  \
        name: intent\n  method: head\n  model: local/all-minilm-l6-v2\n  dataset: intents\n\n\
        and ask local/all-minilm-l6-v2:intent at /v1/chat/completions.")]
    Run {
        /// Recipe file
        recipe: PathBuf,
        /// Choose what the recipe leaves out from the data; every choice is shown with its reason
        #[arg(long)]
        auto: bool,
        /// Return at once; `refit tune status` tells how it goes
        #[arg(long, conflicts_with = "dry_run")]
        detach: bool,
        /// Check everything and tell what it will take, and train nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what a recipe will take: steps, tokens, memory, time
    #[command(after_help = "Example:\n  refit tune estimate recipes/support-intake.yaml --json\n\n\
        Memory is computed from the sizes in the model file and the largest batch; the time is that of the newest training of the model.\n\
        A training that cannot fit is refused, here and by `run`.")]
    Estimate {
        /// Recipe file
        recipe: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Draw the loss of every step, of one job or of several together
    #[command(
        after_help = "Examples:\n  refit tune curve job_0193…\n  refit tune curve smollm2-135m-instruct:a smollm2-135m-instruct:b --svg curves.svg"
    )]
    Curve {
        /// Job ids, or `<model>:<adapter>`
        #[arg(required = true)]
        jobs: Vec<String>,
        /// Write an SVG file instead
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Print the points as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show where recipes differ and what came of each
    #[command(after_help = "Example:\n  refit tune compare job_0193… smollm2-135m-instruct:support-intake@1")]
    Compare {
        /// Job ids, or `<model>:<adapter>`
        #[arg(required = true)]
        jobs: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one job with its loss curve, or all of them
    #[command(after_help = "Example:\n  refit tune status job_0193… --json")]
    Status {
        /// Job id [default: all]
        job: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a job; it keeps a checkpoint
    #[command(after_help = "Example:\n  refit tune cancel job_0193…")]
    Cancel {
        /// Job id
        job: String,
    },
    /// Go on with a job that was stopped, failed or killed
    #[command(after_help = "Example:\n  refit tune resume job_0193…")]
    Resume {
        /// Job id
        job: String,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// List adapters
    #[command(after_help = "Example:\n  refit tune adapters --json")]
    Adapters {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Try learning rates and ranks, and train the best
    #[command(after_help = sweep::HELP)]
    Sweep(sweep::Args),
    /// Try a prompt, a head and an adapter on a dataset, and say which is enough
    #[command(after_help = advise::HELP)]
    Advise(advise::Args),
    /// Write an adapter for other programs
    #[command(after_help = export::HELP)]
    Export(export::Out),
    /// Take a PEFT folder in as an adapter of a local model
    #[command(after_help = "Example:\n  refit tune import ./peft-folder smollm2-135m-instruct:from-peft\n\n\
        What would not be applied as it was meant is refused by its name. Pickled weights are never read.")]
    Import(export::In),
}

/// Runs the verb.
///
/// # Errors
/// What `jobs` and `tuning` say.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Estimate { recipe, json } => estimate::run(&store, parsed(&recipe)?, json).map(|()| ExitCode::SUCCESS),
        Verb::Run { recipe, auto, dry_run, detach, json } => {
            let recipe = if auto { completed_recipe(&store, &recipe)? } else { parsed(&recipe)? };
            if dry_run {
                return estimate::run(&store, recipe, json).map(|()| ExitCode::SUCCESS);
            }
            start(context, &store, &recipe, (detach, json))
        }
        Verb::Curve { jobs, svg, json } => curve::run(&store, &jobs, svg.as_deref(), json).map(|()| ExitCode::SUCCESS),
        Verb::Compare { jobs, json } => compare::run(&store, &jobs, json).map(|()| ExitCode::SUCCESS),
        Verb::Status { job, json } => status(&store, job.as_deref(), json),
        Verb::Cancel { job } => cancel(&store, &job),
        Verb::Resume { job, json } => resume(context, &store, &job, json),
        Verb::Adapters { json } => list(&store, json),
        Verb::Sweep(args) => sweep::run(&args, context, &store),
        Verb::Advise(args) => advise::run(args, context),
        Verb::Export(args) => export::write(&store, &args),
        Verb::Import(args) => export::read(&store, &args),
    }
}

fn read_recipe(path: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Code::INVALID_FILE, format!("cannot read the recipe {}: {error}", path.display())))
}

fn parsed(path: &PathBuf) -> Result<AnyRecipe, Failure> {
    Ok(AnyRecipe::parse(&read_recipe(path)?)?)
}

/// The recipe with what it leaves out chosen from the data, told as lines that can be put into it.
fn completed_recipe(store: &Store, path: &PathBuf) -> Result<AnyRecipe, Failure> {
    let (recipe, chosen) = tune::completed(store, &read_recipe(path)?)?;
    chosen.iter().for_each(|choice| output::note(format!("{}: {}  # {}", choice.key, choice.value, choice.why)));
    Ok(recipe)
}

fn start(context: &Context, store: &Store, recipe: &AnyRecipe, (detach, json): (bool, bool)) -> Result<ExitCode, Failure> {
    worker::reap(store)?;
    let job = tune::enqueue(store, recipe.clone())?;
    if detach {
        // The worker outlives this process on purpose.
        worker::spawn(&context.data_dir, &job.id)?;
        return output::line(&job.id).map(|()| ExitCode::SUCCESS);
    }
    output::note(format!("job {}", job.id));
    report(follow(context, store, &job.id)?, json)
}

fn resume(context: &Context, store: &Store, id: &str, json: bool) -> Result<ExitCode, Failure> {
    worker::reap(store)?;
    let job = known(store, id)?;
    match job.status.as_str() {
        "queued" => {}
        "succeeded" => {
            return Err(Failure::new(Code::CONFLICT, format!("job {id} has succeeded: there is nothing to go on with"))
                .with_hint("refit tune run trains anew"));
        }
        "running" => {
            return Err(Failure::new(Code::CONFLICT, format!("job {id} is running")).with_hint(format!("refit tune status {id}")));
        }
        _ => drop(jobs::requeue(store.db.as_ref(), &job.id)?),
    }
    if job.kind == SWEEP { sweep::follow(context, store, &job.id, json) } else { report(follow(context, store, &job.id)?, json) }
}

/// Runs a queued job in its worker process, with a bar, until it ended; Ctrl-C stops it in good order.
///
/// # Errors
/// When the worker cannot be started.
pub fn follow(context: &Context, store: &Store, id: &str) -> Result<JobRecord, Failure> {
    let interrupted = interrupt_flag(context)?;
    let child = worker::spawn(&context.data_dir, id)?;
    let bar = output::Bar::counting("train");
    worker::wait(store, id, child, &mut |job| {
        let progress = progress(job);
        bar.update(progress.step as u64, progress.steps as u64, &describe(&progress));
        !interrupted.load(Ordering::Relaxed)
    })
}

fn interrupt_flag(context: &Context) -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let (runtime, seen) = (context.runtime()?, flag.clone());
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            seen.store(true, Ordering::Relaxed);
        }
    });
    Ok(flag)
}

/// The progress of a tuning job's row; zero before its first step.
pub fn progress(job: &JobRecord) -> TuneProgress {
    serde_json::from_value(job.progress.clone()).unwrap_or_default()
}

fn describe(progress: &TuneProgress) -> String {
    if let Some([done, total]) = progress.embedded {
        return if done < total { "texts become vectors".into() } else { "fitting the head".into() };
    }
    if progress.step == 0 {
        return "loading the model".into();
    }
    let validation = progress.validation_loss.map(|loss| format!(" · validation {loss:.3}")).unwrap_or_default();
    let left = progress.seconds_left.round() as u64;
    let (loss, rate, speed) = (progress.loss, progress.learning_rate, progress.tokens_per_second);
    format!("loss {loss:.3}{validation} · lr {rate:.1e} · {speed:.0} tok/s · {}:{:02} left", left / 60, left % 60)
}

/// The result of a job that succeeded.
///
/// # Errors
/// The reason of one that did not, and how to go on.
pub fn result(job: &JobRecord) -> Result<TuneResult, Failure> {
    if job.status == "succeeded" {
        return serde_json::from_value(job.result.clone())
            .map_err(|error| Failure::new(Code::CORRUPT, format!("the result of job {}: {error}", job.id)));
    }
    let reason = job.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    Err(Failure::new(Code::INTERNAL, format!("job {} {}{reason}", job.id, job.status)).with_hint(format!("refit tune resume {}", job.id)))
}

fn report(job: JobRecord, json: bool) -> Result<ExitCode, Failure> {
    let result = result(&job)?;
    if json {
        output::json(&json!({"job": job.id, "result": result}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let [first, last] = result.first_and_last_loss;
    let validation = match (&result.accuracy, result.validation_loss) {
        (Some(accuracy), _) => {
            let [low, high] = accuracy.interval.map(|share| 100.0 * share);
            let share = 100.0 * accuracy.share;
            format!("; {} of {} right on the validation split: {share:.1} % ({low:.1} to {high:.1})", accuracy.right, accuracy.of)
        }
        (None, Some(loss)) => format!(", lowest validation loss {loss:.4}"),
        (None, None) => String::new(),
    };
    output::note(format!(
        "{} steps, {} tokens in {:.1} s ({:.0} tok/s), {} trained values; loss {first:.4} to {last:.4}{validation}",
        result.steps, result.trained_tokens, result.seconds, result.tokens_per_second, result.parameters
    ));
    output::line(&result.adapter)?;
    Ok(ExitCode::SUCCESS)
}

fn known(store: &Store, id: &str) -> Result<JobRecord, Failure> {
    let found = jobs::get(store.db.as_ref(), id)?;
    if KINDS.contains(&found.kind.as_str()) {
        Ok(found)
    } else {
        Err(Failure::new(Code::UNKNOWN_NAME, format!("job {id} is no tuning job")))
    }
}

/// A job by its id or by the adapter that came of it, and what it is called in tables and pictures.
fn named(store: &Store, reference: &str) -> Result<(String, JobRecord), Failure> {
    if reference.starts_with("job_") {
        let job = known(store, reference)?;
        let name = job.spec["recipe"]["name"].as_str().unwrap_or(reference).to_string();
        let tail: String = reference.chars().skip(reference.chars().count().saturating_sub(6)).collect();
        return Ok((format!("{name} …{tail}"), job));
    }
    let adapter = adapter_of(store, reference)?;
    let Some(job) = adapter.provenance["job"].as_str().map(String::from) else {
        let message = format!("{reference} was imported: no training of it is known here");
        return Err(Failure::on(Code::UNKNOWN_NAME, "job", message).with_hint("refit tune adapters --json shows what its files say"));
    };
    Ok((format!("{}@{}", adapter.name, adapter.version), known(store, &job)?))
}

/// An adapter as `<model>:<adapter>`.
fn adapter_of(store: &Store, reference: &str) -> Result<adapters::AdapterRecord, Failure> {
    let plain = reference.trim_start_matches("local/");
    let Some((model, name)) = plain.split_once(':') else {
        let message = format!("\"{reference}\" names no job and no adapter; expected job_… or <model>:<adapter>");
        return Err(Failure::on(Code::INVALID_REQUEST, "adapter", message).with_hint("refit tune status and refit tune adapters list them"));
    };
    Ok(adapters::get(store.db.as_ref(), model, name)?)
}

fn status(store: &Store, job: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    worker::reap(store)?;
    let found = match job {
        Some(id) => vec![known(store, id)?],
        None => jobs::list(store.db.as_ref())?.into_iter().filter(|job| KINDS.contains(&job.kind.as_str())).collect(),
    };
    if json {
        let all: Vec<Value> = found.iter().map(as_json).collect();
        match (job, all.into_iter().next()) {
            (Some(_), Some(one)) => output::json(&one)?,
            _ => output::json(&found.iter().map(as_json).collect::<Vec<_>>())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let row = |job: &JobRecord| {
        let progress = progress(job);
        let detail = job.error.clone().unwrap_or_else(|| if job.status == "running" { describe(&progress) } else { String::new() });
        vec![job.id.clone(), job.status.clone(), format!("{}/{}", progress.step, progress.steps), rfc3339(job.created_at), detail]
    };
    output::line(output::table(&["job", "status", "step", "created", ""], &found.iter().map(row).collect::<Vec<_>>()))?;
    if let (Some(_), [one]) = (job, found.as_slice()) {
        let drawn = curve::drawn(store, one)?;
        if !drawn.is_empty() {
            output::line(format!("\n{drawn}"))?;
        }
    }
    let failed = job.is_some() && found.iter().any(|job| job.status == "failed");
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// Seconds of `90s`, `5m`, `1h`.
///
/// # Errors
/// [`Code::INVALID_VALUE`] about the flag.
fn seconds(text: &str, flag: &str) -> Result<f64, Failure> {
    let wrong = || Failure::on(Code::INVALID_VALUE, flag, format!("--{flag}: expected a time such as 90s, 5m or 1h, not \"{text}\""));
    let unit = match text.chars().last() {
        Some('s') => 1.0,
        Some('m') => 60.0,
        Some('h') => 3_600.0,
        _ => return Err(wrong()),
    };
    let number = unit * text[..text.len() - 1].parse::<f64>().map_err(|_| wrong())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err(wrong()) }
}

fn as_json(job: &JobRecord) -> Value {
    json!({"id": job.id, "status": job.status, "progress": job.progress, "result": job.result, "error": job.error,
        "recipe": job.spec.get("recipe"), "attempts": job.attempts, "created_at": rfc3339(job.created_at)})
}

fn cancel(store: &Store, id: &str) -> Result<ExitCode, Failure> {
    known(store, id)?;
    let job = jobs::request_cancel(store.db.as_ref(), id)?;
    output::note(match job.status.as_str() {
        "running" => format!("job {id} stops after its current step"),
        "cancelled" => format!("job {id} is cancelled"),
        other => format!("job {id} has {other}: there is nothing to stop"),
    });
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, json: bool) -> Result<ExitCode, Failure> {
    let found = adapters::list(store.db.as_ref())?;
    if json {
        let one = |a: &adapters::AdapterRecord| {
            json!({"name": format!("{}:{}@{}", a.model, a.name, a.version), "digest": a.digest, "model_digest": a.model_digest,
                "config": a.config, "provenance": a.provenance, "created_at": rfc3339(a.created_at)})
        };
        output::json(&found.iter().map(one).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |a: &adapters::AdapterRecord| {
        let steps = a.provenance.get("steps").map(Value::to_string).unwrap_or_default();
        vec![format!("local/{}:{}@{}", a.model, a.name, a.version), a.digest.short(), steps, rfc3339(a.created_at)]
    };
    output::line(output::table(&["adapter", "digest", "steps", "created"], &found.iter().map(row).collect::<Vec<_>>()))?;
    Ok(ExitCode::SUCCESS)
}
