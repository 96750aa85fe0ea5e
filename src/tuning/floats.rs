//! Values of f32 as safetensors, without a second copy of all of them beside what is written.

use super::TuningError;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::path::Path;

/// A tensor of f32.
pub(super) struct Floats<'a> {
    pub(super) values: Cow<'a, [f32]>,
    pub(super) shape: Vec<usize>,
}

impl<'a> Floats<'a> {
    /// A tensor of one dimension.
    pub(super) fn vector(values: &'a [f32]) -> Self {
        Floats { shape: vec![values.len()], values: Cow::Borrowed(values) }
    }
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// Writes tensors as a file and brings it to the disk.
///
/// # Errors
/// [`TuningError::Checkpoint`] when the disk is full or not writable.
pub(super) fn write<'a>(tensors: impl IntoIterator<Item = (String, Floats<'a>)>, path: &Path) -> Result<(), TuningError> {
    let failed = |problem: String| TuningError::Checkpoint { path: path.to_path_buf(), problem };
    safetensors::serialize_to_file(tensors, None, path).map_err(|error| failed(error.to_string()))?;
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(error.to_string()))
}
