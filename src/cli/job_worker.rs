//! `refit job-worker ID`: the worker process of one queued job. Hidden: verbs that start long work start it.

use super::Context;
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
    worker::work(&context.open_store()?, &args.job)?;
    Ok(ExitCode::SUCCESS)
}
