//! The command line: one file per verb, this registry, and the one place where errors are printed. A verb returns its exit code:
//! 0 done, 1 a gate was missed, 2 failed. Data goes to stdout, everything else to stderr ([`output`]).

pub mod audit;
pub mod completions;
pub mod config;
pub mod data;
#[cfg(feature = "local")]
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod job_worker;
pub mod key;
pub mod limits;
pub mod logs;
pub mod model;
pub mod output;
pub mod price;
pub mod project;
pub mod prompt;
pub mod release;
pub mod route;
pub mod serve;
#[cfg(feature = "local")]
pub mod tune;
pub mod usage;

use crate::app::App;
use crate::config::{Config, Live, env};
use crate::store::Store;
use crate::types::{Code, Failure};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a missed gate.
pub const GATE_MISSED: u8 = 1;
/// The configuration file, where none is named.
const CONFIG_FILE: &str = "refit.toml";
/// Exit code of a failure.
pub const FAILED: u8 = 2;

const AFTER_HELP: &str = "\
Start here:
  refit demo                                  the whole loop on a small local model
  refit doctor                                what is missing, and how to get it
  refit COMMAND --help                        what a verb does, with an example";

/// Take a prebuilt model to something that serves your application well: validate, engineer prompts, tune, release, serve.
#[derive(Parser)]
#[command(name = "refit", version, after_help = AFTER_HELP, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every verb.
#[derive(clap::Args)]
struct Global {
    /// Where the database, models, adapters and logs are kept [default: $REFIT_DATA_DIR, else ./.refit]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    data_dir: Option<PathBuf>,
    /// Configuration file [default: $REFIT_CONFIG, else ./refit.toml where there is one]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
}

/// The registry of verbs: one variant and one line in `dispatch` each.
#[derive(Subcommand)]
enum Command {
    /// The whole loop on a small local model: pull, evaluate, prompt, train, test, release, serve
    #[cfg(feature = "local")]
    Demo(demo::Args),
    /// Serve the OpenAI-compatible gateway
    Serve(serve::Args),
    /// Make, list, limit, rotate and revoke API keys
    Key(key::Args),
    /// Check the configuration file, show what it comes to
    Config(config::Args),
    /// Set and show the limits of projects (tenants)
    Project(project::Args),
    /// Show what was used, and what it cost
    Usage(usage::Args),
    /// List and show prices of models
    Price(price::Args),
    /// Show, export and prune the request log
    Logs(logs::Args),
    /// Check and list the audit chain
    Audit(audit::Args),
    /// Pull, list, show, verify and remove prebuilt models
    Model(model::Args),
    /// Make, list, show, promote and roll back releases
    Release(release::Args),
    /// Make, list and show routes
    Route(route::Args),
    /// Publish, render, compare and label prompts
    Prompt(prompt::Args),
    /// Import, check and split datasets
    Data(data::Args),
    /// Fit an adapter on a local model with your own examples
    #[cfg(feature = "local")]
    Tune(tune::Args),
    /// Run one queued job (started by other verbs)
    #[command(hide = true)]
    JobWorker(job_worker::Args),
    /// Say what is missing, and how to get it
    Doctor(doctor::Args),
    /// Run suites, resume, show and compare runs
    Eval(eval::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

fn dispatch(command: Command, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        #[cfg(feature = "local")]
        Command::Demo(args) => demo::run(args, context),
        Command::Serve(args) => serve::run(args, context),
        Command::Key(args) => key::run(args, context),
        Command::Config(args) => config::run(args, context),
        Command::Project(args) => project::run(args, context),
        Command::Usage(args) => usage::run(args, context),
        Command::Price(args) => price::run(args, context),
        Command::Logs(args) => logs::run(args, context),
        Command::Audit(args) => audit::run(args, context),
        Command::Model(args) => model::run(args, context),
        Command::Release(args) => release::run(args, context),
        Command::Route(args) => route::run(args, context),
        Command::Prompt(args) => prompt::run(args, context),
        Command::Data(args) => data::run(args, context),
        #[cfg(feature = "local")]
        Command::Tune(args) => tune::run(args, context),
        Command::JobWorker(args) => job_worker::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Eval(args) => eval::run(args, context),
        Command::Completions(args) => completions::run(args, context),
    }
}

/// What every verb may use.
pub struct Context {
    /// Data directory: `--data-dir`, else `$REFIT_DATA_DIR`, else `./.refit`.
    pub data_dir: PathBuf,
    /// Configuration file: `--config`, else `$REFIT_CONFIG`, else `./refit.toml` when it is there, else none.
    pub config_path: Option<PathBuf>,
}

impl Context {
    fn new(global: Global) -> Self {
        let data_dir = global.data_dir.or_else(|| env::path(env::DATA_DIR)).unwrap_or_else(|| ".refit".into());
        let default = || Some(PathBuf::from(CONFIG_FILE)).filter(|path| path.is_file());
        Context { data_dir, config_path: global.config.or_else(|| env::path(env::CONFIG)).or_else(default) }
    }

