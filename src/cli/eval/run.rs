//! `refit eval run` and `refit eval resume`.

use super::interruptions;
use super::write::Output;
use crate::cli::{Context, GATE_MISSED, output};
use crate::evals::prepare::Selection;
use crate::evals::show::Shown;
use crate::evals::{Bounds, Report, Runner, Suite, prepare, resume_within};
use crate::store::runs;
use crate::types::{Code, Failure};
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

/// Where a verb runs, and whether scorers may run programs there.
type Place<'a> = (&'a Context, bool);

/// Runs a suite.
pub(super) fn run((context, allow_commands): Place<'_>, suite: &Path, selection: &Selection, output: &Output) -> Result<ExitCode, Failure> {
    let suite = Suite::open(suite)?;
    measure((context, allow_commands), output, |runner| {
        let plan = prepare(&runner.store, suite, selection, &context.actor())?;
        Ok(async move { runner.run(plan, interruptions()).await })
    })
}

/// Goes on with a run.
pub(super) fn resume(place: Place<'_>, run: &str, bounds: Bounds, output: &Output) -> Result<ExitCode, Failure> {
    measure(place, output, |runner| Ok(async move { resume_within(&runner, run, bounds, interruptions()).await }))
}

/// Builds the runner, executes what `start` makes of it, shows the report and turns it into an exit code.
fn measure<F: Future<Output = Result<Report, Failure>>>(
    (context, allow_commands): Place<'_>,
    shown: &Output,
    start: impl FnOnce(Runner) -> Result<F, Failure>,
) -> Result<ExitCode, Failure> {
    shown.check()?;
    let app = context.app_with(|config| config.evals.allow_commands |= allow_commands)?;
    let runner = Runner { store: app.store.clone(), respond: app.inference.clone(), progress: output::watched("eval") };
    let report = context.runtime()?.block_on(start(runner)?)?;
    shown.run(Shown { report: &report, store: &app.store })?;
    verdict(&report)
}

fn verdict(report: &Report) -> Result<ExitCode, Failure> {
    let again = format!("refit eval resume {}", report.run);
    let ended = |code: Code, why: &str, hint: String| Err(Failure::new(code, format!("run {} {why}", report.run)).with_hint(hint));
    match report.status.as_str() {
        runs::CANCELLED => return ended(Code::CANCELLED, "was stopped", format!("go on with it: {again}")),
        runs::OUT_OF_MONEY => {
            let hint = format!("go on with more: {again} --max-cost DOLLARS; a lower max_tokens makes each call set less aside");
            return ended(Code::BUDGET, "ended because the next call could have cost more than is left of max_cost", hint);
        }
        runs::OUT_OF_TIME => {
            return ended(Code::CANCELLED, "ended because its time was over", format!("go on with it: {again} --max-time TIME"));
        }
        _ => {}
    }
    if report.errors() > 0 {
        let message = format!("{} cases of run {} ended in an error and have no answer", report.errors(), report.run);
        let hint = format!("`refit eval show {} --cases --missed` lists them, `{again}` asks them again", report.run);
        return Err(Failure::new(Code::UPSTREAM, message).with_hint(hint));
    }
    let passed = report.gate.as_ref().is_none_or(|gate| gate.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(GATE_MISSED) })
}
