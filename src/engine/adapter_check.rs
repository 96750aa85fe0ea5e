//! What an adapter folder from somewhere else may hold: checked before its tensors are read, each refusal naming the file, key or tensor.

use super::EngineError;
use super::adapter::{AdapterConfig, LoraTarget};
use serde_json::Value;
use std::collections::BTreeSet;

/// Bytes of the header of a weights file; every adapter of a model of a thousand layers takes less.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Bytes of `adapter_config.json`.
const MAX_CONFIG_BYTES: usize = 1 << 20;

fn refuse<T>(problem: String) -> Result<T, EngineError> {
    Err(EngineError::Adapter(problem))
}

/// Sizes, and what only looks like safetensors.
///
/// # Errors
/// [`EngineError::Adapter`] naming the file.
pub(super) fn files(config: &[u8], weights: &[u8]) -> Result<(), EngineError> {
    if config.len() > MAX_CONFIG_BYTES {
        return refuse(format!("adapter_config.json has {} bytes; at most {MAX_CONFIG_BYTES} are taken", config.len()));
    }
    // A zip archive is what torch.save writes; before that, protocol 2 to 5 of pickle itself.
    if weights.starts_with(b"PK\x03\x04") || matches!(weights, [0x80, 2..=5, ..]) && weights.get(8) != Some(&b'{') {
        return refuse("the weights are pickled, which can run code when they are read; save them as adapter_model.safetensors".into());
    }
    let length = weights.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    match length {
        None => refuse(format!("adapter_model.safetensors has {} bytes: it is truncated", weights.len())),
        Some(length) if length > MAX_HEADER_BYTES => {
            refuse(format!("adapter_model.safetensors: its header claims {length} bytes; at most {MAX_HEADER_BYTES} are taken"))
        }
        Some(_) => Ok(()),
    }
}

/// Whether every module that the configuration names is one of the model's, and has its tensors.
///
/// # Errors
/// [`EngineError::Adapter`] naming the module.
pub(super) fn modules(config: &AdapterConfig, targets: &[LoraTarget], adapted: &BTreeSet<&str>) -> Result<(), EngineError> {
    let excluded = config.extra.get("exclude_modules").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in excluded {
        if adapted.iter().any(|path| *path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))) {
            return refuse(format!("adapter_model.safetensors holds tensors of \"{name}\", which exclude_modules leaves out"));
        }
    }
    let Value::Array(names) = &config.target_modules else {
        // A text is a regular expression or `all-linear`: what it stands for is what the weights hold.
        return match &config.target_modules {
            Value::String(_) => Ok(()),
            other => refuse(format!("adapter_config.json: target_modules is {other}; a list of module names is expected")),
        };
    };
    for name in names {
        let Some(name) = name.as_str() else {
            return refuse(format!("adapter_config.json: target_modules holds {name}, which is no name"));
        };
        let is_named = |path: &str| path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        if !targets.iter().any(|target| is_named(&target.path)) {
            return refuse(format!("adapter_config.json: target_modules names \"{name}\", which this model does not have"));
        }
        if !adapted.iter().any(|path| is_named(path)) {
            return refuse(format!("adapter_model.safetensors holds no tensors of \"{name}\", which target_modules names"));
        }
    }
    Ok(())
}

/// Whether every value of a tensor is a number.
///
/// # Errors
/// [`EngineError::Adapter`] naming the tensor and the first place that is none.
pub(super) fn finite(key: &str, values: &[f32]) -> Result<(), EngineError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => refuse(format!("tensor {key} holds {} at place {at}", values[at])),
    }
}
