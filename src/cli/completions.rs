//! `refit completions SHELL`: the completion script of a shell, on stdout.

use super::{Context, command, output};
use crate::types::Failure;
use std::process::ExitCode;

/// Arguments of `refit completions`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  refit completions bash > ~/.local/share/bash-completion/completions/refit")]
pub struct Args {
    /// Shell to write for
    shell: clap_complete::Shell,
}

/// Prints the script.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: Args, _context: &Context) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "refit", &mut script);
    output::bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
