//! `refit job-worker ID`: the worker process of one queued job. Hidden: verbs that start long work start it.

use super::{Context, output};
use crate::jobs::worker;
use crate::types::Failure;
use std::process::ExitCode;

/// Arguments of `refit job-worker`.
#[derive(clap::Args)]
pub struct Args {
    /// Id of a queued job
    job: String,
}

/// Runs the verb.
///
/// # Errors
/// The work's own error, after it was written to the job's row.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    if !worker::work(&context.open_store()?, &args.job)? {
        // Whoever asked for this worker has changed their mind since: paused, cancelled, or started another one.
        output::note(format!("job {} waits for no worker any more", args.job));
    }
    Ok(ExitCode::SUCCESS)
}
