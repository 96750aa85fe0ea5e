//! `refit eval …`: run a suite, resume a run, list, show and compare runs.

use super::{Context, output};
use crate::evals::compare::{Difference, changed, difference};
use crate::evals::prepare::Selection;
use crate::evals::report::describe;
use crate::evals::{Report, Runner, Suite, prepare, resume};
use crate::store::Store;
use crate::store::runs::{self, CaseRecord, RunRecord};
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::json;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
A suite (evals/NAME.yaml) names a dataset, targets, scorers and a gate. Exit codes: 0 done, 1 the gate was missed, 2 failed.

Examples:
  refit eval run evals/support-intake.yaml
  refit eval run evals/support-intake.yaml --split test --target base-prompt --json
  refit eval run evals/support-intake.yaml --prompt prompts/short.prompt --prompt greet@2
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
    #[command(after_help = "Ctrl-C leaves a run that `refit eval resume` goes on with.\n\nExample:\n  \
        refit eval run evals/support-intake.yaml --split validation --concurrency 32")]
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
        /// Cases asked at the same time
        #[arg(long)]
        concurrency: Option<usize>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on with a run: ask what has no answer yet or ended in an error
    #[command(after_help = "Example:\n  refit eval resume latest")]
    Resume {
        /// Run id, or `latest`
        run: String,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
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
    #[command(after_help = "Example:\n  refit eval show latest --cases --missed")]
    Show {
        /// Run id, or `latest`
        run: String,
        /// Print the cases instead of the report
        #[arg(long)]
        cases: bool,
        /// Of the cases, only those with an error or without full marks
        #[arg(long, requires = "cases")]
        missed: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Paired difference between two targets, of one run or of two
    #[command(after_help = "A run with one target needs no /TARGET.\n\nExample:\n  refit eval compare run_0193/base run_0193/prompt")]
    Compare {
        /// RUN/TARGET that is compared with
        a: String,
        /// RUN/TARGET that is compared
        b: String,
        /// Only this metric
        #[arg(long)]
        metric: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// What `evals` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Run { suite, split, targets, prompts, limit, concurrency, json } => {
            let suite = Suite::open(&suite)?;
            let prompts = prompts.iter().map(|prompt| placed(prompt)).collect::<Result<_, _>>()?;
            let selection = Selection { split, targets, limit, concurrency, prompts };
            measure(context, json, |runner| {
                let plan = prepare(&runner.store, suite, &selection, &context.actor())?;
                Ok(async move { runner.run(plan, interrupted()).await })
            })
        }
        Verb::Resume { run, json } => measure(context, json, |runner| Ok(async move { resume(&runner, &run, interrupted()).await })),
        Verb::List { suite, json } => list(&context.open_store()?, suite.as_deref(), json),
        Verb::Show { run, cases, missed, json } => show(&context.open_store()?, &run, cases.then_some(missed), json),
        Verb::Compare { a, b, metric, json } => compare(&context.open_store()?, (&a, &b), metric.as_deref(), json),
    }
}

/// Builds the runner, executes what `start` makes of it, prints the report and turns it into an exit code.
fn measure<F: Future<Output = Result<Report, Failure>>>(
    context: &Context,
    json: bool,
    start: impl FnOnce(Runner) -> Result<F, Failure>,
) -> Result<ExitCode, Failure> {
    let app = context.app()?;
    let runner = Runner { store: app.store.clone(), respond: app.inference.clone(), progress: Arc::new(output::Bar::counting("eval")) };
    let report = context.runtime()?.block_on(start(runner)?)?;
    if json {
        output::json(&report)?;
    } else {
        output::line(report.table())?;
    }
    verdict(&report)
}

fn verdict(report: &Report) -> Result<ExitCode, Failure> {
    let again = format!("refit eval resume {}", report.run);
    if report.status == runs::CANCELLED {
        return Err(Failure::new(Code::CANCELLED, format!("run {} was stopped", report.run)).with_hint(format!("go on with it: {again}")));
    }
    if report.errors() > 0 {
        let message = format!("{} cases of run {} ended in an error and have no answer", report.errors(), report.run);
        let hint = format!("`refit eval show {} --cases --missed` lists them, `{again}` asks them again", report.run);
        return Err(Failure::new(Code::UPSTREAM, message).with_hint(hint));
    }
    let passed = report.gate.as_ref().is_none_or(|gate| gate.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(super::GATE_MISSED) })
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

