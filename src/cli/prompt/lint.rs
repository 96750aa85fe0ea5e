//! `refit prompt lint`: what is worth saying about prompts before they are used, with line, column and way out.

use super::of_file;
use crate::cli::{Context, GATE_MISSED, output};
use crate::prompts::lint::{self, Change, Finding, Severity};
use crate::prompts::sync::Folder;
use crate::prompts::{Library, Prompt, walk};
use crate::types::Failure;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of text that a token usually has, where nobody can count.
const USUAL_BYTES: usize = 4;

/// Arguments of `refit prompt lint`.
#[derive(clap::Args)]
pub struct Args {
    /// .prompt files, folders, or references into the library
    #[arg(required = true)]
    prompts: Vec<String>,
    /// Models to count the prompt's tokens for [default: the one that it names]
    #[arg(long = "model", value_name = "PROVIDER/MODEL")]
    models: Vec<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// What there is to say of one prompt.
#[derive(Serialize)]
struct Report {
    prompt: String,
    /// File, or reference.
    place: String,
    findings: Vec<Finding>,
    /// Tokens of the text, without what variables add.
    tokens: Vec<Tokens>,
    /// Version that it is compared with.
    published: Option<i64>,
    changes: Vec<Change>,
}

/// How long a prompt is for a model.
#[derive(Serialize)]
struct Tokens {
    model: String,
    tokens: usize,
    /// Whether it is a guess from the number of bytes.
    estimate: bool,
}

/// Checks prompts; exit code 1 where one has an error.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let mut reports = Vec::new();
    for one in &args.prompts {
        for (place, name, source) in sources(context, one)? {
            reports.push(report(args, context, (place, name), &source)?);
        }
    }
    if args.json {
        output::json(&reports)?;
    } else {
        reports.iter().try_for_each(print)?;
    }
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    let bad = reports.iter().any(|report| report.findings.iter().any(is_error));
    Ok(if bad { ExitCode::from(GATE_MISSED) } else { ExitCode::SUCCESS })
}

/// Place, name and source of what an argument names.
fn sources(context: &Context, one: &str) -> Result<Vec<(String, String, String)>, Failure> {
    let path = Path::new(one);
    if path.is_dir() {
        let store = context.open_store()?;
        let files = Folder::open(&store, path)?.files()?;
        return files
            .into_iter()
            .map(|file| sourced(&file, &path.join(file.strip_prefix(path.canonicalize().unwrap_or_default()).unwrap_or(&file))))
            .collect();
    }
    if one.ends_with(".prompt") {
        return Ok(vec![sourced(path, path)?]);
    }
    let version = Library::new(&context.open_store()?).get(one)?;
    Ok(vec![(format!("{}@{}", version.prompt, version.version), version.prompt, version.source)])
}

fn sourced(file: &Path, shown: &Path) -> Result<(String, String, String), Failure> {
    let (name, source) = of_file(file)?;
    Ok((PathBuf::from(shown).display().to_string(), name, source))
}

fn report(args: &Args, context: &Context, (place, name): (String, String), source: &str) -> Result<Report, Failure> {
    let findings = lint::lint(&name, source);
    let mut report = Report { prompt: name, place, findings, tokens: Vec::new(), published: None, changes: Vec::new() };
    let Ok(prompt) = Prompt::parse(&report.prompt, source) else { return Ok(report) };
    let models = if args.models.is_empty() { prompt.front.model.iter().cloned().collect() } else { args.models.clone() };
    report.tokens = models.into_iter().map(|model| counted(context, model, source)).collect();
    let library = Library::new(&context.open_store()?);
    if let Some(newest) = library.newest(&report.prompt)? {
        report.published = Some(newest.version);
        report.changes = lint::changes(library.compile(&newest)?.as_ref(), &prompt);
    }
    Ok(report)
}

/// The tokens of a prompt's text: counted where the model is here, a guess from its bytes where it is not.
fn counted(context: &Context, model: String, source: &str) -> Tokens {
    let text = walk::halves(source).1.trim();
    let counter = model.starts_with("local/").then(|| context.app().ok().zip(context.runtime().ok())).flatten();
    let counter = counter.and_then(|(app, runtime)| runtime.block_on(app.providers().counter(&model)).ok());
    match counter {
        Some(counter) => Tokens { tokens: counter.count(text), model, estimate: false },
        None => Tokens { tokens: text.len().div_ceil(USUAL_BYTES), model, estimate: true },
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    for finding in &report.findings {
        let Finding { line, column, severity, rule, message, way_out } = finding;
        output::line(format!("{}:{line}:{column}: {}: {message} [{rule}]\n    {way_out}", report.place, severity.word()))?;
    }
    for change in &report.changes {
        let mark = if change.breaking { "may break callers" } else { "change" };
        output::line(format!("{}: {mark}: {} (against version {})", report.place, change.message, report.published.unwrap_or_default()))?;
    }
    for Tokens { model, tokens, estimate } in &report.tokens {
        let how = if *estimate { "about, by its length; no tokenizer of this model is here" } else { "counted" };
        output::line(format!("{}: {tokens} tokens for {model} ({how}), variables not included", report.place))?;
    }
    if report.findings.iter().all(|finding| finding.severity == Severity::Note) {
        output::note(format!("{}: nothing is wrong", report.place));
    }
    Ok(())
}
