//! `refit eval import` and `refit eval export`: promptfoo's configuration files.

use crate::cli::{Context, output};
use crate::evals::Suite;
use crate::evals::prepare::materials;
use crate::evals::promptfoo::{self, Left, Wish};
use crate::types::ids::is_slug;
use crate::types::{Code, Failure};
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Formats of other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// promptfooconfig.yaml
    Promptfoo,
}

/// Arguments of `refit eval import`.
#[derive(clap::Args)]
pub struct Import {
    /// promptfooconfig.yaml
    file: PathBuf,
    /// Folder that the suite, its dataset and its prompts are written to
    #[arg(long, default_value = "evals")]
    out: PathBuf,
    /// Name of the suite [default: that of the configuration's folder]
    #[arg(long)]
    name: Option<String>,
    /// Model that grades where an assertion names none
    #[arg(long, value_name = "PROVIDER/MODEL")]
    judge: Option<String>,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
    /// Exit code 1 where something does not carry over
    #[arg(long)]
    strict: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `refit eval export`.
#[derive(clap::Args)]
pub struct Export {
    /// Suite file
    suite: PathBuf,
    /// Format
    #[arg(long, value_enum, default_value = "promptfoo")]
    format: Format,
    /// File to write [default: stdout]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Exit code 1 where something does not carry over
    #[arg(long)]
    strict: bool,
}

/// Reads a configuration and writes a suite.
///
/// # Errors
/// What cannot be read, and [`Code::CONFLICT`] for files that are there; nothing is written then.
pub fn import(args: &Import) -> Result<ExitCode, Failure> {
    let folder = args.file.canonicalize().ok().and_then(|file| Some(file.parent()?.file_name()?.to_string_lossy().to_lowercase()));
    let own = folder.filter(|name| is_slug(name)).unwrap_or_else(|| "imported".into());
    let name = args.name.clone().unwrap_or(own);
    if !is_slug(&name) {
        let message = format!("--name: \"{name}\" is not 1 to 64 lower-case letters, digits, dots, dashes and underscores");
        return Err(Failure::on(Code::INVALID_VALUE, "--name", message));
    }
    let imported = promptfoo::import(&args.file, &Wish { name, judge: args.judge.clone() })?;
    if let Some((there, _)) = imported.files.iter().find(|(name, _)| !args.force && args.out.join(name).exists()) {
        let failure = Failure::new(Code::CONFLICT, format!("{} is there already", args.out.join(there).display()));
        return Err(failure.with_hint("give the suite another name with --name, or write over it with --force"));
    }
    std::fs::create_dir_all(&args.out).map_err(|error| unwritable(&args.out, &error))?;
    for (name, text) in &imported.files {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
    }
    let suite = args.out.join(&imported.files[0].0);
    if args.json {
        let files: Vec<_> = imported.files.iter().map(|(name, _)| args.out.join(name)).collect();
        output::json(
            &json!({"suite": suite, "files": files, "targets": imported.targets, "samples": imported.samples, "left": imported.left}),
        )?;
    } else {
        output::line(format!("{}: {} targets, {} samples", suite.display(), imported.targets, imported.samples))?;
        tell(&imported.left)?;
        output::line(format!("run it: refit eval run {}", suite.display()))?;
    }
    Ok(code(&imported.left, args.strict))
}

/// Writes a configuration from a suite.
///
/// # Errors
/// What cannot be read or written.
pub fn export(args: &Export, context: &Context) -> Result<ExitCode, Failure> {
    let Format::Promptfoo = args.format;
    let (suite, store) = (Suite::open(&args.suite)?, context.open_store()?);
    let (samples, prompts) = materials(&store, &suite)?;
    let exported = promptfoo::export(&suite, &samples, &prompts)?;
    match &args.out {
        Some(path) => std::fs::write(path, &exported.config).map_err(|error| unwritable(path, &error))?,
        None => output::bytes(exported.config.as_bytes())?,
    }
    if args.out.is_some() {
        tell(&exported.left)?;
    } else {
        exported.left.iter().for_each(|Left { place, why }| eprintln!("not carried over: {place}: {why}"));
    }
    Ok(code(&exported.left, args.strict))
}

fn tell(left: &[Left]) -> Result<(), Failure> {
    if left.is_empty() {
        return output::line("everything carried over");
    }
    output::line(format!("not carried over ({}):", left.len()))?;
    left.iter().try_for_each(|Left { place, why }| output::line(format!("  {place}: {why}")))
}

fn code(left: &[Left], strict: bool) -> ExitCode {
    if strict && !left.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::STORAGE, format!("cannot write {}: {error}", path.display()))
}
