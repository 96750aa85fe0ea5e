//! `refit demo`: the whole loop on a small local model, with real numbers: pull, data, validate, prompt, train, test, package, serve.
//! [`example`] holds the embedded example, [`steps`] one function a step, [`serving`] the gateway and its first call.

mod example;
mod outcome;
mod serving;
mod steps;

use super::{Context, GATE_MISSED, output};
use crate::types::Failure;
use example::Example;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Needs no key, no GPU and no server; about ten minutes on two cores, most of it training. What it makes stays in the data directory:
the model, the dataset and its split, the prompts, every run, the adapter, the release, the audit log.

Examples:
  refit demo                    and keep serving until Ctrl-C
  refit demo --no-serve --json  the numbers as one JSON object
  refit demo --quick            the same steps on a few samples: proves the machinery, not the model";

/// Arguments of `refit demo`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// End after the first call instead of serving on
    #[arg(long)]
    no_serve: bool,
    /// A few samples and a few training steps
    #[arg(long)]
    quick: bool,
    /// Port of the gateway; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Print one JSON object on stdout; the story goes to stderr
    #[arg(long)]
    json: bool,
}

/// Where the story is told.
#[derive(Clone, Copy)]
struct Story {
    json: bool,
}

impl Story {
    /// A line of the story.
    fn say(self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.json {
            output::note(text);
            return Ok(());
        }
        output::line(text)
    }

    /// The heading of a step.
    fn step(self, number: usize, text: &str) -> Result<(), Failure> {
        self.say(format!("\n{number}/8 {text}"))
    }
}

/// Runs the verb.
///
/// # Errors
/// What the step at hand says; what was done before stays stored.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let story = Story { json: args.json };
    let example = Example::write(&context.data_dir, args.quick)?;
    let demo = steps::Demo::open(context, example, story)?;
    let mut outcome = outcome::Outcome::new();

    let model = outcome.timed("pull", || demo.pull())?;
    let split = outcome.timed("data", || demo.data())?;
    let naive = outcome.timed("validate", || demo.validate())?;
    outcome.timed("prompt", || demo.engineer(&naive))?;
    let trained = outcome.timed("train", || demo.train())?;
    let test = outcome.timed("test", || demo.test(&trained))?;
    let package = outcome.timed("package", || demo.package(&test))?;
    let parts = outcome::Parts { model, split, trained, test, package, call: None };
    if parts.package.release.is_none() {
        story.say("The adapter missed the gate, so nothing is served. That is the gate's work; try another recipe.")?;
        outcome.finish(parts, began.elapsed());
        if args.json {
            output::json(&outcome)?;
        }
        return Ok(ExitCode::from(GATE_MISSED));
    }
    let runtime = context.runtime()?;
    let serving = outcome.timed("serve", || runtime.block_on(serving::start(&demo, args.port)))?;
    outcome.finish(outcome::Parts { call: Some(serving.call.clone()), ..parts }, began.elapsed());
    if args.json {
        output::json(&outcome)?;
    }
    if args.no_serve {
        runtime.block_on(serving.stop())?;
    } else {
        story.say(format!("\nServing on {} until Ctrl-C.", serving.url))?;
        runtime.block_on(serving.until_interrupted())?;
    }
    Ok(ExitCode::SUCCESS)
}
