//! `refit prompt optimize`: a model proposes templates, a suite measures them, the better one is printed, written to a file or published.

use super::of_file;
use crate::access::audit;
use crate::cli::eval::interrupted;
use crate::cli::{Context, GATE_MISSED, output};
use crate::evals::report::describe;
use crate::jobs::optimize::{Ended, Limits, Optimized, Request, Surroundings, Tried, Winner, optimize};
use crate::prompts::Library;
use crate::prompts::library::{By, Parent};
use crate::store::Store;
use crate::types::money::MicroUsd;
use crate::types::{Code, Digest, Failure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
The suite's dataset has the splits train (proposals see it), validation (decides) and test (asked once, for the winner).
Candidates are stored as versions of NAME.candidates and every measurement as a run: the same command goes on where it ended.
Exit codes: 0 a better prompt was found, 1 none was (or a budget ended it), 2 failed.

Example:
  refit prompt optimize prompts/greet.prompt --suite evals/greet.yaml --with openai/gpt-4o --max-usd 2 --out greet.prompt";

/// Arguments of `refit prompt optimize`.
#[derive(clap::Args)]
pub struct Args {
    /// A .prompt file, or a reference into the library
    prompt: String,
    /// Suite file
    #[arg(long, value_name = "FILE")]
    suite: PathBuf,
    /// Model that proposes
    #[arg(long, value_name = "PROVIDER/MODEL")]
    with: String,
    /// Target of the suite whose model answers [default: the one with this prompt, else the first]
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Metric that decides [default: the suite's first]
    #[arg(long)]
    metric: Option<String>,
    /// Candidates in all
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=100))]
    candidates: u8,
    /// Rounds that they are made in, each from the best one so far
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// Examples from the train split that one candidate of a round shows; 0 for none
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=64))]
    examples: u8,
    /// Another seed: other proposals and examples
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Dollars that all calls together may cost
    #[arg(long, value_name = "DOLLARS")]
    max_usd: Option<String>,
    /// Minutes that it may take
    #[arg(long, value_name = "MINUTES")]
    max_minutes: Option<f64>,
    /// Write the winner to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Publish the winner as the next version of the prompt
    #[arg(long)]
    publish: bool,
    /// Why, for what is published; the runs are added
    #[arg(long, short, default_value = "", requires = "publish")]
    message: String,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Optimises, and brings the winner to where it is wanted; exit code 1 where there is none.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let app = context.app()?;
    let (name, source) = prompt(&app.store, &args.prompt)?;
    let parent = if args.publish { Some(parent(&app.store, &name, &source)?) } else { None };
    let request = Request {
        name,
        source,
        suite: args.suite.clone(),
        target: args.target.clone(),
        metric: args.metric.clone(),
        with: args.with.clone(),
        candidates: usize::from(args.candidates),
        rounds: usize::from(args.rounds.min(args.candidates)),
        examples: usize::from(args.examples),
        seed: args.seed,
        limits: limits(&args)?,
        author: context.actor(),
    };
    let around = Surroundings {
        store: app.store.clone(),
        inference: app.inference.clone(),
        progress: Arc::new(output::Bar::counting("optimize")),
        tell: Arc::new(|line: &str| output::note(line)),
        interrupted: Box::pin(interrupted()),
    };
    let found = context.runtime()?.block_on(optimize(request, around))?;
    tell(&found);
    if let Some(winner) = &found.winner {
        keep(&args, context, &app.store, (&found, winner), parent)?;
    }
    if args.json {
        output::json(&found)?;
    }
    verdict(&found)
}

/// Name and source of what is optimised.
fn prompt(store: &Store, named: &str) -> Result<(String, String), Failure> {
    if named.ends_with(".prompt") {
        return of_file(Path::new(named));
    }
    let version = Library::new(store).get(named)?;
    Ok((version.prompt, version.source))
}

/// What the winner is published over: known before anything is paid for.
fn parent(store: &Store, name: &str, source: &str) -> Result<Parent, Failure> {
    match Library::new(store).newest(name)? {
        None => Ok(Parent::Nothing),
        Some(newest) if newest.digest == Digest::of(source) => Ok(Parent::Version(newest.digest)),
        Some(newest) => {
            let message = format!("the newest version of \"{name}\" is {}, and it is not what is to be optimised", newest.version);
            let hint = "publish the file first, optimise the newest version, or leave --publish out";
            Err(Failure::on(Code::CONFLICT, "--publish", message).with_hint(hint))
        }
    }
}

