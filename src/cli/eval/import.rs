//! `refit eval import`: a configuration of promptfoo as a suite, its samples and its prompts.

use crate::cli::output;
use crate::evals::Suite;
use crate::evals::promptfoo::{Imported, import as read};
use crate::types::ids::is_slug;
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `refit eval import`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// promptfooconfig.yaml
    file: PathBuf,
    /// Folder that the suite, its samples and its prompts are written to
    #[arg(long, value_name = "DIR", default_value = "evals")]
    out: PathBuf,
    /// Name of the suite [default: the folder's that the configuration lies in]
    #[arg(long)]
    name: Option<String>,
    /// Model for rubrics whose own cannot be called here
    #[arg(long, value_name = "PROVIDER/MODEL")]
    judge: Option<String>,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
    /// Print what was carried over and what was not as JSON
    #[arg(long)]
    json: bool,
}

/// Imports a configuration; what was not carried over is told.
pub(super) fn import(args: &Args) -> Result<ExitCode, Failure> {
    let name = match &args.name {
        Some(name) if is_slug(name) => name.clone(),
        Some(name) => {
            return Err(Failure::on(Code::INVALID_VALUE, "--name", format!("\"{name}\" is no plain name (a-z, 0-9, dots, dashes)")));
        }
        None => folder_of(&args.file),
    };
    let imported = read(&args.file, &name, args.judge.clone())?;
    // What is written can be run.
    Suite::parse(&imported.suite, &format!("{name}.yaml"), &args.out)?;
    let mut files = vec![(format!("{name}.yaml"), &imported.suite), (format!("{name}.jsonl"), &imported.samples)];
    files.extend(imported.prompts.iter().map(|(file, source)| (file.clone(), source)));
    let there = files.iter().map(|(file, _)| args.out.join(file)).find(|path| path.exists());
    if let Some(there) = there.filter(|_| !args.force) {
        let failure = Failure::on(Code::CONFLICT, "--out", format!("{} is there already", there.display()));
        return Err(failure.with_hint("choose another --name or --out, or write over it with --force"));
    }
    let unwritable =
        |path: &Path, error: std::io::Error| Failure::on(Code::STORAGE, "--out", format!("cannot write {}: {error}", path.display()));
    std::fs::create_dir_all(&args.out).map_err(|error| unwritable(&args.out, error))?;
    for (file, text) in &files {
        let path = args.out.join(file);
        std::fs::write(&path, text.as_bytes()).map_err(|error| unwritable(&path, error))?;
    }
    tell(args, &imported, files.iter().map(|(file, _)| args.out.join(file).display().to_string()).collect())?;
    Ok(ExitCode::SUCCESS)
}

fn tell(args: &Args, imported: &Imported, files: Vec<String>) -> Result<(), Failure> {
    if args.json {
        return output::json(&json!({"name": imported.name, "files": files, "carried": imported.carried, "left_out": imported.left_out}));
    }
    let carried = imported.carried;
    output::line(format!(
        "{} prompts, {} models, {} samples with {} assertions:",
        carried.prompts, carried.models, carried.samples, carried.assertions
    ))?;
    files.iter().try_for_each(|file| output::line(format!("  {file}")))?;
    if !imported.left_out.is_empty() {
        output::line(format!("{} things were not carried over:", imported.left_out.len()))?;
        imported.left_out.iter().try_for_each(|left| output::line(format!("  {}: {}", left.place, left.why)))?;
    }
    output::note(format!("try it: refit eval run {}", args.out.join(format!("{}.yaml", imported.name)).display()));
    Ok(())
}

/// The name of the folder that a file lies in, as a plain name.
fn folder_of(file: &Path) -> String {
    let folder = file.canonicalize().ok().and_then(|file| file.parent()?.file_name().map(|name| name.to_string_lossy().to_lowercase()));
    folder.filter(|name| is_slug(name)).unwrap_or_else(|| "imported".into())
}
