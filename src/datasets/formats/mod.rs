//! The registry of dataset formats: a file each, a word here.

mod jsonl;

use super::{DatasetError, Sample};
use std::io::BufRead;

/// What reads one kind of file, sample by sample.
pub trait Format: Sync {
    /// Name for `--format` and lineage.
    fn name(&self) -> &'static str;

    /// File endings that mean this format, without the dot.
    fn endings(&self) -> &'static [&'static str];

    /// Reads all samples in order; `source` names the file in errors.
    ///
    /// # Errors
    /// [`DatasetError::Line`] for the first broken line, or what `each` returns.
    fn read(
        &self,
        source: &str,
        reader: &mut dyn BufRead,
        each: &mut dyn FnMut(usize, Sample) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError>;
}

const FORMATS: &[&dyn Format] = &[&jsonl::Jsonl];

/// The format of a file, by name or else by ending.
///
/// # Errors
/// [`DatasetError::Format`] listing the formats.
pub fn of(file: &str, name: Option<&str>) -> Result<&'static dyn Format, DatasetError> {
    let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    let fits = |format: &&&dyn Format| match name {
        Some(name) => format.name() == name,
        None => format.endings().contains(&ending),
    };
    let known = || FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    FORMATS.iter().find(fits).copied().ok_or_else(|| DatasetError::Format { what: name.unwrap_or(file).to_string(), known: known() })
}
