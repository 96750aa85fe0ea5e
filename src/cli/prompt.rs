//! `refit prompt …`: publish, list, show, render, compare and label prompts.

use super::{Context, output};
use crate::prompts::front::SCHEMA;
use crate::prompts::library::Note;
use crate::prompts::{Input, Library, Prompt};
use crate::store::prompts::{LabelMove, PromptVersion};
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

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
        /// A variable: name=text, or name:=JSON
        #[arg(long = "var", value_name = "NAME=VALUE")]
        variables: Vec<String>,
        /// A JSON file with an object of variables
        #[arg(long, value_name = "FILE")]
        vars: Option<PathBuf>,
        /// Print messages, config and output schema as JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare two versions as text
    #[command(after_help = "Example:\n  refit prompt diff greet@1 greet")]
    Diff {
        /// Older version
        old: String,
        /// Newer version
        new: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Store a file as the next version; the same content is the same version
    #[command(after_help = "Example:\n  refit prompt publish prompts/greet.prompt -m 'friendlier'")]
    Publish {
        /// A .prompt file
        file: PathBuf,
        /// Name [default: the file's own name]
        #[arg(long)]
        name: Option<String>,
        /// Why
        #[arg(long, short, default_value = "")]
        message: String,
        /// Print the version as JSON
        #[arg(long)]
        json: bool,
    },
    /// Point a label at a version
    #[command(after_help = "Example:\n  refit prompt promote greet@2 production -m 'better on the test split'")]
    Promote {
        /// The version
        reference: String,
        /// The label, such as staging or production
        label: String,
        /// Why
        #[arg(long, short, default_value = "")]
        message: String,
    },
    /// Point a label back to where it stood before
    #[command(after_help = "Example:\n  refit prompt rollback greet production -m 'complaints'")]
    Rollback {
        /// Name
        name: String,
        /// The label
        label: String,
        /// Why
        #[arg(long, short, default_value = "")]
        message: String,
    },
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

/// Runs the verb.
///
/// # Errors
/// What `prompts` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    if let Verb::Render { prompt, variables, vars, json } = args.verb {
        return render(context, &prompt, &variables_of(&variables, vars.as_deref())?, json);
    }
    if let Verb::Schema = args.verb {
        output::line(SCHEMA.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let library = Library::new(&context.open_store()?);
    let author = context.actor();
    let note = |message| Note { author: &author, message };
    match args.verb {
        Verb::List { json } => list(&library, json),
        Verb::Show { reference, json } => show(&library, &reference, json),
        Verb::Diff { old, new, json } => diff(&library, &old, &new, json),
        Verb::Publish { file, name, message, json } => publish(&library, &file, name, note(&message), json),
        Verb::Promote { reference, label, message } => moved(&library.promote(&reference, &label, note(&message))?),
        Verb::Rollback { name, label, message } => moved(&library.rollback(&name, &label, note(&message))?),
        Verb::History { name, json } => history(&library, &name, json),
        Verb::Render { .. } | Verb::Schema => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list(library: &Library, json: bool) -> Result<(), Failure> {
    let entries = library.list()?;
    if json {
        return output::json(&entries);
    }
    let rows: Vec<_> = entries.iter().map(|entry| row(&entry.newest, &entry.labels)).collect();
    output::line(output::table(&["name", "version", "digest", "labels", "published", "by", "message"], &rows))
}

fn row(version: &PromptVersion, labels: &[(String, i64)]) -> Vec<String> {
    let labels: Vec<String> = labels.iter().map(|(label, at)| format!("{label}={at}")).collect();
    let (published, digest) = (rfc3339(version.created_at), version.digest.short());
    let number = version.version.to_string();
    vec![version.prompt.clone(), number, digest, labels.join(" "), published, version.author.clone(), version.message.clone()]
}

fn show(library: &Library, reference: &str, json: bool) -> Result<(), Failure> {
    let version = library.get(reference)?;
    if !json {
        return output::bytes(version.source.as_bytes());
    }
    let prompt = library.open(reference)?;
    let mut whole = serde_json::to_value(&version).unwrap_or_default();
    whole["source"] = version.source.into();
    whole["required_variables"] = prompt.required_variables().into();
    whole["config"] = Value::Object(prompt.front.config.clone());
    whole["input_schema"] = prompt.front.input_schema.clone().unwrap_or_default();
    whole["output_schema"] = prompt.front.output_schema.clone().unwrap_or_default();
    output::json(&whole)
}

fn render(context: &Context, prompt: &str, variables: &Map<String, Value>, json: bool) -> Result<ExitCode, Failure> {
    let prompt = if prompt.ends_with(".prompt") {
        let (name, source) = read(Path::new(prompt))?;
        Arc::new(Prompt::parse(&name, &source)?)
    } else {
        Library::new(&context.open_store()?).open(prompt)?
    };
    let rendered = prompt.render(&Input::of(variables))?;
    if json {
        output::json(&json!({"messages": rendered.messages, "config": rendered.config, "output_schema": rendered.output_schema}))?;
        return Ok(ExitCode::SUCCESS);
    }
    for message in &rendered.messages {
        output::line(format!("── {} ──\n{}", message.role, message.plain_text().trim_end()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn diff(library: &Library, old: &str, new: &str, json: bool) -> Result<(), Failure> {
    let text = library.diff(old, new)?;
    if json {
        let (old, new) = (library.get(old)?, library.get(new)?);
        return output::json(&json!({"old": old, "new": new, "equal": text.is_empty(), "diff": text}));
    }
    if text.is_empty() {
        output::note("the two versions are equal");
    }
    output::bytes(text.as_bytes())
}

fn publish(library: &Library, file: &Path, name: Option<String>, note: Note<'_>, json: bool) -> Result<(), Failure> {
    let (stem, source) = read(file)?;
    let published = library.publish(&name.unwrap_or(stem), &source, note)?;
    let version = &published.version;
    if !published.is_new {
        output::note(format!("{}@{} has this content already", version.prompt, version.version));
    }
    if json {
        return output::json(version);
    }
    output::line(format!("{}@{} {}", version.prompt, version.version, version.digest))
}

fn moved(step: &LabelMove) -> Result<(), Failure> {
    let from = step.from_version.map_or("nowhere".into(), |version| format!("version {version}"));
    output::line(format!("{}: {from} -> version {}", step.label, step.to_version))
}

fn history(library: &Library, name: &str, json: bool) -> Result<(), Failure> {
    let (versions, labels) = library.versions(name)?;
    let moves = library.history(name)?;
    if json {
        return output::json(&json!({"versions": versions, "labels": labels, "moves": moves}));
    }
    let at = |version: i64| labels.iter().filter(|(_, to)| *to == version).cloned().collect::<Vec<_>>();
    let rows: Vec<_> = versions.iter().map(|version| row(version, &at(version.version))).collect();
    output::line(output::table(&["name", "version", "digest", "labels", "published", "by", "message"], &rows))?;
    if moves.is_empty() {
        return Ok(());
    }
    let step = |step: &LabelMove| {
        let from = step.from_version.map_or("-".into(), |version| version.to_string());
        vec![rfc3339(step.moved_at), step.label.clone(), from, step.to_version.to_string(), step.actor.clone(), step.reason.clone()]
    };
    let rows: Vec<_> = moves.iter().map(step).collect();
    output::line(format!("\n{}", output::table(&["moved", "label", "from", "to", "by", "why"], &rows)))
}

fn variables_of(given: &[String], file: Option<&Path>) -> Result<Map<String, Value>, Failure> {
    let mut variables = Map::new();
    if let Some(file) = file {
        let text = text_of(file)?;
        variables = serde_json::from_str(&text).map_err(|error| {
            Failure::on(Code::INVALID_FILE, "--vars", format!("{}: not an object of variables: {error}", file.display()))
        })?;
    }
    for one in given {
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

fn read(file: &Path) -> Result<(String, String), Failure> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((stem, text_of(file)?))
}

fn text_of(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| Failure::new(Code::INVALID_FILE, format!("cannot read {}: {error}", file.display())))
}
