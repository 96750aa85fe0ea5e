//! `refit eval …`: run a suite, resume a run, list, show and compare runs. One file per verb, as far as they are not small.

mod compare;
mod power;
mod promptfoo;
mod read;
mod run;
mod score;
mod write;

use super::Context;
use crate::evals::Bounds;
use crate::evals::bounds::{duration, money};
use crate::evals::prepare::Selection;
use crate::types::{Code, Failure};
use clap::Subcommand;
use futures_util::{Stream, stream};
use std::path::PathBuf;
use std::process::ExitCode;
use write::Output;

const EXAMPLES: &str = "\
A suite (evals/NAME.yaml) names a dataset, targets, scorers and a gate. Exit codes: 0 done, 1 the gate was missed, 2 failed.

Examples:
  refit eval run evals/support-intake.yaml
  refit eval run evals/support-intake.yaml --split test --target base-prompt --json
  refit eval run evals/support-intake.yaml --prompt prompts/short.prompt --prompt greet@2
  refit eval run evals/support-intake.yaml --repeats 5 --max-cost 2.00 --out report.html
  refit eval resume latest
  refit eval compare run_a/base run_b/base";

/// Arguments of `refit eval`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Ask every target every case, score the answers and judge the gate
    #[command(
        after_help = "Ctrl-C waits for the calls under way, which are paid for, and leaves a run that `refit eval resume` goes on with; a second Ctrl-C does \
        not wait.\n\nExample:\n  \
        refit eval run evals/support-intake.yaml --split validation --concurrency 32"
    )]
    Run {
        /// Suite file
        suite: PathBuf,
        /// Another split than the suite's
        #[arg(long)]
        split: Option<String>,
        /// Only this target; may be repeated
        #[arg(long = "target", value_name = "NAME")]
        targets: Vec<String>,
        /// This prompt (a .prompt file or a reference) instead of the targets' own; may be repeated: every target with every prompt
        #[arg(long = "prompt", value_name = "PROMPT")]
        prompts: Vec<String>,
        /// Only the first samples: a quick look that proves nothing
        #[arg(long)]
        limit: Option<usize>,
        /// Cases asked at the same time, at most
        #[arg(long)]
        concurrency: Option<usize>,
        /// Ask each sample so many times
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: Option<u16>,
        /// Give answers again that were given before
        #[arg(long, overrides_with = "no_cache")]
        cache: bool,
        /// Ask everything anew, whatever the suite says
        #[arg(long)]
        no_cache: bool,
        #[command(flatten)]
        bounds: BoundArgs,
        /// Let scorers run programs (`command`, `wasm`)
        #[arg(long)]
        allow_commands: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Go on with a run: ask what has no answer yet or ended in an error
    #[command(after_help = "Example:\n  refit eval resume latest --max-cost 5.00")]
    Resume {
        /// Run id, or `latest`
        run: String,
        #[command(flatten)]
        bounds: BoundArgs,
        /// Let scorers run programs (`command`, `wasm`)
        #[arg(long)]
        allow_commands: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Score answers that are stored, in a run or in a file, without asking any target
    #[command(after_help = score::EXAMPLES)]
    Score(Box<score::Args>),
    /// List runs, newest first
    #[command(after_help = "Example:\n  refit eval list --suite support-intake")]
    List {
        /// Only runs of this suite
        #[arg(long)]
        suite: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show a run's report, or its cases as JSON lines
    #[command(
        after_help = "Examples:\n  refit eval show latest --cases --missed\n  refit eval show latest --out report.html --out junit.xml"
    )]
    Show {
        /// Run id, or `latest`
        run: String,
        /// Print the cases instead of the report
        #[arg(long)]
        cases: bool,
        /// Of the cases, only those with an error or without full marks
        #[arg(long, requires = "cases")]
        missed: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Paired difference between two targets, of one run or of two
    #[command(
        after_help = "A run with one target needs no /TARGET; of two runs without one, all targets with the same name are compared.\n\n\
        Examples:\n  refit eval compare run_0193/base run_0193/prompt\n  refit eval compare run_0193 run_0194 --format markdown"
    )]
    Compare {
        /// RUN/TARGET that is compared with
        a: String,
        /// RUN/TARGET that is compared
        b: String,
        /// Only this metric
        #[arg(long)]
        metric: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// How many samples it takes to see a given difference, from what a run has measured
    #[command(after_help = power::EXAMPLES)]
    Power(power::Args),
    /// Make a suite of promptfoo's configuration; what does not carry over is listed
    #[command(after_help = "The suite, its dataset and its prompts are written as files. Code of the configuration does not run.\n\n\
        Example:\n  refit eval import promptfooconfig.yaml --name support --judge openai/gpt-4o-mini")]
    Import(promptfoo::Import),
    /// Write a suite as promptfoo's configuration; what does not carry over is listed
    #[command(after_help = "Example:\n  refit eval export evals/support.yaml --out promptfooconfig.yaml")]
    Export(promptfoo::Export),
}

/// What a run may cost and take.
#[derive(clap::Args)]
struct BoundArgs {
    /// Dollars that the run may cost, over all its executions
    #[arg(long, value_name = "DOLLARS", value_parser = money)]
    max_cost: Option<crate::types::money::MicroUsd>,
    /// Time that this execution may take: 90s, 30m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_time: Option<std::time::Duration>,
}

impl BoundArgs {
    fn bounds(&self) -> Bounds {
        Bounds { cost: self.max_cost, time: self.max_time }
    }
}

/// Runs the verb.
///
/// # Errors
/// What `evals` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Run { suite, split, targets, prompts, limit, concurrency, repeats, cache, no_cache, bounds, allow_commands, output } => {
            let cache = if cache || no_cache { Some(cache && !no_cache) } else { None };
            let (repeats, bounds) = (repeats.map(usize::from), bounds.bounds());
            let prompts = prompts.iter().map(|prompt| placed(prompt)).collect::<Result<_, _>>()?;
            let selection = Selection { split, targets, limit, concurrency, prompts, repeats, cache, bounds };
            run::run((context, allow_commands), &suite, &selection, &output)
        }
        Verb::Resume { run, bounds, allow_commands, output } => run::resume((context, allow_commands), &run, bounds.bounds(), &output),
        Verb::Score(args) => score::score(context, &args),
        Verb::List { suite, json } => read::list(&context.open_store()?, suite.as_deref(), json),
        Verb::Show { run, cases, missed, output } => read::show(&context.open_store()?, &run, cases.then_some(missed), &output),
        Verb::Compare { a, b, metric, output } => compare::compare(&context.open_store()?, (&a, &b), metric.as_deref(), &output),
        Verb::Power(args) => power::power(&context.open_store()?, &args),
        Verb::Import(args) => promptfoo::import(&args),
        Verb::Export(args) => promptfoo::export(&args, context),
    }
}

/// A prompt as it is found from anywhere: a file with its whole path, a reference as it is.
fn placed(prompt: &str) -> Result<String, Failure> {
    if !prompt.ends_with(".prompt") {
        return Ok(prompt.to_string());
    }
    let unreadable = |error| Failure::on(Code::INVALID_FILE, "--prompt", format!("cannot read {prompt}: {error}"));
    Ok(std::path::Path::new(prompt).canonicalize().map_err(unreadable)?.display().to_string())
}

/// Resolves at Ctrl-C.
pub(super) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a signal handler a run can only be killed, which it survives as well.
        std::future::pending::<()>().await;
    }
}

/// An item for each Ctrl-C.
pub(super) fn interruptions() -> impl Stream<Item = ()> {
    stream::unfold((), |()| async { Some((interrupted().await, ())) })
}
