//! Adapters leave the store as folders for other programs, and come from folders that others wrote. A folder is written beside its place and
//! renamed: it is there whole or not at all.

use super::head::EMBEDDERS;
use crate::models::{self, open};
use crate::store::Store;
use crate::store::adapters::{self, AdapterRecord, NewAdapter};
use crate::store::models::ModelRecord;
use crate::tuning::export::{Elements, Exported, Format, Source, base_of, check_import};
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Largest weights of an adapter that are taken.
const MAX_WEIGHTS_BYTES: u64 = 4 << 30;

/// Writes an adapter as a folder in one of the formats; of a head, `head_config.json` and `head.safetensors` in the format `peft` alone.
///
/// # Errors
/// [`Code::CONFLICT`] when the folder holds something already; [`Code::UNSUPPORTED`] naming what the format cannot hold; what the file
/// system says.
pub fn export(store: &Store, adapter: &AdapterRecord, folder: &Path, how: (Format, Elements)) -> Result<Exported, Failure> {
    in_place(folder, |beside| write(store, adapter, beside, how))
}

/// Writes a stored model as it is, in one of the formats that hold a whole one.
///
/// # Errors
/// As [`export`].
pub fn export_model(
    store: &Store,
    model: &ModelRecord,
    folder: &Path,
    (format, elements): (Format, Elements),
) -> Result<Exported, Failure> {
    let files = open(store, &model.digest)?;
    let provenance = json!({"model": model.name, "model_digest": model.digest, "source": model.source});
    let source = Source { files: &files, model: &model.name, name: "", adapter: None, provenance: &provenance };
    in_place(folder, |beside| Ok(crate::tuning::export::export(&source, format, elements, beside)?))
}

/// Writes beside the folder's place and renames.
fn in_place(folder: &Path, write: impl FnOnce(&Path) -> Result<Exported, Failure>) -> Result<Exported, Failure> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(Failure::new(Code::CONFLICT, format!("{} holds something already", folder.display())).with_hint("name another folder"));
    }
    let beside = beside(folder);
    let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("cannot write to {}: {error}", folder.display()));
    fs::create_dir_all(&beside).map_err(failed)?;
    let written = write(&beside).and_then(|exported| {
        fs::rename(&beside, folder).map_err(failed)?;
        Ok(exported)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    written
}

/// Where a folder is written first: in the same directory, so that it can be renamed.
fn beside(folder: &Path) -> PathBuf {
    let name = folder.file_name().map_or_else(|| "export".into(), |name| name.to_string_lossy().into_owned());
    folder.with_file_name(format!(".{name}.writing-{}", std::process::id()))
}

fn write(store: &Store, adapter: &AdapterRecord, folder: &Path, (format, elements): (Format, Elements)) -> Result<Exported, Failure> {
    let weights = store.blobs.get(&adapter.weights)?;
    let config = serde_json::to_vec_pretty(&adapter.config).expect("JSON serialises");
    if adapter.is_head() {
        if format != Format::Peft {
            let message = "a head is no adapter of a chat model: it is written as head_config.json and head.safetensors alone";
            return Err(Failure::on(Code::UNSUPPORTED, "format", message));
        }
        let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("cannot write to {}: {error}", folder.display()));
        fs::write(folder.join("head_config.json"), config).map_err(failed)?;
        fs::write(folder.join("head.safetensors"), weights).map_err(failed)?;
        return Ok(Exported { files: vec!["head.safetensors".into(), "head_config.json".into()], verified: None });
    }
    let files = open(store, &adapter.model_digest)?;
    let told = |name: &str| adapter.provenance.get(name).cloned().unwrap_or_default();
    let provenance = json!({"model": adapter.model, "model_digest": adapter.model_digest, "adapter_digest": adapter.digest,
        "name": adapter.name, "version": adapter.version, "job": told("job"), "dataset": told("dataset"), "split": told("split"),
        "prompt": told("prompt"), "training_file": told("training_file")});
    let name = format!("{}@{}", adapter.name, adapter.version);
    let source = Source { files: &files, model: &adapter.model, name: &name, adapter: Some((&config, &weights)), provenance: &provenance };
    Ok(crate::tuning::export::export(&source, format, elements, folder)?)
}

/// Takes a PEFT folder in as an adapter of a local model.
///
/// # Errors
/// [`Code::INVALID_FILE`] for a folder that is none, for pickled weights and for what would not be applied as it was meant, each by name;
/// [`Code::INVALID_VALUE`] when it says that it was trained on another file of the model.
pub fn import(store: &Store, folder: &Path, (model, name): (&str, &str)) -> Result<AdapterRecord, Failure> {
    if !crate::types::ids::is_slug(name) {
        let message = format!("\"{name}\" cannot name an adapter: lower-case letters, digits, '-', '_' and '.'");
        return Err(Failure::on(Code::INVALID_VALUE, "name", message));
    }
    let found = models::find(store, model)?;
    if found.record.architecture == EMBEDDERS {
        let message = format!("the local model \"{model}\" makes embeddings; PEFT adapters are for models that chat");
        return Err(Failure::on(Code::INVALID_VALUE, "model", message));
    }
    let (config, weights) = (read(folder, "adapter_config.json")?, read(folder, "adapter_model.safetensors")?);
    let record = found.record;
    if let Some(base) = base_of(&weights).filter(|base| *base != record.digest) {
        let message = format!("the adapter was trained on another file of this model: {} and not {}", base.short(), record.digest.short());
        return Err(Failure::on(Code::INVALID_VALUE, "model", message));
    }
    check_import(&found.files, &config, &weights)?;
    let config: Value =
        serde_json::from_slice(&config).map_err(|error| Failure::new(Code::INVALID_FILE, format!("adapter_config.json: {error}")))?;
    let weights = store.blobs.put(&weights)?;
    let digest = Digest::of_json(&json!({"config": config, "weights": weights, "model": record.digest}));
    let source = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let base = config.get("base_model_name_or_path").cloned().unwrap_or_default();
    let provenance = json!({"imported": source, "base_model_name_or_path": base, "finished_at": now_ms()});
    let adapter = NewAdapter { model: record.name, name: name.into(), digest, model_digest: record.digest, weights, config, provenance };
    Ok(adapters::insert(store.db.as_ref(), &adapter)?)
}

/// A file of the folder; where it is missing, what lies there instead is named.
fn read(folder: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    let path = folder.join(name);
    let invalid = |message: String| Failure::new(Code::INVALID_FILE, message);
    match fs::metadata(&path) {
        Ok(data) if data.len() > MAX_WEIGHTS_BYTES => Err(invalid(format!("{name} has {} bytes: that is no adapter", data.len()))),
        Ok(_) => fs::read(&path).map_err(|error| invalid(format!("{} cannot be read: {error}", path.display()))),
        Err(_) if folder.join("adapter_model.bin").exists() => {
            let message = "adapter_model.bin is pickled, which can run code when it is read; only adapter_model.safetensors is taken";
            Err(invalid(message.into()).with_hint("save it again with safe_serialization=True"))
        }
        Err(_) => Err(invalid(format!("{} has no {name}: it is no PEFT folder", folder.display()))),
    }
}