fn limits(args: &Args) -> Result<Limits, Failure> {
    let money = args.max_usd.as_deref().map(|text| {
        let wrong = || Failure::on(Code::INVALID_VALUE, "--max-usd", format!("--max-usd {text}: expected dollars, such as 2.50"));
        MicroUsd::parse(text).ok_or_else(wrong)
    });
    let time = args.max_minutes.map(|minutes| {
        let wrong = |_| Failure::on(Code::INVALID_VALUE, "--max-minutes", format!("--max-minutes {minutes}: expected minutes, such as 30"));
        Duration::try_from_secs_f64(minutes * 60.0).map_err(wrong)
    });
    Ok(Limits { money: money.transpose()?, time: time.transpose()? })
}

/// What was found, for people.
fn tell(found: &Optimized) {
    let percent = found.level * 100.0;
    for Tried { name, difference, interval, is_better, .. } in &found.candidates {
        let (Some(difference), Some(interval)) = (difference, interval) else { continue };
        let verdict = if *is_better { "better" } else { "not better beyond chance" };
        let (delta, p) = (difference.paired.delta, difference.paired.p);
        output::note(format!(
            "{name}: {delta:+.3}, {percent:.2} % interval [{:.3}, {:.3}], p = {p:.4}: {verdict}",
            interval[0], interval[1]
        ));
    }
    if let Some(test) = &found.test {
        output::note(format!("test split: {}", describe(test)));
        if test.paired.delta <= 0.0 {
            output::note("on the test split the winner is not better: look at the cases before it is used");
        }
    }
    output::note(format!("cost of this execution: ${}", found.spent_usd));
}

fn keep(
    args: &Args,
    context: &Context,
    store: &Store,
    (found, winner): (&Optimized, &Winner),
    parent: Option<Parent>,
) -> Result<(), Failure> {
    if let Some(file) = &args.out {
        let unwritable = |error| Failure::on(Code::STORAGE, "--out", format!("cannot write {}: {error}", file.display()));
        std::fs::write(file, &winner.source).map_err(unwritable)?;
        output::note(format!("{} is written to {}", winner.name, file.display()));
    }
    if let Some(parent) = parent {
        let message = format!("{}{}", args.message, lineage(found, winner, args.message.is_empty()));
        let by = By { author: &context.actor(), message: &message, commit: &audit::commit(store) };
        let version = Library::new(store).publish_from(&found.prompt, &winner.source, parent, by)?.version;
        output::note(format!("{} is published as {}@{}", winner.name, version.prompt, version.version));
    }
    if args.out.is_none() && !args.publish && !args.json {
        output::bytes(winner.source.as_bytes())?;
    }
    Ok(())
}

/// Where a winner comes from: the candidate, the model that proposed, and the runs that show it.
fn lineage(found: &Optimized, winner: &Winner, is_alone: bool) -> String {
    let of_winner = found.candidates.iter().filter(|tried| tried.name == winner.name);
    let runs: Vec<&str> = found.current.iter().chain(of_winner).map(|tried| tried.run.as_str()).collect();
    let tested =
        found.test.as_ref().map_or(String::new(), |test| format!(", {} {:+.3} on the test split", found.metric, test.paired.delta));
    let test_runs: Vec<&str> = found.runs.iter().rev().take(2).rev().map(String::as_str).collect();
    let text =
        format!("{}, optimised with {}{tested}; validation {}, test {}", winner.name, found.with, runs.join(" "), test_runs.join(" "));
    if is_alone { text } else { format!(" ({text})") }
}

fn verdict(found: &Optimized) -> Result<ExitCode, Failure> {
    match (found.ended, &found.winner) {
        (Some(Ended::Interrupted), _) => {
            let failure = Failure::new(Code::CANCELLED, "the optimisation was interrupted");
            Err(failure.with_hint("what was measured is stored; the same command goes on with it"))
        }
        (Some(ended), _) => {
            output::note(format!("nothing is kept: {}", ended.words()));
            output::note("what was measured is stored; the same command with a larger budget goes on with it");
            Ok(ExitCode::from(GATE_MISSED))
        }
        (None, Some(_)) => Ok(ExitCode::SUCCESS),
        (None, None) => {
            let best = found.best.as_ref().map_or("no candidate has a higher mean".to_string(), |best| {
                format!("{best} has the highest mean, and its interval does not exclude that it is no better")
            });
            output::note(format!("nothing is kept: {best}"));
            Ok(ExitCode::from(GATE_MISSED))
        }
    }
}
