//! The registry of file formats: a file each, a word here. A format cuts a file into records of named fields; what the fields mean is the
//! business of [`shapes`](super::shapes).

mod csv;
mod jsonl;
mod pages;
mod parquet;

use super::DatasetError;
use super::source::Source;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// Longest record, in bytes: a sample is held in memory.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// Where a record stands in its file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A line of a text file.
    Line(u64),
    /// A record that may go over several lines, and the line that it begins in.
    Record(u64, u64),
    /// A row of a table.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Record(record, line) => write!(f, "record {record} (line {line})"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// One record of a file.
#[derive(Debug)]
pub struct Record {
    /// Where it stands.
    pub place: Place,
    /// Its fields, or what is wrong with it.
    pub fields: Result<Map<String, Value>, String>,
    /// As it stands in the file, for the reject file.
    pub text: String,
}

/// Takes records, one after the other.
pub type Each<'a> = &'a mut dyn FnMut(Record) -> Result<(), DatasetError>;

/// What reads one kind of file, record by record, in bounded memory.
pub trait Format: Sync {
    /// Name for `--format` and lineage.
    fn name(&self) -> &'static str;

    /// File endings that mean this format, without the dot.
    fn endings(&self) -> &'static [&'static str];

    /// Reads all records in order. A record that is broken is handed on with what is wrong with it.
    ///
    /// # Errors
    /// [`DatasetError::Read`] when the file cannot be read on, or what `each` returns.
    fn read(&self, source: Source, each: Each<'_>) -> Result<(), DatasetError>;
}

const FORMATS: &[&dyn Format] = &[&jsonl::Jsonl, &csv::Csv, &parquet::Parquet];
/// Endings of compressed files, which come behind the format's.
const COMPRESSED: [&str; 3] = ["gz", "zst", "zstd"];

/// The format of a file, by name or else by ending.
///
/// # Errors
/// [`DatasetError::Format`] listing the formats.
pub fn of(file: &str, name: Option<&str>) -> Result<&'static dyn Format, DatasetError> {
    let mut endings = file.rsplit('/').next().unwrap_or(file).rsplit('.').map(str::to_lowercase);
    let mut ending = endings.next().unwrap_or_default();
    if COMPRESSED.contains(&ending.as_str()) {
        ending = endings.next().unwrap_or_default();
    }
    let fits = |format: &&&dyn Format| match name {
        Some(name) => format.name() == name,
        None => format.endings().contains(&ending.as_str()),
    };
    let known = || FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    FORMATS.iter().find(fits).copied().ok_or_else(|| DatasetError::Format { what: name.unwrap_or(file).to_string(), known: known() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_and_names_mean_a_format() {
        let name = |file: &str, given: Option<&str>| of(file, given).map(|format| format.name()).ok();
        assert_eq!(name("a/b.jsonl", None), Some("jsonl"));
        assert_eq!(name("b.TSV.gz", None), Some("csv"));
        assert_eq!(name("b.parquet", None), Some("parquet"));
        assert_eq!((name("b.txt", None), name("b.txt", Some("csv")), name("gz", None)), (None, Some("csv"), None));
    }
}
