//! Adapters for other programs: PEFT's folder, the merged model as safetensors or GGUF, llama.cpp's adapter file, and what Ollama reads. Each is
//! read back and its logits compared with ours before it counts as written.

pub(super) mod checkpoint;
mod described;
mod gguf;
mod modelfile;
mod verify;

use super::{TuningError, base};
use crate::engine::adapter::AdapterConfig;
use crate::engine::{Adapter, Model, Purpose};
use crate::models::Files;
use crate::types::Digest;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `adapter_config.json` and `adapter_model.safetensors`, as Hugging Face `peft` reads them.
    Peft,
    /// The base with the adapter in its weights, as `transformers` reads it.
    MergedSafetensors,
    /// The same as one GGUF file.
    MergedGguf,
    /// The adapter alone as a GGUF file (llama.cpp's `--lora`).
    GgufLora,
    /// That, the base beside it, and a Modelfile: `ollama create` takes the folder.
    Ollama,
}

/// Every format by its name.
pub const FORMATS: [(&str, Format); 5] = [
    ("peft", Format::Peft),
    ("merged-safetensors", Format::MergedSafetensors),
    ("merged-gguf", Format::MergedGguf),
    ("gguf-lora", Format::GgufLora),
    ("ollama", Format::Ollama),
];

/// How the matrices of a merged model are kept. Norms stay f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elements {
    /// As they were computed.
    F32,
    /// Half precision.
    F16,
    /// Blocks of 32 with 8 bits each; GGUF only.
    Q8,
}

/// Every kind of element by its name.
pub const ELEMENTS: [(&str, Elements); 3] = [("f32", Elements::F32), ("f16", Elements::F16), ("q8_0", Elements::Q8)];

/// An adapter and its base.
pub struct Source<'a> {
    /// The files of the base.
    pub files: &'a Files,
    /// What the base is called.
    pub model: &'a str,
    /// What the adapter is called; empty where there is none.
    pub name: &'a str,
    /// `adapter_config.json` and `adapter_model.safetensors`; none where the model is to be written as it is.
    pub adapter: Option<(&'a [u8], &'a [u8])>,
    /// Digests of base and adapter, job, data.
    pub provenance: &'a Value,
}

/// How near what was written is to what it was made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// What was compared: `logits`, or `weights` of a format that is not read here.
    pub compared: &'static str,
    /// Largest absolute difference.
    pub largest_difference: f32,
    /// Largest absolute value among those that were compared.
    pub largest_value: f32,
    /// How many rows of logits, or tensors.
    pub count: usize,
}

