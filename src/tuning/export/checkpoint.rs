//! A merged model as the folder that `transformers` reads. The base is a GGUF file: configuration and tokenizer are made of what it says.

use super::{Elements, failed};
use crate::engine::Model;
use crate::engine::arch::Decoder;
use crate::engine::gguf::Gguf;
use crate::tuning::TuningError;
use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Tensors by their names; a head that is the embedding again is left out.
pub(super) fn weights(file: &Gguf, decoder: &Decoder) -> Result<Vec<(String, Tensor)>, TuningError> {
    if decoder.config().architecture != "llama" {
        let message = format!("merged folders are written of the family llama alone, not of {}", decoder.config().architecture);
        return Err(failed(message));
    }
    let mut weights = decoder.weights()?;
    if !file.has_tensor("output.weight") {
        weights.retain(|(name, _)| name != "lm_head.weight");
    }
    Ok(weights)
}

/// Writes tensors as one file.
pub(super) fn write_tensors(
    path: &Path,
    weights: &[(String, Tensor)],
    elements: Elements,
    metadata: HashMap<String, String>,
) -> Result<(), TuningError> {
    let dtype = match elements {
        Elements::F32 => Dtype::F32,
        Elements::F16 => Dtype::F16,
        Elements::Q8 => return Err(failed("safetensors are written as f32 or f16; q8_0 is a kind of GGUF")),
    };
    let mut buffers = Vec::with_capacity(weights.len());
    for (name, tensor) in weights {
        let flat = tensor.flatten_all()?;
        let bytes: Vec<u8> = match elements {
            Elements::F32 => flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => flat.to_dtype(DType::F16)?.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        buffers.push((name.as_str(), tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (name, shape, bytes) in &buffers {
        views.push((*name, TensorView::new(dtype, shape.clone(), bytes).map_err(|error| failed(format!("{name}: {error}")))?));
    }
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| failed(format!("{} cannot be written: {error}", path.display())))
}

/// `config.json`, `generation_config.json`, `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn descriptions(file: &Gguf, model: &Model, elements: Elements) -> Result<Vec<(&'static str, String)>, TuningError> {
    let config = model.decoder.config();
    if config.architecture != "llama" || !config.rotary.stretch.is_empty() {
        let problem = format!(
            "a merged folder of the architecture {} cannot be described yet (llama without rotary scaling can)",
            config.architecture
        );
        return Err(failed(problem));
    }
    // A network for training may take fewer positions than the model.
    let context = file.integer("llama.context_length").unwrap_or(config.context);
    let token = |key: &str| file.integer(&format!("tokenizer.ggml.{key}_token_id")).ok();
    let (bos, eos) = (token("bos"), token("eos"));
    let described = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "hidden_size": config.hidden, "intermediate_size": config.inner, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads.queries, "num_key_value_heads": config.heads.keys, "head_dim": config.heads.width,
        "vocab_size": config.vocabulary, "max_position_embeddings": context, "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary.base, "tie_word_embeddings": !file.has_tensor("output.weight"), "bos_token_id": bos, "eos_token_id": eos,
        "dtype": if elements == Elements::F32 { "float32" } else { "float16" },
    });
    let text = |id: Option<usize>| id.and_then(|id| model.tokenizer.token(u32::try_from(id).ok()?));
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "clean_up_tokenization_spaces": false,
        "bos_token": text(bos), "eos_token": text(eos), "chat_template": file.text("tokenizer.chat_template").ok(),
    });
    let written = |value: &Value| serde_json::to_string_pretty(value).expect("JSON serialises");
    Ok(vec![
        ("config.json", written(&described)),
        ("generation_config.json", written(&json!({"bos_token_id": bos, "eos_token_id": eos}))),
        ("tokenizer.json", model.tokenizer.to_json()?),
        ("tokenizer_config.json", written(&tokenizer)),
    ])
}
