//! The model below a training: a GGUF file or a folder of safetensors, read whole or for what it says of itself.

use crate::engine::gguf::Gguf;
use crate::engine::model::Outline;
use crate::engine::{EngineError, Model, Purpose};
use crate::models::Files;

/// Loads it.
///
/// # Errors
/// [`EngineError`] naming the file, key or tensor at fault.
pub(super) fn load(files: &Files, purpose: Purpose) -> Result<Model, EngineError> {
    match files {
        Files::Gguf(path) => Model::load(path, purpose),
        Files::Folder(files) => Model::load_folder(files, purpose),
    }
}

/// What it says of itself before its weights are read.
///
/// # Errors
/// As [`load`]; [`EngineError::Unsupported`] naming what training does not compute.
pub(super) fn outline(files: &Files) -> Result<Outline, EngineError> {
    match files {
        Files::Gguf(path) => Outline::of_gguf(&Gguf::open(path)?),
        Files::Folder(files) => Outline::of_folder(&crate::engine::folder::Folder::open(files)?),
    }
}

/// Bytes of its weights on disk.
pub(super) fn size_bytes(files: &Files) -> u64 {
    let size = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |data| data.len());
    match files {
        Files::Gguf(path) => size(path),
        Files::Folder(files) => files.iter().filter(|(name, _)| name.ends_with(".safetensors")).map(|(_, path)| size(path)).sum(),
    }
}
