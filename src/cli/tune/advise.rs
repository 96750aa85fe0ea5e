//! `refit tune advise`: prompt, head or adapter.

use super::{describe, seconds};
use crate::cli::{Context, output};
use crate::evals::prepare::Selection;
use crate::evals::{Report, Runner, Suite, prepare};
use crate::jobs::tune::EMBEDDERS;
use crate::jobs::tune::advise::{Advice, Candidate, Hands, Question, advise};
use crate::jobs::worker;
use crate::models;
use crate::store::Store;
use crate::store::jobs::JobRecord;
use crate::store::{models as rows, runs};
use crate::types::traits::{Progress, Silent};
use crate::types::{Code, Failure};
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `refit tune advise`.
#[derive(clap::Args)]
pub struct Args {
    /// A split dataset
    dataset: String,
    /// Time for everything: 90s, 5m, 1h
    #[arg(long, default_value = "5m")]
    budget: String,
    /// Model that is prompted and adapted [default: the first local model that chats]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Model that heads are fitted on [default: the first local model that makes embeddings]
    #[arg(long, value_name = "MODEL")]
    embedder: Option<String>,
    /// Prompt of the library, for all methods [default: the only text of the input]
    #[arg(long)]
    prompt: Option<String>,
    /// Split that is measured on
    #[arg(long, default_value = "test")]
    split: String,
    /// Samples of it, at most
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--help` adds.
pub const HELP: &str = "\
Tries a prompt on the model as it is, a classifier head on embeddings and a LoRA adapter, on the same samples, and recommends the cheapest to
call that the best one is not measurably better than (paired test, 5 %). Seconds per 1,000 calls are those of this machine.

Example:
  refit tune advise banking --budget 10m --json";

/// Runs the verb.
///
/// # Errors
/// As [`advise`].
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let app = Arc::new(context.app()?);
    let store = app.store.clone();
    let (chats, embeds) = first_models(&store)?;
    let base = args.base.or(chats).ok_or_else(|| {
        Failure::on(Code::MISSING_FIELD, "base", "no local model that chats is here")
            .with_hint("refit model pull smollm2-135m-instruct, or name one with --base")
    })?;
    let question = Question {
        dataset: args.dataset,
        prompt: args.prompt,
        base,
        embedder: args.embedder.or(embeds),
        split: args.split,
        samples: args.samples.max(1),
        budget_s: seconds(&args.budget, "budget")?,
    };
    let measure = |suite: Suite, split: &str, limit: usize| -> Result<Report, Failure> {
        let selection = Selection { split: Some(split.to_string()), limit: Some(limit), ..Selection::default() };
        let plan = prepare(&app.store, suite, &selection, &context.actor())?;
        let progress: Arc<dyn Progress> = if args.json { Arc::new(Silent) } else { Arc::new(output::Bar::counting("measure")) };
        let runner = Runner { store: app.store.clone(), respond: app.inference.clone(), progress };
        let report = context.runtime()?.block_on(runner.run(plan, crate::cli::eval::interruptions()))?;
        match report.status == runs::CANCELLED {
            true => Err(Failure::new(Code::CANCELLED, "the measuring was stopped")),
            false => Ok(report),
        }
    };
    let train = |job: &JobRecord, seconds: f64| -> Result<JobRecord, Failure> {
        let child = worker::spawn(&context.data_dir, &job.id)?;
        let bar = output::Bar::counting("train");
        let began = std::time::Instant::now();
        worker::wait(&store, &job.id, child, &mut |job| {
            let progress = super::progress(job);
            bar.update(progress.step as u64, progress.steps as u64, &describe(&progress));
            // A few steps say how long the rest will take.
            let ahead = if progress.step >= 5 { progress.seconds_left } else { 0.0 };
            began.elapsed().as_secs_f64() + ahead <= seconds
        })
    };
    let tell = |what: &str| output::note(format!("trying {what}"));
    let advice = advise(&question, &Hands { store: &store, measure: &measure, train: &train, tell: &tell })?;
    if args.json {
        output::json(&advice)?
    } else {
        show(&advice)?
    }
    Ok(ExitCode::SUCCESS)
}

/// The first local models that chat and that make embeddings, by name.
fn first_models(store: &Store) -> Result<(Option<String>, Option<String>), Failure> {
    let (mut chats, mut embeds) = (None, None);
    for record in rows::list(store.db.as_ref())? {
        if models::find(store, &record.name).is_err() {
            continue;
        }
        let place = if record.architecture == EMBEDDERS { &mut embeds } else { &mut chats };
        place.get_or_insert(format!("local/{}", record.name));
    }
    Ok((chats, embeds))
}

fn show(advice: &Advice) -> Result<(), Failure> {
    let row = |candidate: &Candidate| {
        let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_string(), |value| format!("{value:.digits$}"));
        let accuracy = candidate.accuracy.map_or_else(
            || "-".to_string(),
            |a| format!("{:.1} % ({:.1} to {:.1})", 100.0 * a.share, 100.0 * a.ci95[0], 100.0 * a.ci95[1]),
        );
        let behind = candidate
            .best_minus_this
            .as_ref()
            .map_or_else(String::new, |paired| format!("{:.1} points, p = {:.3}", 100.0 * paired.delta, paired.p));
        vec![
            candidate.method.to_string(),
            accuracy,
            behind,
            if candidate.accuracy.is_some() { format!("{:.1}", candidate.training_s) } else { "-".into() },
            number(candidate.seconds_per_1000, 1),
            number(candidate.usd_per_1000, 4),
            candidate.note.clone().unwrap_or_else(|| candidate.target.clone()),
        ]
    };
    let heading = ["method", "right", "behind the best", "training s", "s per 1,000 calls", "$ per 1,000 calls", ""];
    output::line(output::table(&heading, &advice.candidates.iter().map(row).collect::<Vec<_>>()))?;
    output::line(format!("\n{}", advice.because))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!((seconds("90s", "budget").expect("a time"), seconds("1.5m", "budget").expect("a time")), (90.0, 90.0));
        for wrong in ["", "5", "m", "-1m", "0s", "1d", "ü"] {
            assert!(seconds(wrong, "budget").is_err(), "{wrong}");
        }
    }
}
