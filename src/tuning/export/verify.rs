//! What was written, against what it was made of.

use super::{Verified, failed};
use crate::engine::Model;
use crate::engine::adapter::{Adapter, AdapterConfig};
use crate::engine::arch::{Batch, Mode};
use crate::tuning::TuningError;
use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::Path;

/// Texts whose logits are compared, at every position.
const PROMPTS: [&str; 3] = [
    "The quick brown fox jumps over the lazy dog.",
    "Where is my order NL-10001? It was to arrive on Monday.",
    "{\"intent\": \"billing\", \"order\": null}",
];

/// Logits of all prompts, one row a position.
pub(super) fn logits(model: &Model, adapter: &Adapter) -> Result<Vec<Vec<f32>>, TuningError> {
    let mut rows = Vec::new();
    for prompt in PROMPTS {
        let mut batch = Batch::default();
        batch.push(&model.tokenizer.encode(prompt)?, 0, 0);
        let hidden = model.decoder.hidden(&batch, Mode::Train(&adapter.detached()))?;
        rows.extend(model.decoder.logits(&hidden)?.to_vec2::<f32>()?);
    }
    Ok(rows)
}

/// Those of a model alone.
pub(super) fn plain_logits(model: &Model) -> Result<Vec<Vec<f32>>, TuningError> {
    logits(model, &Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new()))
}

/// The largest difference between two sets of rows.
pub(super) fn against(expected: &[Vec<f32>], found: &[Vec<f32>]) -> Result<Verified, TuningError> {
    if expected.len() != found.len() || expected.iter().zip(found).any(|(a, b)| a.len() != b.len()) {
        return Err(failed("what was written gives logits of another shape"));
    }
    let pairs = || expected.iter().flatten().zip(found.iter().flatten());
    let largest_difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if pairs().any(|(a, b)| (a - b).is_nan()) {
        return Err(failed("what was written gives logits that are no numbers"));
    }
    let largest_value = expected.iter().flatten().map(|x| x.abs()).fold(0.0, f32::max);
    Ok(Verified { compared: "logits", largest_difference, largest_value, count: expected.len() })
}

/// The tensors of a safetensors file, against those that were written.
pub(super) fn tensors(file: &Path, expected: &[(String, Tensor)]) -> Result<Verified, TuningError> {
    let bytes = std::fs::read(file).map_err(|error| failed(format!("what was written cannot be read: {error}")))?;
    let read = SafeTensors::deserialize(&bytes).map_err(|error| failed(format!("what was written cannot be read: {error}")))?;
    let (mut largest_difference, mut largest_value) = (0f32, 0f32);
    for (name, tensor) in expected {
        let view = read.tensor(name).map_err(|error| failed(format!("{name}: {error}")))?;
        let dtype = if view.dtype() == safetensors::Dtype::F16 { DType::F16 } else { DType::F32 };
        let found = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), tensor.device())?.to_dtype(DType::F32)?;
        let difference = (&found - tensor)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        if difference.is_nan() {
            return Err(failed(format!("{name} holds what is no number")));
        }
        largest_difference = largest_difference.max(difference);
        largest_value = largest_value.max(tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    }
    Ok(Verified { compared: "weights", largest_difference, largest_value, count: expected.len() })
}
