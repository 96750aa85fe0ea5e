//! The configuration file as it stands on the disk at a moment, with the files that it names: what is checked, what is in force and what
//! changed is always all of them together. What they say is [`Config`](super::Config)'s business.

use super::ConfigError;
use crate::types::Digest;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Largest file that is read: no configuration is this large, and a log that was moved over it is not read whole each second.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Texts of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Of the configuration file.
    pub text: String,
    /// Files of `prices.files`, in that order.
    pub prices: Vec<NamedFile>,
}

/// A file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// As the configuration names it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its text, or why that cannot be read.
    read: Result<String, (ErrorKind, String)>,
}

impl Files {
    /// Reads a configuration file and those that it names.
    ///
    /// # Errors
    /// What the file system says of the configuration file.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(Files::of(read(path)?, path))
    }

    /// The files that a text names, which came from this path.
    pub fn of(text: String, path: &Path) -> Self {
        let directory = path.parent().unwrap_or(Path::new(""));
        let named = |name: String| {
            let path = directory.join(&name);
            let read = read(&path).map_err(|error| (error.kind(), error.to_string()));
            NamedFile { name, path, read }
        };
        let prices = names(&text).into_iter().map(named).collect();
        Files { text, prices }
    }

    /// Of all bytes; of those of the configuration file alone, where it names no other.
    pub fn digest(&self) -> Digest {
        if self.prices.is_empty() {
            return Digest::of(self.text.as_bytes());
        }
        let files = self.prices.iter().map(|file| (file.name.as_str(), file.read.as_ref().map_or("", String::as_str)));
        let all: Vec<_> = [("", self.text.as_str())].into_iter().chain(files).collect();
        Digest::of_json(&serde_json::json!(all))
    }
}

impl NamedFile {
    /// Its text.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`].
    pub fn text(&self) -> Result<&str, ConfigError> {
        let unreadable =
            |(kind, why): &(ErrorKind, String)| ConfigError::Unreadable { path: self.path.clone(), source: Error::new(*kind, why.clone()) };
        self.read.as_deref().map_err(unreadable)
    }
}

/// What `prices.files` names, in a text that need not be right otherwise.
fn names(text: &str) -> Vec<String> {
    // Most files name none, and this one is looked at each second.
    if !text.contains("prices") {
        return Vec::new();
    }
    let table: toml::Table = text.parse().unwrap_or_default();
    let files = table.get("prices").and_then(|prices| prices.get("files")).and_then(toml::Value::as_array);
    files.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_string)).collect()
}

/// A file's text. `std::fs::read_to_string` would wait on a pipe and read what has no end.
fn read(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(Error::new(ErrorKind::InvalidInput, format!("not a file of at most {MAX_FILE_BYTES} bytes")));
    }
    std::fs::read_to_string(path)
}
