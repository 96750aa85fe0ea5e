//! `refit data …`: a file for each group of verbs.

mod check;
mod curate;
mod export;
mod import;
mod review;
mod split;
mod versions;

use super::Context;
use crate::types::Failure;
use clap::Subcommand;
use std::process::ExitCode;

const EXAMPLES: &str = "\
A dataset is a set of samples: {\"id\": …, \"input\": {…}, \"target\": …, \"metadata\": {…}}.
A version is named by its content; importing the same file again changes nothing.

Examples:
  refit data import evals/data/support-intake.jsonl
  refit data import train.csv --input text --target category --name banking
  refit data split support-intake --by intent --train 260 --validation 60 --test 130
  refit data check support-intake
  refit data diff support-intake@1 support-intake@2
  refit data export support-intake --format openai-chat > train.jsonl";

/// Arguments of `refit data`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Read files into the store; a broken record is named and nothing is stored
    Import(import::Args),
    /// Report duplicates, leakage, balance, lengths, languages, personal data, outliers, labels that look wrong
    Check(check::Args),
    /// Propose samples from the request log for review
    Curate(curate::Args),
    /// Review what was proposed, and make a version of it
    Review(review::Args),
    /// Divide into train, validation and test
    Split(split::Args),
    /// List datasets
    List(versions::ListArgs),
    /// List the versions of a dataset, and where each came from
    Log(versions::LogArgs),
    /// Compare two versions
    Diff(versions::DiffArgs),
    /// Print samples as JSON lines
    Show(versions::ShowArgs),
    /// Write samples in the shape that something else takes
    Export(export::Args),
}

/// Runs the verb.
///
/// # Errors
/// What the verb says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.verb {
        Verb::Import(args) => import::run(args, context)?,
        Verb::Check(args) => return check::run(args, context),
        Verb::Curate(args) => curate::run(args, context)?,
        Verb::Review(args) => review::run(args, context)?,
        Verb::Split(args) => split::run(args, context)?,
        Verb::List(args) => versions::list(&args, context)?,
        Verb::Log(args) => versions::log(&args, context)?,
        Verb::Diff(args) => versions::diff(&args, context)?,
        Verb::Show(args) => versions::show(&args, context)?,
        Verb::Export(args) => export::run(args, context)?,
    }
    Ok(ExitCode::SUCCESS)
}
