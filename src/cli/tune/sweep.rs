//! `refit tune sweep`: learning rates and ranks against each other.

use super::{interrupt_flag, parsed, seconds};
use crate::cli::{Context, output};
use crate::jobs::tune::sweep::{SweepResult, SweepSpec, SweepState, Trial, enqueue_sweep};
use crate::jobs::worker;
use crate::store::Store;
use crate::types::traits::Progress;
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// Arguments of `refit tune sweep`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipe file: what all trials share
    recipe: PathBuf,
    /// Learning rates, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "RATE,…")]
    learning_rate: Vec<f64>,
    /// Ranks, separated by commas; alpha stays in proportion
    #[arg(long, value_delimiter = ',', value_name = "RANK,…")]
    rank: Vec<usize>,
    /// Time for training, over all trials: 90s, 10m, 1h
    #[arg(long, default_value = "10m")]
    budget: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--help` adds.
pub const HELP: &str = "\
Every combination trains for a part of its steps; the half with the lower validation loss goes on to twice as many, until one is left, which is
trained to its end and measured on the test split, once. Ctrl-C stops; `refit tune resume` goes on where it stood.

Example:
  refit tune sweep recipe.yaml --learning-rate 3e-4,1e-3,3e-3 --rank 4,8 --budget 10m";

/// Runs the verb.
///
/// # Errors
/// As [`enqueue_sweep`]; the reason of a sweep that did not end.
pub fn run(args: &Args, context: &Context, store: &Store) -> Result<ExitCode, Failure> {
    let recipe = parsed(&args.recipe)?;
    let budget_s = seconds(&args.budget, "budget")?;
    let spec = SweepSpec { recipe, learning_rates: args.learning_rate.clone(), ranks: args.rank.clone(), budget_s };
    let job = enqueue_sweep(store, &spec)?;
    output::note(format!("job {}", job.id));
    follow(context, store, &job.id, args.json)
}

/// Runs a queued sweep to its end, and shows its table.
///
/// # Errors
/// The reason of one that did not end.
pub fn follow(context: &Context, store: &Store, id: &str, as_json: bool) -> Result<ExitCode, Failure> {
    let interrupted = interrupt_flag(context)?;
    let child = worker::spawn(&context.data_dir, id)?;
    let bar = output::Bar::counting("sweep");
    let ended = worker::wait(store, id, child, &mut |job| {
        let state: SweepState = serde_json::from_value(job.progress.clone()).unwrap_or_default();
        let rung = format!("rung {} of {}, {} in", state.rung + 1, state.rungs.len().max(1), state.alive.len());
        bar.update(state.step as u64, state.steps as u64, &rung);
        !interrupted.load(Ordering::Relaxed)
    })?;
    drop(bar);
    if ended.status != "succeeded" {
        let reason = ended.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        let failure = Failure::new(Code::INTERNAL, format!("sweep {id} {}{reason}", ended.status));
        return Err(failure.with_hint(format!("refit tune resume {id}")));
    }
    let result: SweepResult =
        serde_json::from_value(ended.result).map_err(|error| Failure::new(Code::CORRUPT, format!("the result of sweep {id}: {error}")))?;
    if as_json {
        output::json(&json!({"job": id, "result": result}))?;
    } else {
        show(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(result: &SweepResult) -> Result<(), Failure> {
    let row = |trial: &Trial| {
        let loss = trial.validation_loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.4}"));
        let note = trial.error.clone().unwrap_or_default();
        vec![
            trial.job.clone(),
            trial.learning_rate.to_string(),
            trial.rank.to_string(),
            trial.steps.to_string(),
            loss,
            format!("{:.1}", trial.seconds),
            note,
        ]
    };
    let heading = ["trial", "learning rate", "rank", "steps", "validation", "seconds", ""];
    output::line(output::table(&heading, &result.trials.iter().map(row).collect::<Vec<_>>()))?;
    if let Some(test) = &result.test {
        let beside: String = test.metrics.iter().map(|(name, value)| format!(", {} {value:.3}", name.replace('_', " "))).collect();
        output::note(format!("the winner on the test split: loss {:.4}{beside} ({} examples)", test.loss, test.examples));
    }
    if let Some(note) = &result.note {
        output::note(note);
    }
    match &result.adapter {
        Some(adapter) => output::line(format!("\n{adapter}")),
        None => Ok(()),
    }
}
