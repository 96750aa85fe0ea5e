//! GGUF files of merged models and of adapters. Rows of q and k stand in the order of llama.cpp's files (`convert_hf_to_gguf.py`,
//! `LlamaModel.permute`), those of everything else as in checkpoints.

use super::{Elements, Source, failed};
use crate::engine::Model;
use crate::engine::adapter::Adapter;
use crate::engine::arch::Decoder;
use crate::engine::nn::linear::Lora;
use crate::tuning::TuningError;
use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Names in checkpoints, and in GGUF files; of modules in a block.
const MODULES: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];
/// Those outside of the blocks.
const OTHERS: [(&str, &str); 3] = [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Families whose rows of q and k are permuted in GGUF files.
const PERMUTED: [&str; 1] = ["llama"];

/// The name of a module in GGUF files.
fn name_of(path: &str) -> Option<String> {
    if let Some((_, name)) = OTHERS.iter().find(|(known, _)| *known == path) {
        return Some((*name).to_string());
    }
    let (layer, module) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, name) = MODULES.iter().find(|(known, _)| *known == module)?;
    Some(format!("blk.{layer}.{name}"))
}

/// Heads whose rows the file has in another order; none where it has them as they are.
fn interleaved_heads(decoder: &Decoder, path: &str) -> Option<usize> {
    let config = decoder.config();
    let is_permuted = PERMUTED.contains(&config.architecture.as_str());
    match path.rsplit('.').next() {
        Some("q_proj") if is_permuted => Some(config.heads.queries),
        Some("k_proj") if is_permuted => Some(config.heads.keys),
        _ => None,
    }
}

/// Rows of a matrix of q or k in the order of the file: of each head, the rows of its two halves in turn.
fn permuted(decoder: &Decoder, path: &str, tensor: &Tensor) -> Result<Tensor, TuningError> {
    let Some(heads) = interleaved_heads(decoder, path) else { return Ok(tensor.clone()) };
    let (rows, columns) = tensor.dims2()?;
    let halves = tensor.contiguous()?.reshape((heads, 2, rows / heads / 2, columns))?;
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

/// The other way round.
fn unpermuted(decoder: &Decoder, path: &str, tensor: &Tensor) -> Result<Tensor, TuningError> {
    let Some(heads) = interleaved_heads(decoder, path) else { return Ok(tensor.clone()) };
    let (rows, columns) = tensor.dims2()?;
    let pairs = tensor.contiguous()?.reshape((heads, rows / heads / 2, 2, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

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

/// The merged model, with everything else that the base's file says: tokenizer, chat template, sizes.
pub(super) fn merged(source: &Source<'_>, decoder: &Decoder, elements: Elements, path: &Path) -> Result<(), TuningError> {
    let unreadable = |error: std::io::Error| failed(format!("the base model cannot be read: {error}"));
    let content = Content::read(&mut File::open(source.model_file).map_err(unreadable)?)?;
    let mut metadata: BTreeMap<String, Value> = content.metadata.into_iter().collect();
    metadata.insert("general.file_type".into(), Value::U32(file_type(elements)));
    metadata.insert("general.name".into(), Value::String(format!("{} {}", source.model, source.name)));
    metadata.insert("refit.provenance".into(), Value::String(source.provenance.to_string()));
    // Offsets are ours, not the base's.
    metadata.remove("general.alignment");
    let mut tensors = BTreeMap::new();
    for (name, tensor) in decoder.weights()? {
        let path = name.strip_suffix(".weight").unwrap_or(&name);
        let Some(own) = name_of(path) else { return Err(failed(format!("GGUF has no name for the tensor {name}"))) };
        let own = format!("{own}.weight");
        // A head that is the embedding again stands there once.
        if content.tensor_infos.contains_key(&own) {
            tensors.insert(own, kept(&permuted(decoder, path, &tensor)?, elements)?);
        }
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
        ("general.architecture".to_string(), text(&model.decoder.config().architecture)),
        ("general.name".to_string(), text(source.name)),
        ("adapter.type".to_string(), text("lora")),
        ("adapter.lora.alpha".to_string(), Value::F32(adapter.config.scale() * adapter.config.r as f32)),
        ("refit.provenance".to_string(), text(&source.provenance.to_string())),
    ]);
    let mut tensors = BTreeMap::new();
    for target in model.lora_targets() {
        let Some(lora) = adapter.lora(&target.path) else { continue };
        let Some(name) = name_of(&target.path) else { return Err(failed(format!("GGUF has no name for the module {}", target.path))) };
        let b = permuted(&model.decoder, &target.path, &lora.b.detach())?;
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
        let name = name_of(&target.path).unwrap_or_default();
        let mut half = |half: &str| -> Result<Tensor, TuningError> {
            let tensor = content.tensor(&mut file, &format!("{name}.weight.{half}"), &Device::Cpu)?;
            Ok(tensor.dequantize(&Device::Cpu)?)
        };
        let (a, b) = (half("lora_a")?, half("lora_b")?);
        let scale = alpha / a.dim(0)? as f32;
        loras.insert(target.path.clone(), Lora { b: unpermuted(&model.decoder, &target.path, &b)?, a, scale });
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
