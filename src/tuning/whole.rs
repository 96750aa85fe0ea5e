//! A model whose own weights were trained, as the folder that `transformers` and this program read.

use super::export::{Elements, METADATA_KEY, checkpoint};
use super::{TuningError, base};
use crate::models::Files;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Largest value of half precision.
const LARGEST_HALF: f32 = 65_504.0;

/// Writes the folder of a model: `weights` are its tensors (safetensors, f32, by the names of Hugging Face checkpoints), everything else is the base's.
/// Matrices are kept in half precision, or as they are where a value is too large for that. Returns the names of the files.
///
/// # Errors
/// [`TuningError::Export`] naming what cannot be written; what the base's files say.
pub fn write_model(files: &Files, weights: &[u8], provenance: &Value, folder: &Path) -> Result<Vec<String>, TuningError> {
    let failed = |problem: String| TuningError::Export(problem);
    let read = safetensors::SafeTensors::deserialize(weights).map_err(|error| failed(error.to_string()))?;
    let (mut tensors, mut largest) = (Vec::new(), 0f32);
    for (name, view) in read.tensors() {
        let tensor = Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu)?;
        largest = largest.max(tensor.abs()?.flatten_all()?.max(0)?.to_scalar()?);
        tensors.push((name, tensor));
    }
    let elements = if largest <= LARGEST_HALF { Elements::F16 } else { Elements::F32 };
    let metadata = [("format".to_string(), "pt".to_string()), (METADATA_KEY.to_string(), provenance.to_string())];
    checkpoint::write_tensors(&folder.join(WEIGHTS), &tensors, elements, HashMap::from(metadata))?;
    let outline = base::outline(files)?;
    let mut names = vec![WEIGHTS.to_string()];
    for (name, bytes) in checkpoint::descriptions(files, &outline, elements)? {
        std::fs::write(folder.join(&name), bytes).map_err(|error| failed(format!("{name} cannot be written: {error}")))?;
        names.push(name);
    }
    checkpoint::check(folder, &outline.config)?;
    Ok(names)
}

/// Refuses a base of which no folder can be made, before it is trained.
///
/// # Errors
/// [`TuningError::Export`] naming what a folder cannot hold.
pub fn check_model(files: &Files) -> Result<(), TuningError> {
    checkpoint::descriptions(files, &base::outline(files)?, Elements::F16).map(drop)
}

/// The weights of a model in one file.
const WEIGHTS: &str = "model.safetensors";
