//! A merged model as the folder that `transformers` reads. Where the base is a folder, everything but its weights is as it was; where it is a
//! GGUF file, configuration and tokenizer are made of what it says.

use super::{Elements, failed};
use crate::engine::arch::{Decoder, DecoderConfig, llama, mistral};
use crate::engine::folder::Folder;
use crate::engine::gguf::Gguf;
use crate::engine::kernel::rows::Gate;
use crate::engine::model::Outline;
use crate::models::Files;
use crate::tuning::{TuningError, floats};
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The output matrix.
const LM_HEAD: &str = "lm_head.weight";

/// Tensors by their names; a head that is the embedding again is left out.
pub(in crate::tuning) fn weights(decoder: &Decoder, is_tied: bool) -> Result<Vec<(String, Tensor)>, TuningError> {
    let mut weights = decoder.weights()?;
    if is_tied {
        weights.retain(|(name, _)| name != LM_HEAD);
    }
    Ok(weights)
}

/// Writes tensors as one file.
pub(in crate::tuning) fn write_tensors(
    path: &Path,
    weights: &[(String, Tensor)],
    elements: Elements,
    metadata: HashMap<String, String>,
) -> Result<(), TuningError> {
    let dtype = match elements {
        Elements::F32 => DType::F32,
        Elements::F16 => DType::F16,
        Elements::Q8 => return Err(failed("safetensors are written as f32 or f16; q8_0 is a kind of GGUF")),
    };
    let tensors = weights.iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?)));
    let tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?;
    floats::write(tensors.iter().map(|(name, tensor)| (name, tensor)), Some(metadata), path)
        .map_err(|problem| failed(format!("{} cannot be written: {problem}", path.display())))
}

/// Everything of a folder but its weights: that of the base where it is one, else what its GGUF file says.
pub(in crate::tuning) fn descriptions(files: &Files, outline: &Outline, elements: Elements) -> Result<Vec<(String, Vec<u8>)>, TuningError> {
    match files {
        Files::Folder(files) => copied(files, elements),
        Files::Gguf(path) => described(&Gguf::open(path)?, outline, elements),
    }
}

fn dtype(elements: Elements) -> &'static str {
    if elements == Elements::F32 { "float32" } else { "float16" }
}

fn written(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("JSON serialises")
}

/// The files beside the weights, as they are; `config.json` with the type of the elements.
fn copied(files: &BTreeMap<String, PathBuf>, elements: Elements) -> Result<Vec<(String, Vec<u8>)>, TuningError> {
    let mut copied = Vec::new();
    for (name, path) in files.iter().filter(|(name, _)| !name.ends_with(".safetensors") && *name != "model.safetensors.index.json") {
        let mut bytes = std::fs::read(path).map_err(|error| failed(format!("{name} of the base cannot be read: {error}")))?;
        if name == "config.json" {
            let mut config: Value = serde_json::from_slice(&bytes).map_err(|error| failed(format!("config.json of the base: {error}")))?;
            for key in ["dtype", "torch_dtype"] {
                if key == "dtype" || !config[key].is_null() {
                    config[key] = dtype(elements).into();
                }
            }
            bytes = written(&config);
        }
        copied.push((name.clone(), bytes));
    }
    Ok(copied)
}

/// `config.json`, `generation_config.json`, `tokenizer.json` and `tokenizer_config.json`, made of a GGUF file's metadata.
fn described(file: &Gguf, outline: &Outline, elements: Elements) -> Result<Vec<(String, Vec<u8>)>, TuningError> {
    let context = outline.config.context;
    let token = |key: &str| file.integer(&format!("tokenizer.ggml.{key}_token_id")).ok();
    let (bos, eos) = (token("bos"), token("eos"));
    let mut config = sizes(outline)?;
    let more = json!({"max_position_embeddings": context, "tie_word_embeddings": outline.is_tied, "bos_token_id": bos,
        "eos_token_id": eos, "dtype": dtype(elements)});
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let text = |id: Option<usize>| id.and_then(|id| outline.tokenizer.token(u32::try_from(id).ok()?));
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "clean_up_tokenization_spaces": false,
        "bos_token": text(bos), "eos_token": text(eos), "chat_template": file.text("tokenizer.chat_template").ok(),
    });
    Ok(vec![
        ("config.json".into(), written(&config)),
        ("generation_config.json".into(), written(&json!({"bos_token_id": bos, "eos_token_id": eos}))),
        ("tokenizer.json".into(), outline.tokenizer.to_json()?.into_bytes()),
        ("tokenizer_config.json".into(), written(&tokenizer)),
    ])
}

/// `config.json` as far as the network goes.
fn sizes(outline: &Outline) -> Result<Value, TuningError> {
    let (config, family) = (&outline.config, outline.family);
    // GGUF files of Mistral say llama, and llama knows no window.
    let family = if family.folder == llama::FAMILY.folder && config.sliding.is_some() { &mistral::FAMILY } else { family };
    let activation = if config.gate == Gate::Silu { "silu" } else { "gelu_pytorch_tanh" };
    let mut told = json!({
        "architectures": [family.class], "model_type": family.folder, "hidden_act": activation, "hidden_activation": activation,
        "attention_bias": family.has_biases, "mlp_bias": false, "hidden_size": config.hidden, "intermediate_size": config.inner,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads.queries, "num_key_value_heads": config.heads.keys,
        "head_dim": config.heads.width, "vocab_size": config.vocabulary, "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary.base, "sliding_window": null, "use_sliding_window": false,
    });
    match config.rotary.stretch.as_slice() {
        [] => {}
        [factor, others @ ..] if others.iter().all(|other| other == factor) => {
            told["rope_scaling"] = json!({"rope_type": "linear", "factor": factor});
        }
        _ => {
            return Err(failed(
                "its rotary scaling is a table (rope_freqs.weight), of which config.json cannot be made; export a GGUF file",
            ));
        }
    }
    if let Some(sliding) = &config.sliding {
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        told["sliding_window"] = sliding.window.into();
        told["use_sliding_window"] = true.into();
        told["layer_types"] = sliding.layers.iter().map(kind).collect();
        told["max_window_layers"] = 0.into();
        if family.sliding_rope_base.is_some() {
            told["rope_local_base_freq"] = sliding.rotary.base.into();
        }
    }
    if config.attention_scale != config.heads.scale() || family.scales_embeddings {
        // A whole number in every model, and to transformers in every case.
        told["query_pre_attn_scalar"] = ((1.0 / f64::from(config.attention_scale).powi(2)).round() as u64).into();
    }
    Ok(told)
}

/// Refuses a folder whose files say another network than the one that was merged.
pub(in crate::tuning) fn check(folder: &Path, expected: &DecoderConfig) -> Result<(), TuningError> {
    let found = Outline::of_folder(&Folder::open(&Folder::files(folder)?)?)?.config;
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs();
    let same = near(found.attention_scale, expected.attention_scale);
    let names = |config: &DecoderConfig| DecoderConfig { architecture: String::new(), context: 0, attention_scale: 1.0, ..config.clone() };
    if same && names(&found) == names(expected) {
        return Ok(());
    }
    Err(failed("config.json, read back, describes another network than the one that was merged"))
}
