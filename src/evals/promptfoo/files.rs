//! Files that a configuration names as `file://…`, below its own folder or by their whole path.

use crate::types::{Code, Failure};
use serde_json::{Map, Value};
use std::path::Path;

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// The path of a `file://` reference.
pub(super) fn reference(text: &str) -> Option<&str> {
    text.strip_prefix("file://")
}

/// The text of a file.
///
/// # Errors
/// [`Code::INVALID_FILE`] when it cannot be read.
pub(super) fn text(folder: &Path, file: &str) -> Result<String, Failure> {
    let path = folder.join(file);
    let failed = |why: String| Failure::new(Code::INVALID_FILE, format!("cannot read {}: {why}", path.display()));
    let size = std::fs::metadata(&path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(failed(format!("it has more than {MAX_BYTES} bytes")));
    }
    std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))
}

/// YAML or JSON.
///
/// # Errors
/// [`Code::INVALID_FILE`] with the line.
pub(super) fn value(source: &str, file: &str) -> Result<Value, Failure> {
    serde_norway::from_str(source).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line());
        Failure::new(Code::INVALID_FILE, format!("{file}, line {line}: {error}"))
    })
}

/// The rows of a table or of JSON lines.
///
/// # Errors
/// [`Code::INVALID_FILE`] with the line.
pub(super) fn rows(source: &str, file: &str) -> Result<Vec<Value>, Failure> {
    if file.ends_with(".jsonl") {
        let line = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| Failure::new(Code::INVALID_FILE, format!("{file}, line {}: {error}", i + 1)))
        };
        return source.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(line).collect();
    }
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::Headers).from_reader(source.trim_start_matches('\u{feff}').as_bytes());
    let broken = |error: csv::Error| Failure::new(Code::INVALID_FILE, format!("{file}: {error}"));
    let header = reader.headers().map_err(broken)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let row: Map<String, Value> = header.iter().zip(&record).map(|(name, value)| (name.to_string(), value.into())).collect();
        rows.push(Value::Object(row));
    }
    Ok(rows)
}