impl Verified {
    /// Refuses what is farther off than its elements explain: a thousandth of the largest value in f32, a fiftieth in half precision, a tenth
    /// in 8 bits.
    fn check(&self, elements: Elements) -> Result<(), TuningError> {
        let share = match elements {
            Elements::F32 => 1e-3,
            Elements::F16 => 0.02,
            Elements::Q8 => 0.1,
        };
        let most = share * self.largest_value;
        if self.largest_difference <= most {
            return Ok(());
        }
        let (compared, found) = (self.compared, self.largest_difference);
        Err(failed(format!("what was written is no copy: its {compared} are off by up to {found}, where {most} is explained by rounding")))
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exported {
    /// Files in the folder.
    pub files: Vec<String>,
    /// How near it is; none where the bytes are the stored ones.
    pub verified: Option<Verified>,
}

/// Key of our entry in the metadata of safetensors.
pub(super) const METADATA_KEY: &str = "refit";

/// Writes an adapter into a folder, which should be a new one: what is in it when this fails is no export.
///
/// # Errors
/// [`TuningError::Export`] naming what the format cannot hold; what the engine or the file system says.
pub fn export(source: &Source<'_>, format: Format, elements: Elements, folder: &Path) -> Result<Exported, TuningError> {
    let writer = Writer { source, folder };
    let verified = match format {
        Format::Peft => writer.peft()?,
        Format::MergedSafetensors => writer.merged_safetensors(elements)?,
        Format::MergedGguf => writer.merged_gguf(elements)?,
        Format::GgufLora => writer.gguf_lora()?,
        Format::Ollama => writer.ollama()?,
    };
    if let Some(verified) = &verified {
        verified.check(elements)?;
    }
    let told = json!({"format": FORMATS.iter().find(|(_, known)| *known == format).map(|(name, _)| name), "provenance": source.provenance,
        "verified": verified, "written_by": concat!("refit ", env!("CARGO_PKG_VERSION"))});
    writer.write("export.json", &serde_json::to_vec_pretty(&told).expect("JSON serialises"))?;
    let mut files: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    files.sort();
    Ok(Exported { files, verified })
}

/// Writes into a folder.
struct Writer<'a> {
    source: &'a Source<'a>,
    folder: &'a Path,
}

impl Writer<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TuningError> {
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(self.path(name))?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.sync_all()
        };
        write().map_err(|error| failed(format!("{name} cannot be written: {error}")))
    }

    /// Our provenance as the text of a metadata entry.
    fn metadata(&self) -> HashMap<String, String> {
        let format = ("format".to_string(), "pt".to_string());
        HashMap::from([format, (METADATA_KEY.to_string(), self.source.provenance.to_string())])
    }

    fn model(&self) -> Result<Model, TuningError> {
        Ok(base::load(self.source.files, Purpose::Train)?)
    }

    /// The adapter, or one that changes nothing.
    fn adapter(&self, model: &Model) -> Result<Adapter, TuningError> {
        match self.source.adapter {
            Some((config, weights)) => Ok(model.adapter(config, weights)?),
            None => Ok(Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new())),
        }
    }

    /// The adapter's two files.
    fn parts(&self) -> Result<(&[u8], &[u8]), TuningError> {
        self.source.adapter.ok_or_else(|| failed("it is a model and no adapter: merged-safetensors and merged-gguf are written of one"))
    }

    fn peft(&self) -> Result<Option<Verified>, TuningError> {
        let (config, weights) = self.parts()?;
        let tensors = safetensors::SafeTensors::deserialize(weights).map_err(|error| failed(error.to_string()))?;
        let weights = safetensors::serialize(tensors.tensors(), Some(self.metadata())).map_err(|error| failed(error.to_string()))?;
        let config: Value = serde_json::from_slice(config).map_err(|error| failed(error.to_string()))?;
        self.write("adapter_config.json", &serde_json::to_vec_pretty(&config).expect("JSON serialises"))?;
        self.write("adapter_model.safetensors", &weights)?;
        self.write("Modelfile", modelfile::on_base(self.source.model, ".").as_bytes())?;
        Ok(None)
    }

    fn merged_safetensors(&self, elements: Elements) -> Result<Option<Verified>, TuningError> {
        let outline = base::outline(self.source.files)?;
        let model = self.model()?;
        let adapter = self.adapter(&model)?;
        let merged = model.decoder.merged(&adapter)?;
        let weights = checkpoint::weights(&merged, outline.is_tied)?;
        checkpoint::write_tensors(&self.path("model.safetensors"), &weights, elements, self.metadata())?;
        for (name, bytes) in checkpoint::descriptions(self.source.files, &outline, elements)? {
            self.write(&name, &bytes)?;
        }
        checkpoint::check(self.folder, model.decoder.config())?;
        self.write("Modelfile", modelfile::of_file(".").as_bytes())?;
        verify::tensors(&self.path("model.safetensors"), &weights).map(Some)
    }

    fn merged_gguf(&self, elements: Elements) -> Result<Option<Verified>, TuningError> {
        let model = self.model()?;
        let adapter = self.adapter(&model)?;
        let expected = verify::logits(&model, &adapter)?;
        let path = self.path("model.gguf");
        gguf::merged(self.source, &model.decoder.merged(&adapter)?, elements, &path)?;
        drop(model);
        let written = Model::load(&path, Purpose::Train)?;
        self.write("Modelfile", modelfile::of_file("./model.gguf").as_bytes())?;
        verify::against(&expected, &verify::plain_logits(&written)?).map(Some)
    }

    fn gguf_lora(&self) -> Result<Option<Verified>, TuningError> {
        self.parts()?;
        let model = self.model()?;
        let adapter = self.adapter(&model)?;
        let path = self.path("adapter.gguf");
        gguf::adapter(self.source, &model, &adapter, &path)?;
        self.write("Modelfile", modelfile::on_base(self.source.model, "./adapter.gguf").as_bytes())?;
        let read = gguf::read_adapter(&model, &adapter, &path)?;
        verify::against(&verify::logits(&model, &adapter)?, &verify::logits(&model, &read)?).map(Some)
    }

    fn ollama(&self) -> Result<Option<Verified>, TuningError> {
        let Files::Gguf(file) = self.source.files else {
            return Err(failed("ollama: the base is a folder; export merged-gguf, whose Modelfile takes the whole model"));
        };
        let verified = self.gguf_lora()?;
        let base = self.path("base.gguf");
        // No link: whoever changes the file must not change the store's.
        fs::copy(file, &base).map_err(|error| failed(format!("base.gguf cannot be written: {error}")))?;
        self.write("Modelfile", modelfile::on_base("./base.gguf", "./adapter.gguf").as_bytes())?;
        Ok(verified)
    }
}

fn failed(problem: impl Into<String>) -> TuningError {
    TuningError::Export(problem.into())
}

/// Whether an adapter from elsewhere fits a model, and is one that is applied as it was meant.
///
/// # Errors
/// [`TuningError::Engine`] naming the key, tensor or file that cannot be honoured.
pub fn check_import(files: &Files, config: &[u8], weights: &[u8]) -> Result<(), TuningError> {
    let model = base::load(files, Purpose::Serve)?;
    model.adapter(config, weights).map(drop).map_err(TuningError::from)
}

/// What our metadata in an adapter's weights says of its base; none where it was written elsewhere.
pub fn base_of(weights: &[u8]) -> Option<Digest> {
    let (_, header) = safetensors::SafeTensors::read_metadata(weights).ok()?;
    let own: Value = serde_json::from_str(header.metadata().as_ref()?.get(METADATA_KEY)?).ok()?;
    own["model_digest"].as_str()?.parse().ok()
}
