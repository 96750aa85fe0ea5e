//! `refit eval score`: answers that are stored, in a run or in a file, are scored without asking any target.

use super::write::Output;
use crate::cli::{Context, GATE_MISSED, output};
use crate::evals::score::Scoring;
use crate::evals::score::again::again;
use crate::evals::score::outputs::{Fields, name_of, outputs, suite_of};
use crate::evals::show::Shown;
use crate::evals::{Report, Runner, Suite};
use crate::store::Store;
use crate::types::{Code, Failure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "\
No target is asked and nothing is paid for, but for scorers that ask a model themselves (llm_judge, similarity). The result is a run of
its own, which proves no release.

Of a file, each line is a JSON object; fields are named by their names or by JSON pointers.

Examples:
  refit eval score latest --suite evals/support-intake.yaml
  refit eval score run_0193 --scorer rouge --scorer 'includes: {any: [refund, return]}'
  refit eval score --outputs answers.jsonl --output answer --target label --scorer classification
  refit eval score --outputs two.jsonl --output a=/a/text --output b=/b/text --target /truth --scorer 'numeric: {marker: \"####\"}'";

/// Arguments of `refit eval score`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Run id, or `latest`
    #[arg(required_unless_present = "outputs", conflicts_with = "outputs")]
    run: Option<String>,
    /// File of answers, JSON lines
    #[arg(long, value_name = "FILE")]
    outputs: Option<PathBuf>,
    /// Field with the answer (`output` without it); NAME=FIELD for those of several targets, may be repeated
    #[arg(long = "output", value_name = "[NAME=]FIELD", requires = "outputs")]
    output_fields: Vec<String>,
    /// Field with what the answer should be; without it, the samples are those of the suite's dataset
    #[arg(long = "target", value_name = "FIELD", requires = "outputs")]
    target_field: Option<String>,
    /// Field with the sample's id; without it, lines are the samples in their order
    #[arg(long = "id", value_name = "FIELD", requires = "outputs")]
    id_field: Option<String>,
    /// Field that is a variable of the sample; may be repeated
    #[arg(long = "input", value_name = "[NAME=]FIELD", requires = "target_field")]
    inputs: Vec<String>,
    /// Field with what else is known about the sample, such as a person's label; may be repeated
    #[arg(long = "metadata", value_name = "[NAME=]FIELD", requires = "target_field")]
    metadata: Vec<String>,
    /// Suite whose scorers and gate are used
    #[arg(long, conflicts_with = "scorers")]
    suite: Option<PathBuf>,
    /// Scorer as a suite has it, such as `rouge` or `numeric: {tolerance: 0.01}`; may be repeated
    #[arg(long = "scorer", value_name = "SCORER")]
    scorers: Vec<String>,
    /// Name of the run's suite, with --scorer
    #[arg(long, requires = "scorers")]
    name: Option<String>,
    /// Cases scored at the same time
    #[arg(long)]
    concurrency: Option<usize>,
    /// Let scorers run programs (`command`, `wasm`)
    #[arg(long)]
    allow_commands: bool,
    #[command(flatten)]
    shown: Output,
}

/// Scores what is stored.
pub(super) fn score(context: &Context, args: &Args) -> Result<ExitCode, Failure> {
    args.shown.check()?;
    let app = context.app_with(|config| config.evals.allow_commands |= args.allow_commands)?;
    let mut scoring = match (&args.run, &args.outputs) {
        (Some(run), _) => args.run(&app.store, run)?,
        (None, Some(file)) => args.file(&app.store, file)?,
        (None, None) => return Err(Failure::new(Code::MISSING_FIELD, "name a run, or a file with --outputs")),
    };
    let concurrency = &mut scoring.plan.suite.concurrency;
    *concurrency = args.concurrency.unwrap_or(*concurrency).clamp(1, 1024);
    let runner = Runner { store: app.store.clone(), respond: app.inference.clone(), progress: output::watched("score") };
    let report = context.runtime()?.block_on(runner.score(scoring))?;
    args.shown.run(Shown { report: &report, store: &app.store })?;
    verdict(&report)
}

impl Args {
    /// A stored run, with new scorers where some are given.
    fn run(&self, store: &Store, run: &str) -> Result<Scoring, Failure> {
        let record = crate::store::runs::get(store.db.as_ref(), run)?;
        let targets: Vec<_> = crate::store::runs::targets(store.db.as_ref(), &record.id)?.into_iter().map(|found| found.target).collect();
        let name = self.name.clone().unwrap_or_else(|| record.suite.clone());
        again(store, &record.id, self.suite(&name, &targets)?)
    }

    /// A file of answers.
    fn file(&self, store: &Store, file: &Path) -> Result<Scoring, Failure> {
        let mut outputs_of: Vec<_> = self.output_fields.iter().map(|given| named(given, "outputs")).collect();
        if outputs_of.is_empty() {
            outputs_of.push(("outputs".into(), "output".into()));
        }
        let targets: Vec<_> = outputs_of.iter().map(|(name, _)| name.clone()).collect();
        let name = self.name.clone().map_or_else(|| name_of(file), Ok)?;
        let Some(suite) = self.suite(&name, &targets)? else {
            let failure = Failure::new(Code::MISSING_FIELD, "a file has no scorers of its own");
            return Err(failure.with_hint("give some: --suite FILE, or --scorer exact_match"));
        };
        // Scorers alone have no dataset: the file brings the samples.
        let target = self.target_field.clone().or_else(|| self.suite.is_none().then(|| "target".into()));
        let each = |given: &[String]| given.iter().map(|given| named(given, last_part(given))).collect();
        let (id, inputs, metadata) = (self.id_field.clone(), each(&self.inputs), each(&self.metadata));
        outputs(store, file, Fields { outputs: outputs_of, target, id, inputs, metadata }, suite)
    }

    /// The suite of the flags; none where they name neither suite nor scorers.
    fn suite(&self, name: &str, targets: &[String]) -> Result<Option<Suite>, Failure> {
        match &self.suite {
            Some(file) => Ok(Some(Suite::open(file)?)),
            None if self.scorers.is_empty() => Ok(None),
            None => {
                let specs = self.scorers.iter().map(|text| spec(text)).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(suite_of(name, &specs, targets)?))
            }
        }
    }
}

/// A scorer as a suite has it.
fn spec(text: &str) -> Result<Value, Failure> {
    serde_norway::from_str(text).map_err(|error| Failure::on(Code::INVALID_VALUE, "--scorer", format!("--scorer {text}: {error}")))
}

/// `NAME=FIELD`, or a field that has the name given here. A pointer may hold `=`.
fn named(given: &str, name: &str) -> (String, String) {
    match given.split_once('=') {
        Some((name, field)) if !name.starts_with('/') => (name.to_string(), field.to_string()),
        _ => (name.to_string(), given.to_string()),
    }
}

fn last_part(field: &str) -> &str {
    field.rsplit('/').next().unwrap_or(field)
}

fn verdict(report: &Report) -> Result<ExitCode, Failure> {
    if report.errors() > 0 {
        let message = format!("{} cases of run {} have no score", report.errors(), report.run);
        let hint = format!("`refit eval show {} --cases --missed` lists them with the reason", report.run);
        return Err(Failure::new(Code::UPSTREAM, message).with_hint(hint));
    }
    let passed = report.gate.as_ref().is_none_or(|gate| gate.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(GATE_MISSED) })
}
