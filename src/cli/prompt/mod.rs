//! `refit prompt …`: publish, list, show, render, compare, check and label prompts.

mod change;
mod compare;
mod lint;
mod optimize;
mod read;
mod sync;

use super::{Context, output};
use crate::prompts::Library;
use crate::prompts::front::SCHEMA;
use crate::types::{Code, Failure};
use change::Changing;
use clap::Subcommand;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
A prompt is a file with YAML front matter and a Handlebars body. Published, it becomes an immutable numbered version.
References: greet (newest), greet@3, greet@production, sha256:…

Examples:
  refit prompt publish prompts/greet.prompt -m 'shorter'
  refit prompt render greet --var name=Ada
  refit prompt promote greet@2 production";

/// Arguments of `refit prompt`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List prompts with their newest version and labels
    #[command(after_help = "Example:\n  refit prompt list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print a version's source
    #[command(after_help = "Example:\n  refit prompt show greet@production")]
    Show {
        /// Name, name@version, name@label or digest
        reference: String,
        /// Print the version, its variables and its schemas as JSON
        #[arg(long)]
        json: bool,
    },
    /// Fill in variables and print the messages
    #[command(after_help = "Example:\n  refit prompt render prompts/greet.prompt --var name=Ada --var 'items:=[1,2]'")]
    Render {
        /// Reference, or path of a .prompt file
        prompt: String,
        #[command(flatten)]
        variables: Variables,
        /// Print messages, config and output schema as JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare two versions or files: as text, by what callers notice, and rendered on the same inputs
    #[command(
        after_help = "Examples:\n  refit prompt diff greet@1 greet\n  refit prompt diff greet prompts/greet.prompt --var name=Ada\n  \
        refit prompt diff greet@production greet --dataset greetings --limit 3"
    )]
    Diff(compare::Args),
    /// Say what is wrong with prompts, and what to do about it
    #[command(
        after_help = "Exit code 1: there is an error.\n\nExamples:\n  refit prompt lint prompts\n  refit prompt lint greet@production --json"
    )]
    Lint(lint::Args),
    /// Let a model propose better templates, and keep one only if a suite shows that it is better
    #[command(after_help = optimize::EXAMPLES)]
    Optimize(optimize::Args),
    /// Store a file as the next version; the same content is the same version
    #[command(after_help = "Refused when somebody published another version since the file was edited.\n\n\
        Example:\n  refit prompt publish prompts/greet.prompt -m 'friendlier'")]
    Publish(change::Publish),
    /// Bring a folder of files and the library to the same content
    #[command(after_help = "What only one side changed is brought to the other; where both did nothing is written (exit code 1).\n\n\
        Examples:\n  refit prompt sync prompts --check\n  refit prompt sync prompts -m 'as merged'")]
    Sync(sync::Args),
    /// Point a label at a version
    #[command(
        after_help = "A protected label ([prompts] in refit.toml) needs a run of the prompt's suite that passes its gate. Exit code 1: refused.\n\n\
        Example:\n  refit prompt promote greet@2 production -m 'better on the test split'"
    )]
    Promote(change::Promote),
    /// Point a label back to where it stood before
    #[command(after_help = "Example:\n  refit prompt rollback greet production -m 'complaints'")]
    Rollback(change::Rollback),
    /// Take a label away; whoever asks for it is told that it does not exist
    #[command(after_help = "Example:\n  refit prompt unlabel greet staging")]
    Unlabel(change::Unlabel),
    /// Print the JSON Schema of the front matter, for editors
    #[command(after_help = "Example:\n  refit prompt schema > prompt.schema.json")]
    Schema,
    /// Versions of a prompt and every move of its labels
    #[command(after_help = "Example:\n  refit prompt history greet")]
    History {
        /// Name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Variables on the command line.
#[derive(clap::Args)]
pub struct Variables {
    /// A variable: name=text, or name:=JSON
    #[arg(long = "var", value_name = "NAME=VALUE")]
    var: Vec<String>,
    /// A JSON file with an object of variables
    #[arg(long, value_name = "FILE")]
    vars: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
/// What `prompts` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let library = || Ok::<_, Failure>(Library::new(&context.open_store()?));
    match args.verb {
        Verb::Schema => output::line(SCHEMA.trim_end()),
        Verb::List { json } => read::list(&library()?, json),
        Verb::Show { reference, json } => read::show(&library()?, &reference, json),
        Verb::Render { prompt, variables, json } => read::render(context, &prompt, &variables, json),
        Verb::History { name, json } => read::history(&library()?, &name, json),
        Verb::Diff(args) => compare::run(&args, context),
        Verb::Lint(args) => return lint::run(&args, context),
        Verb::Optimize(args) => return optimize::run(args, context),
        Verb::Publish(args) => Changing::open(context)?.publish(&args),
        Verb::Promote(args) => Changing::open(context)?.promote(&args),
        Verb::Rollback(args) => Changing::open(context)?.rollback(&args),
        Verb::Unlabel(args) => Changing::open(context)?.unlabel(&args),
        Verb::Sync(args) => return sync::run(&args, context),
    }?;
    Ok(ExitCode::SUCCESS)
}

impl Variables {
    /// The variables by name; those on the command line win over the file's.
    fn read(&self) -> Result<Map<String, Value>, Failure> {
        let mut variables = Map::new();
        if let Some(file) = &self.vars {
            let text = text_of(file)?;
            variables = serde_json::from_str(&text).map_err(|error| {
                Failure::on(Code::INVALID_FILE, "--vars", format!("{}: not an object of variables: {error}", file.display()))
            })?;
        }
        for one in &self.var {
            let fault = |why: String| Failure::on(Code::INVALID_VALUE, "--var", format!("--var {one}: {why}"));
            let (name, text) = one.split_once('=').ok_or_else(|| fault("expected NAME=VALUE or NAME:=JSON".into()))?;
            let (name, value) = match name.strip_suffix(':') {
                Some(name) => (name, serde_json::from_str(text).map_err(|error| fault(format!("not JSON: {error}")))?),
                None => (name, Value::from(text)),
            };
            variables.insert(name.to_string(), value);
        }
        Ok(variables)
    }
}

fn of_file(file: &Path) -> Result<(String, String), Failure> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((stem, text_of(file)?))
}

fn text_of(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| Failure::new(Code::INVALID_FILE, format!("cannot read {}: {error}", file.display())))
}
