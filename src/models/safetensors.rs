//! The header of a safetensors file, checked far enough to know that the file is whole: tensors lie one behind the other and end where the
//! file ends. Format: the safetensors README. The engine reads weights with its own reader.

use super::ModelError;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest header; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Bytes of an element by type.
const WIDTHS: &[(&str, u64)] = &[
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("U16", 2),
    ("I16", 2),
    ("F16", 2),
    ("BF16", 2),
    ("U32", 4),
    ("I32", 4),
    ("F32", 4),
    ("U64", 8),
    ("I64", 8),
    ("F64", 8),
];

/// Checks the file.
///
/// # Errors
/// [`ModelError::File`] when it cannot be read, [`ModelError::Invalid`] when it is no safetensors file, damaged or cut off, naming the
/// tensor.
pub fn check(path: &Path) -> Result<(), ModelError> {
    let fault = |source| ModelError::File { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(fault)?;
    let length = file.metadata().map_err(fault)?.len();
    header(&mut file, length).map_err(|message| ModelError::Invalid { file: path.display().to_string(), message })
}

fn header(file: &mut impl Read, length: u64) -> Result<(), String> {
    let mut prefix = [0u8; 8];
    file.read_exact(&mut prefix).map_err(|_| "it is shorter than a safetensors header".to_string())?;
    let size = u64::from_le_bytes(prefix);
    if size > MAX_HEADER_BYTES || size > length.saturating_sub(8) {
        return Err(format!("its header claims {size} bytes, the file has {length}"));
    }
    let mut text = Vec::new();
    file.take(size).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let entries: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| format!("its header is no JSON object: {error}"))?;
    let mut tensors = Vec::new();
    for (name, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor = serde_json::from_value(entry).map_err(|error| format!("tensor \"{name}\": {error}"))?;
        tensors.push((name, tensor));
    }
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut at = 0;
    for (name, tensor) in &tensors {
        let [start, end] = tensor.data_offsets;
        if start != at || end < start {
            return Err(format!("tensor \"{name}\" lies at bytes {start} to {end}, expected from {at} on"));
        }
        let width = WIDTHS.iter().find(|(dtype, _)| *dtype == tensor.dtype).map(|(_, width)| *width);
        let width = width.ok_or_else(|| format!("tensor \"{name}\" has the unknown type {:?}", tensor.dtype))?;
        let bytes = tensor.shape.iter().try_fold(width, |bytes, n| bytes.checked_mul(*n));
        if bytes != Some(end - start) {
            return Err(format!("tensor \"{name}\" of shape {:?} does not fill its {} bytes", tensor.shape, end - start));
        }
        at = end;
    }
    match (8 + size).checked_add(at) {
        Some(end) if end == length => Ok(()),
        _ => Err(format!("its tensors end at byte {}, the file has {length}", at.saturating_add(8 + size))),
    }
}

#[cfg(test)]
mod tests {
    use super::header;

    fn file(text: &str, data: usize) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0u8; data][..]].concat()
    }

    fn check(bytes: &[u8]) -> Result<(), String> {
        header(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn whole_files_pass_and_others_name_what_is_wrong() {
        let good = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        assert_eq!(check(&file(good, 24)), Ok(()));
        for (bytes, word) in [
            (file(good, 20), "the file has"),
            (file(good, 28), "the file has"),
            (file(&good.replace("[2,3]", "[2,4]"), 24), "\"w\" of shape"),
            (file(&good.replace("[0,24]", "[4,28]"), 28), "expected from 0"),
            (file(&good.replace("F32", "F33"), 24), "unknown type"),
            (file(&good.replace("[2,3]", "[4611686018427387904,8]"), 24), "\"w\" of shape"),
            (file("{", 0), "no JSON"),
            (u64::MAX.to_le_bytes().to_vec(), "claims"),
            (vec![1, 2], "shorter"),
        ] {
            assert!(check(&bytes).expect_err(word).contains(word), "{:?} should say {word}", check(&bytes));
        }
    }
}