    /// Opens the store, creating and migrating it where needed.
    ///
    /// # Errors
    /// What [`Store::open`] says.
    pub fn open_store(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.data_dir)?)
    }

    /// The checked configuration; the defaults when there is no file.
    ///
    /// # Errors
    /// Every problem of the file at once.
    pub fn config(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.config_path.as_deref())?)
    }

    /// Every long-lived part, on this data directory and configuration.
    ///
    /// # Errors
    /// What the configuration or [`App::open`] says.
    pub fn app(&self) -> Result<App, Failure> {
        self.app_with(|_| ())
    }

    /// As [`Context::app`], with what flags change of the configuration.
    ///
    /// # Errors
    /// As [`Context::app`].
    pub fn app_with(&self, change: impl FnOnce(&mut Config)) -> Result<App, Failure> {
        let mut config = self.config()?;
        change(&mut config);
        App::open(config, &self.data_dir)
    }

    /// As [`Context::app`], with the configuration file to be looked at again: `refit.toml` also where it is not there yet.
    ///
    /// # Errors
    /// As [`Context::app`].
    pub fn live_app(&self) -> Result<App, Failure> {
        let (mut live, config) = Live::open(self.config_path.clone())?;
        live.watch(Some(self.config_path.clone().unwrap_or_else(|| PathBuf::from(CONFIG_FILE))));
        App::open_with(live, config, &self.data_dir)
    }

    /// A runtime for verbs that wait on the network.
    ///
    /// # Errors
    /// [`Code::INTERNAL`] when the system gives no threads.
    pub fn runtime(&self) -> Result<tokio::runtime::Runtime, Failure> {
        let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        built.map_err(|error| Failure::new(Code::INTERNAL, format!("cannot start the async runtime: {error}")))
    }

    /// Who acts, for audit rows and authorship: `cli:<user>`.
    pub fn actor(&self) -> String {
        format!("cli:{}", env::text(env::USER).unwrap_or_else(|| "unknown".into()))
    }
}

/// Parses the arguments, runs the verb and prints its error, if any.
pub fn main() -> ExitCode {
    start_logging();
    let Cli { global, command } = Cli::parse();
    match dispatch(command, &Context::new(global)) {
        Ok(code) => code,
        Err(failure) => {
            print_failure(&failure);
            ExitCode::from(if failure.code() == Code::GATE_REFUSED { GATE_MISSED } else { FAILED })
        }
    }
}

/// The whole command tree, for completions and documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

fn print_failure(failure: &Failure) {
    // Nothing is left to do when stderr is gone.
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {failure}");
    if let Some(hint) = failure.hint() {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

fn start_logging() {
    let filter = env::text(env::LOG).unwrap_or_else(|| "warn".into());
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "warn".into());
    // Colours are for people: a file or a pipe gets plain lines.
    let colours = std::io::stderr().is_terminal() && env::text(env::NO_COLOR).is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_with_an_example() {
        for verb in command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(verb.get_about().is_some(), "{} has no about", verb.get_name());
            assert!(verb.get_after_help().is_some(), "{} has no example in after_help", verb.get_name());
        }
    }
}
