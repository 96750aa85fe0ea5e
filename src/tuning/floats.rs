//! Values as safetensors, without a second copy of all of them beside what is written.

use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

/// A tensor of f32 with one dimension.
pub(super) struct Floats<'a> {
    values: &'a [f32],
    shape: [usize; 1],
}

impl<'a> From<&'a [f32]> for Floats<'a> {
    fn from(values: &'a [f32]) -> Self {
        Floats { values, shape: [values.len()] }
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

/// Writes tensors as a file, one after the other, and brings it to the disk.
///
/// # Errors
/// What the disk says: it is full, or not writable.
pub(super) fn write<N, V>(
    tensors: impl IntoIterator<Item = (N, V)>,
    metadata: Option<HashMap<String, String>>,
    path: &Path,
) -> Result<(), String>
where
    N: AsRef<str> + Ord + Display,
    V: View,
{
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|error| error.to_string())?;
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| error.to_string())
}