fn list(store: &Store, suite: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let found = runs::list(store.db.as_ref(), suite)?;
    if json {
        output::json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |run: &RunRecord| {
        let gate = match run.summary["gate"]["passed"].as_bool() {
            Some(true) => "passed",
            Some(false) => "missed",
            None => "-",
        };
        vec![
            run.id.clone(),
            run.suite.clone(),
            run.dataset.clone(),
            run.split.clone(),
            run.status.clone(),
            gate.into(),
            rfc3339(run.created_at),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    output::line(output::table(&["run", "suite", "dataset", "split", "status", "gate", "begun"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

fn show(store: &Store, run: &str, cases: Option<bool>, json: bool) -> Result<ExitCode, Failure> {
    let run = runs::get(store.db.as_ref(), run)?;
    if let Some(missed) = cases {
        let full =
            |case: &CaseRecord| case.error.is_none() && case.scores.as_object().is_some_and(|all| all.values().all(|value| *value == 1.0));
        let mut found = runs::cases(store.db.as_ref(), &run.id)?;
        found.retain(|case| !missed || !full(case));
        if json {
            output::json(&found)?;
        } else {
            let lines: String = found.iter().map(|case| format!("{}\n", json!(case))).collect();
            output::bytes(lines.as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Ok(report) = serde_json::from_value::<Report>(run.summary.clone()) else {
        let message = format!("run {} has no report yet: it is {}", run.id, run.status);
        return Err(Failure::new(Code::CONFLICT, message).with_hint(format!("go on with it: refit eval resume {}", run.id)));
    };
    if json { output::json(&report) } else { output::line(report.table()) }?;
    Ok(ExitCode::SUCCESS)
}

fn compare(store: &Store, names: (&str, &str), metric: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let (a, b) = (Side::find(store, names.0)?, Side::find(store, names.1)?);
    let (left, right): (Vec<_>, Vec<_>) = (a.cases.iter().collect(), b.cases.iter().collect());
    let known: Vec<&String> = a.metrics.iter().filter(|metric| b.metrics.contains(metric)).collect();
    let wanted: Vec<&str> = match metric {
        None => known.into_iter().map(String::as_str).collect(),
        Some(metric) if known.iter().any(|other| *other == metric) => vec![metric],
        Some(metric) => {
            let known = known.into_iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Failure::on(
                Code::UNKNOWN_NAME,
                "--metric",
                format!("the two do not share a metric \"{metric}\"; they share: {known}"),
            ));
        }
    };
    let differences: Vec<Difference> = wanted.iter().map(|metric| difference(metric, (&a.name, &left), (&b.name, &right))).collect();
    if differences.iter().all(|one| one.paired.n == 0) {
        return Err(Failure::new(Code::INVALID_VALUE, format!("{} and {} have no sample in common that both answered", a.name, b.name)));
    }
    let moved = wanted.first().map(|metric| changed(metric, &left, &right)).unwrap_or_default();
    if json {
        output::json(&json!({"a": a.name, "b": b.name, "paired": differences, "changed": moved}))?;
        return Ok(ExitCode::SUCCESS);
    }
    for one in &differences {
        output::line(describe(one))?;
    }
    for one in moved.iter().take(20) {
        output::line(format!("  {}: {} -> {}", one.sample, one.a, one.b))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One side of a comparison.
struct Side {
    name: String,
    metrics: Vec<String>,
    cases: Vec<CaseRecord>,
}

impl Side {
    /// `RUN/TARGET`, or `RUN` when it has one target.
    fn find(store: &Store, reference: &str) -> Result<Self, Failure> {
        let (run, target) = reference.split_once('/').map_or((reference, None), |(run, target)| (run, Some(target)));
        let run = runs::get(store.db.as_ref(), run)?;
        let targets: Vec<String> = runs::targets(store.db.as_ref(), &run.id)?.into_iter().map(|target| target.target).collect();
        let target = match (target, &targets[..]) {
            (Some(target), _) if targets.iter().any(|known| known == target) => target.to_string(),
            (None, [only]) => only.clone(),
            _ => {
                let message = format!("\"{reference}\" does not name a target of run {}", run.id);
                return Err(Failure::new(Code::UNKNOWN_NAME, message).with_hint(format!("targets: {}", targets.join(", "))));
            }
        };
        let mut cases = runs::cases(store.db.as_ref(), &run.id)?;
        cases.retain(|case| case.target == target);
        let scored = cases.iter().find(|case| case.error.is_none());
        let metrics = scored.and_then(|case| case.scores.as_object()).map(|all| all.keys().cloned().collect()).unwrap_or_default();
        Ok(Side { name: format!("{}/{target}", run.id), metrics, cases })
    }
}
