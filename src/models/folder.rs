//! A model that is a folder: configuration, tokenizer and weights as files of their own (safetensors). What is stored under the model's
//! digest is the list of its files, in one canonical form; each file is a blob. So one digest still names every byte of the model.

use super::ModelError;
use crate::store::{Blobs, StoreError};
use crate::types::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const FORMAT: &str = "refit.model-folder.v1";
/// Largest list that is read.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Most files of a model.
const MAX_FILES: usize = 1_024;
/// Files of a local folder that belong to a model, besides weights.
const KNOWN: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];

/// The files of a model, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    format: String,
    files: Vec<Part>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Path in the folder, with `/`.
    pub name: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its size.
    pub size_bytes: u64,
}

impl Folder {
    /// A folder of these files.
    pub fn new(mut files: Vec<Part>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Folder { format: FORMAT.into(), files }
    }

    /// Its files, by name.
    pub fn files(&self) -> &[Part] {
        &self.files
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|part| part.size_bytes).sum()
    }

    /// The list as it is stored.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names, digests and numbers: serialising cannot fail")
    }

    /// Digest of the list: the model's name among all models.
    pub fn digest(&self) -> Digest {
        Digest::of(self.bytes())
    }

    /// The list that a blob holds; none where the blob is something else, or not there.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the blob changed.
    pub fn stored(blobs: &Blobs, digest: &Digest) -> Result<Option<Self>, StoreError> {
        if !is_list(&blobs.path(digest)) {
            return Ok(None);
        }
        let read: Option<Folder> = serde_json::from_slice(&blobs.get(digest)?).ok();
        Ok(read.filter(|folder| folder.format == FORMAT && folder.files.iter().all(|part| is_part_name(&part.name))))
    }

    /// Where each file lies, by its name.
    pub fn paths(&self, blobs: &Blobs) -> BTreeMap<String, PathBuf> {
        self.files.iter().map(|part| (part.name.clone(), blobs.path(&part.digest))).collect()
    }
}

/// Whether a file looks like a list: small, and the beginning of a JSON object.
fn is_list(path: &Path) -> bool {
    let mut first = [0u8];
    let opened = File::open(path).and_then(|mut file| {
        file.read_exact(&mut first)?;
        file.metadata()
    });
    opened.is_ok_and(|metadata| metadata.len() <= MAX_LIST_BYTES) && first == *b"{"
}

/// Whether a name stays inside its folder.
pub(super) fn is_part_name(name: &str) -> bool {
    let is_plain = |step: &str| !step.is_empty() && step != "." && step != "..";
    !name.contains(['\\', '\0', ':']) && name.split('/').all(is_plain)
}

/// The files of a local folder that make a model, by name.
///
/// # Errors
/// [`ModelError::Invalid`] when there is no `config.json`, `tokenizer.json` or safetensors weights, or only pickled ones.
pub(super) fn files_of(folder: &Path) -> Result<Vec<(String, PathBuf)>, ModelError> {
    let fault = |message: String| ModelError::Invalid { file: folder.display().to_string(), message };
    let entries = std::fs::read_dir(folder).map_err(|source| ModelError::File { path: folder.to_path_buf(), source })?;
    let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let weights = names.iter().filter(|name| name.ends_with(".safetensors")).cloned();
    let known = KNOWN.iter().map(|name| (*name).to_string()).filter(|name| folder.join(name).is_file());
    let found: Vec<String> = known.chain(weights).collect();
    let has = |wanted: &str| found.iter().any(|name| name == wanted);
    if !has("config.json") || !has("tokenizer.json") {
        let missing = if has("config.json") { "tokenizer.json" } else { "config.json" };
        return Err(fault(format!("a model folder has a {missing}; this one has none")));
    }
    if !found.iter().any(|name| name.ends_with(".safetensors")) {
        let pickled = names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pkl"));
        let why = pickled.map_or_else(
            || "it has no .safetensors weights".to_string(),
            |name| format!("its weights ({name}) are pickled, which can run code when they are read; save them as safetensors"),
        );
        return Err(fault(why));
    }
    if found.len() > MAX_FILES {
        return Err(fault(format!("it has {} files; at most {MAX_FILES} are taken", found.len())));
    }
    Ok(found.into_iter().map(|name| (name.clone(), folder.join(name))).collect())
}

/// What `config.json` says of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Described {
    /// `model_type`.
    pub architecture: String,
    /// Positions the model takes.
    pub context_tokens: Option<u64>,
}

/// Reads `config.json`.
///
/// # Errors
/// [`ModelError::Invalid`] when it is no object with a `model_type`.
pub fn describe(config: &Path) -> Result<Described, ModelError> {
    let fault = |message: String| ModelError::Invalid { file: config.display().to_string(), message };
    let text = std::fs::read(config).map_err(|source| ModelError::File { path: config.to_path_buf(), source })?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| fault(format!("config.json: {error}")))?;
    let architecture = config["model_type"].as_str().filter(|kind| !kind.is_empty());
    let architecture = architecture.ok_or_else(|| fault("config.json has no \"model_type\"".into()))?.to_string();
    Ok(Described { architecture, context_tokens: config["max_position_embeddings"].as_u64() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_digest_whatever_the_order_of_its_files() {
        let part = |name: &str| Part { name: name.into(), digest: Digest::of(name.as_bytes()), size_bytes: 3 };
        let (one, other) = (Folder::new(vec![part("a"), part("b/c")]), Folder::new(vec![part("b/c"), part("a")]));
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), Folder::new(vec![part("a"), part("b/d")]).digest());
        assert_eq!(one.size_bytes(), 6);
    }

    #[test]
    fn names_stay_inside() {
        for (name, inside) in [("config.json", true), ("1_Pooling/config.json", true), ("../x", false), ("/etc/x", false), ("a//b", false)]
        {
            assert_eq!(is_part_name(name), inside, "{name}");
        }
    }
}
