//! `refit eval list` and `refit eval show`.

use super::write::Output;
use crate::cli::output;
use crate::evals::Report;
use crate::evals::show::Shown;
use crate::evals::show::json::plain;
use crate::store::Store;
use crate::store::cases::each_case;
use crate::store::runs::{self, RunRecord};
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use serde_json::json;
use std::process::ExitCode;

/// Lists runs.
pub(super) fn list(store: &Store, suite: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
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

/// Shows a run's report, or its cases.
pub(super) fn show(store: &Store, run: &str, cases: Option<bool>, shown: &Output) -> Result<ExitCode, Failure> {
    let run = runs::get(store.db.as_ref(), run)?;
    let report = serde_json::from_value::<Report>(run.summary.clone()).ok();
    if let Some(missed) = cases {
        self::cases(store, &run.id, (report.as_ref(), missed), shown.is_json())?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(report) = report else {
        let message = format!("run {} has no report yet: it is {}", run.id, run.status);
        return Err(Failure::new(Code::CONFLICT, message).with_hint(format!("go on with it: refit eval resume {}", run.id)));
    };
    shown.run(Shown { report: &report, store })?;
    Ok(ExitCode::SUCCESS)
}

/// The cases as JSON lines, or as one JSON array, page by page.
fn cases(store: &Store, run: &str, (report, missed): (Option<&Report>, bool), array: bool) -> Result<(), Failure> {
    let mut count = 0usize;
    if array {
        output::bytes(b"[")?;
    }
    each_case::<Failure>(store.db.as_ref(), run, &mut |case| {
        // Without a report nobody knows yet what passes.
        let is_missed = case.error.is_some() || report.is_some_and(|report| report.verdict(&case) == Some(false));
        if missed && !is_missed {
            return Ok(());
        }
        let before = if array && count > 0 { "," } else { "" };
        let after = if array { "" } else { "\n" };
        count += 1;
        output::bytes(format!("{before}{}{after}", plain(json!(case).to_string())).as_bytes())
    })?;
    if array { output::bytes(b"]\n") } else { Ok(()) }
}
