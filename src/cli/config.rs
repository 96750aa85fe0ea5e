//! `refit config …`: the configuration file, checked as `refit serve` checks it, and what it comes to with the defaults.

use super::{Context, FAILED, output};
use crate::config::{Config, ConfigError, Files};
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit config check
  refit config check new.toml && mv new.toml refit.toml
  refit config show --json

A running `refit serve` looks at its file each second and at SIGHUP; GET /status says what is in force.";

/// Arguments of `refit config`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what is wrong with a file, all at once, or "ok"
    #[command(after_help = "Exit code 0 when the file can be used, 2 when it cannot.\n\nExample:\n  refit config check new.toml")]
    Check {
        /// The file [default: the one that `refit serve` would read]
        file: Option<PathBuf>,
        /// Print {"ok", "problems", "notes"}
        #[arg(long)]
        json: bool,
    },
    /// Print the effective configuration as TOML; of secrets, the names of their variables
    #[command(after_help = "Example:\n  refit config show > effective.toml")]
    Show {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// When there is no such file, or stdout cannot be written.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Check { file, json } => {
            let Some(path) = file.or_else(|| context.config_path.clone()) else {
                let failure = Failure::new(Code::INVALID_FILE, "there is no refit.toml here: the defaults hold");
                return Err(failure.with_hint("name a file: refit config check FILE"));
            };
            check(&path, json)
        }
        Verb::Show { json } => {
            let shown = context.config()?.shown();
            if json {
                output::json(&shown)?
            } else {
                output::line(shown.to_string().trim_end())?
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(path: &Path, json: bool) -> Result<ExitCode, Failure> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_path_buf(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let (problems, notes) = match Config::with_files_noting(&Files::of(text, path), path) {
        Ok((_, notes)) => (Vec::new(), notes),
        Err(ConfigError::Invalid { problems, .. }) => (problems, Vec::new()),
        Err(error) => return Err(error.into()),
    };
    if json {
        output::json(&json!({"ok": problems.is_empty(), "problems": problems, "notes": notes}))?;
    } else {
        notes.iter().for_each(|note| output::note(format!("note: {note}")));
        problems.iter().try_for_each(|problem| output::line(problem.to_string()))?;
        if problems.is_empty() {
            output::line("ok")?;
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
