//! `refit tune export` and `refit tune import`.

use super::adapter_of;
use crate::cli::output;
use crate::jobs::tune::export;
use crate::store::{Store, models};
use crate::tuning::export::{ELEMENTS, FORMATS};
use crate::types::error::did_you_mean;
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `--help` adds.
pub const HELP: &str = "\
Formats:
  peft                adapter_config.json, adapter_model.safetensors: Hugging Face peft, vLLM
  merged-safetensors  the whole model with the adapter in its weights: transformers
  merged-gguf         the same as one GGUF file: llama.cpp, Ollama, refit model pull
  gguf-lora           the adapter alone as GGUF: llama.cpp --lora
  ollama              that with its base and a Modelfile: ollama create NAME -f Modelfile

Beside each lies a Modelfile, and export.json with digests, data and how far the logits of what was written are from ours.

Examples:
  refit tune export smollm2-135m-instruct:support-intake ./adapter
  refit tune export smollm2-135m-instruct:support-intake ./model --format merged-gguf --elements q8_0";

/// Arguments of `refit tune export`.
#[derive(clap::Args)]
pub struct Out {
    /// `<model>:<adapter>` or `<model>:<adapter>@<version>`; or `<model>` itself, as merged-safetensors or merged-gguf
    adapter: String,
    /// Folder to write; a new one
    folder: PathBuf,
    /// peft, merged-safetensors, merged-gguf, gguf-lora or ollama
    #[arg(long, default_value = "peft")]
    format: String,
    /// Matrices of a merged model: f32, f16 or q8_0 (GGUF only)
    #[arg(long, default_value = "f16")]
    elements: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `refit tune import`.
#[derive(clap::Args)]
pub struct In {
    /// Folder with `adapter_config.json` and `adapter_model.safetensors`
    folder: PathBuf,
    /// `<model>:<adapter>`: the model that it is for, and what it will be called
    adapter: String,
}

/// One of some words.
fn word<T: Copy>(given: &str, what: &str, known: &[(&str, T)]) -> Result<T, Failure> {
    let found = known.iter().find(|(name, _)| *name == given).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let nearest = did_you_mean(given, names.iter().copied());
        Failure::on(Code::INVALID_VALUE, what, format!("{what} \"{given}\" is unknown{nearest}; known: {}", names.join(", ")))
    })
}

/// Writes the folder.
///
/// # Errors
/// As [`export::export`].
pub fn write(store: &Store, args: &Out) -> Result<ExitCode, Failure> {
    let how = (word(&args.format, "format", &FORMATS)?, word(&args.elements, "elements", &ELEMENTS)?);
    let model = models::find(store.db.as_ref(), args.adapter.trim_start_matches("local/"))?;
    let (name, digest, exported) = match model {
        Some(model) => ("model_digest", model.digest, export::export_model(store, &model, &args.folder, how)?),
        None => {
            let adapter = adapter_of(store, &args.adapter)?;
            ("adapter_digest", adapter.digest, export::export(store, &adapter, &args.folder, how)?)
        }
    };
    if args.json {
        output::json(&json!({"folder": args.folder, name: digest, "exported": exported}))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::note(format!("wrote {} ({}): {}", args.folder.display(), digest.short(), exported.files.join(", ")));
    if let Some(verified) = &exported.verified {
        output::note(format!(
            "read back: {} differ by {:.2e} at most, among values up to {:.1}",
            verified.compared, verified.largest_difference, verified.largest_value
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the folder in.
///
/// # Errors
/// As [`export::import`].
pub fn read(store: &Store, args: &In) -> Result<ExitCode, Failure> {
    let plain = args.adapter.trim_start_matches("local/");
    let Some((model, name)) = plain.split_once(':') else {
        let message = format!("\"{}\" names no model and adapter; expected <model>:<adapter>", args.adapter);
        return Err(Failure::on(Code::INVALID_REQUEST, "adapter", message));
    };
    let adapter = export::import(store, &args.folder, (model, name))?;
    if let Some(base) = adapter.provenance["base_model_name_or_path"].as_str().filter(|base| !names(base, &adapter.model)) {
        output::note(format!("it says that its base is {base}: whether {} is that model is yours to know", adapter.model));
    }
    output::line(format!("local/{}:{}@{}", adapter.model, adapter.name, adapter.version))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a repository or path can be meant by the name of a model, such as `HuggingFaceTB/SmolLM2-135M-Instruct` by `smollm2-135m-instruct`.
fn names(base: &str, model: &str) -> bool {
    base.trim_end_matches('/').rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(model))
}
