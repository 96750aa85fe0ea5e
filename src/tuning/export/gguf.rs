//! GGUF files of merged models and of adapters, in the names and the order of rows of llama.cpp's files, which the engine knows of every
//! family.

use super::{Elements, Source, described, failed};
use crate::engine::Model;
use crate::engine::adapter::Adapter;
use crate::engine::arch::{Decoder, interleaved, unpermuted};
use crate::engine::nn::linear::Lora;
use crate::models::Files;
use crate::tuning::{TuningError, base};
use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Factors on the periods of rotations.
const ROTARY: &str = "rope_freqs.weight";
/// The output matrix.
const HEAD: &str = "output.weight";

/// A tensor as it is kept: matrices as asked, where their rows are long enough for blocks; norms as f32.
fn kept(tensor: &Tensor, elements: Elements) -> Result<QTensor, TuningError> {
    let is_matrix = tensor.rank() > 1;
    let dtype = match elements {
        Elements::Q8 if is_matrix && tensor.dim(1)? % GgmlDType::Q8_0.block_size() == 0 => GgmlDType::Q8_0,
        Elements::Q8 | Elements::F16 if is_matrix => GgmlDType::F16,
        _ => GgmlDType::F32,
    };
    Ok(QTensor::quantize(&tensor.contiguous()?, dtype)?)
}

/// `general.file_type` (llama.h, `llama_ftype`).
fn file_type(elements: Elements) -> u32 {
    match elements {
        Elements::F32 => 0,
        Elements::F16 => 1,
        Elements::Q8 => 7,
    }
}

/// The merged model, with everything else that the base says: tokenizer, chat template, sizes.
pub(super) fn merged(source: &Source<'_>, decoder: &Decoder, elements: Elements, path: &Path) -> Result<(), TuningError> {
    let named = |mut metadata: BTreeMap<String, Value>| {
        metadata.insert("general.file_type".into(), Value::U32(file_type(elements)));
        metadata.insert("general.name".into(), Value::String(format!("{} {}", source.model, source.name).trim().into()));
        metadata.insert("refit.provenance".into(), Value::String(source.provenance.to_string()));
        metadata
    };
    let base = match source.files {
        Files::Gguf(base) => base,
        Files::Folder(_) => {
            let outline = base::outline(source.files)?;
            let described::Described { metadata, factors } = described::describe(source.files, &outline)?;
            let mut tensors = BTreeMap::new();
            // A head that is the embedding again stands there once.
            for (name, tensor) in decoder.gguf_weights()?.into_iter().filter(|(name, _)| !(outline.is_tied && name == HEAD)) {
                tensors.insert(name, kept(&tensor, elements)?);
            }
            if let Some(factors) = factors {
                let length = factors.len();
                tensors.insert(ROTARY.into(), kept(&Tensor::from_vec(factors, length, &Device::Cpu)?, Elements::F32)?);
            }
            return written(path, &named(metadata), &tensors);
        }
    };
    let unreadable = |error: std::io::Error| failed(format!("the base model cannot be read: {error}"));
    let mut file = File::open(base).map_err(unreadable)?;
    let content = Content::read(&mut file)?;
    let mut metadata = named(content.metadata.clone().into_iter().collect());
    // Offsets are ours, not the base's.
    metadata.remove("general.alignment");
    let mut tensors = BTreeMap::new();
    for (name, tensor) in decoder.gguf_weights()? {
        // As above.
        if content.tensor_infos.contains_key(&name) {
            tensors.insert(name, kept(&tensor, elements)?);
        }
    }
    // What scales rotations is no weight: it stays as it is.
    for name in content.tensor_infos.keys().filter(|name| name.as_str() == ROTARY) {
        tensors.insert(name.clone(), content.tensor(&mut file, name, &Device::Cpu)?);
    }
    if let Some(missing) = content.tensor_infos.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(failed(format!("the base has the tensor {missing}, which a merged file of this family would lack")));
    }
    written(path, &metadata, &tensors)
}

/// The adapter alone. llama.cpp scales with alpha / rank: alpha is what gives our scale.
pub(super) fn adapter(source: &Source<'_>, model: &Model, adapter: &Adapter, path: &Path) -> Result<(), TuningError> {
    let text = |text: &str| Value::String(text.to_string());
    if adapter.config.is_dora() {
        return Err(failed("GGUF adapters have no magnitudes: one of DoRA can be merged (--format merged-gguf)"));
    }
    let metadata = BTreeMap::from([
        ("general.type".to_string(), text("adapter")),
        ("general.architecture".to_string(), text(model.decoder.family().as_gguf().gguf.unwrap_or_default())),
        ("general.name".to_string(), text(source.name)),
        ("adapter.type".to_string(), text("lora")),
        ("adapter.lora.alpha".to_string(), Value::F32(adapter.config.scale() * adapter.config.r as f32)),
        ("refit.provenance".to_string(), text(&source.provenance.to_string())),
    ]);
    let mut tensors = BTreeMap::new();
    for target in model.lora_targets() {
        let Some(lora) = adapter.lora(&target.path) else { continue };
        let Some((name, heads)) = model.decoder.gguf_module(&target.path) else {
            return Err(failed(format!("GGUF has no name for the module {}", target.path)));
        };
        let b = heads.map_or(Ok(lora.b.detach()), |heads| interleaved(&lora.b.detach(), heads))?;
        tensors.insert(format!("{name}.weight.lora_a"), kept(&lora.a.detach(), Elements::F32)?);
        tensors.insert(format!("{name}.weight.lora_b"), kept(&b, Elements::F32)?);
    }
    written(path, &metadata, &tensors)
}

/// The adapter as that file has it.
pub(super) fn read_adapter(model: &Model, like: &Adapter, path: &Path) -> Result<Adapter, TuningError> {
    let unreadable = |error: std::io::Error| failed(format!("what was written cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let content = Content::read(&mut file)?;
    let alpha = content.metadata.get("adapter.lora.alpha").map(Value::to_f32).transpose()?;
    let Some(alpha) = alpha else { return Err(failed("what was written names no alpha")) };
    let mut loras = HashMap::new();
    for target in model.lora_targets().iter().filter(|target| like.lora(&target.path).is_some()) {
        let (name, heads) = model.decoder.gguf_module(&target.path).unwrap_or_default();
        let mut half = |half: &str| -> Result<Tensor, TuningError> {
            let tensor = content.tensor(&mut file, &format!("{name}.weight.{half}"), &Device::Cpu)?;
            Ok(tensor.dequantize(&Device::Cpu)?)
        };
        let (a, b) = (half("lora_a")?, half("lora_b")?);
        let scale = alpha / a.dim(0)? as f32;
        loras.insert(target.path.clone(), Lora { b: heads.map_or(Ok(b.clone()), |heads| unpermuted(&b, heads))?, a, scale });
    }
    Ok(Adapter::new(like.config.clone(), loras))
}

fn written(path: &Path, metadata: &BTreeMap<String, Value>, tensors: &BTreeMap<String, QTensor>) -> Result<(), TuningError> {
    let unwritable = |error: std::io::Error| failed(format!("{} cannot be written: {error}", path.display()));
    let mut file = BufWriter::new(File::create(path).map_err(unwritable)?);
    let metadata: Vec<_> = metadata.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write(&mut file, &metadata, &tensors)?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(unwritable)
}
