//! Files in a folder beside the library. For each prompt three contents are compared: the file, the newest version, and what the two
//! agreed on last, which is stored. So it is known which of them changed; where both did, nothing is written.

use super::library::{By, LATEST, Library, Parent, Published};
use super::library_error::LibraryError;
use super::parse::Prompt;
use crate::store::prompts::{self as rows, PromptVersion, SyncedFile};
use crate::store::{Store, StoreError};
use crate::types::{Code, Digest, Failure, ids};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "prompt";
/// Folders below the one that is compared.
const MAX_DEPTH: usize = 16;

/// How a file and the library stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Both have the same content.
    Same,
    /// The library has no such prompt.
    FileNew,
    /// The file changed since both were the same.
    FileNewer,
    /// The library got another version since both were the same.
    LibraryNewer,
    /// Both changed, or they were never the same.
    BothChanged,
    /// The file holds an older version again.
    WentBack,
    /// There is no file.
    LibraryOnly,
    /// The file cannot be published.
    Unusable,
}

impl State {
    /// The state in words.
    pub fn words(self) -> &'static str {
        match self {
            State::Same => "same",
            State::FileNew => "new file",
            State::FileNewer => "file newer",
            State::LibraryNewer => "library newer",
            State::BothChanged => "both changed",
            State::WentBack => "file is an older version",
            State::LibraryOnly => "only in the library",
            State::Unusable => "cannot be read",
        }
    }

    /// Whether a person has to decide.
    pub fn is_conflict(self) -> bool {
        matches!(self, State::BothChanged | State::WentBack | State::Unusable)
    }
}

/// A prompt in a folder, in the library, or in both.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Name of the prompt.
    pub prompt: String,
    /// The file; where it would be, for a prompt without one.
    pub file: PathBuf,
    /// How the two stand.
    pub state: State,
    /// Newest version in the library.
    pub version: Option<i64>,
    /// What is wrong with the file, or which version it holds.
    pub note: String,
    #[serde(skip)]
    source: String,
    #[serde(skip)]
    newest: Option<PromptVersion>,
}

/// A folder and a library.
pub struct Folder<'s> {
    store: &'s Store,
    library: Library,
    /// Absolute, so that the same file has the same name whoever asks from where.
    path: PathBuf,
}

/// Remembers that a file has the content of a version.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn remember(store: &Store, file: &Path, prompt: &str, digest: Digest) -> Result<(), StoreError> {
    let path = key(file);
    store.db.batch(&[rows::put_synced(&SyncedFile { path, prompt: prompt.to_string(), digest })])
}

/// What a file was edited from, as far as it is known; nothing where it never was the same as a version.
///
/// # Errors
/// [`StoreError`] when the database fails.
pub fn edited_from(store: &Store, file: &Path, prompt: &str) -> Result<Parent, StoreError> {
    Ok(rows::synced(store.db.as_ref(), &key(file), prompt)?.map_or(Parent::Nothing, Parent::Version))
}

fn key(file: &Path) -> String {
    file.canonicalize().unwrap_or_else(|_| file.to_path_buf()).to_string_lossy().into_owned()
}

impl<'s> Folder<'s> {
    /// A folder that is there.
    ///
    /// # Errors
    /// [`Code::INVALID_FILE`] when it cannot be read.
    pub fn open(store: &'s Store, path: &Path) -> Result<Self, Failure> {
        let found = path.canonicalize().and_then(|path| std::fs::read_dir(&path).map(|_| path));
        let path = found.map_err(|error| unreadable(path, &error))?;
        Ok(Folder { store, library: Library::new(store), path })
    }

    /// Every prompt file of the folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        collect(&self.path, MAX_DEPTH, &mut files)?;
        Ok(files)
    }

    /// Every prompt of the folder and of the library, by name.
    ///
    /// # Errors
    /// When the folder or the store cannot be read; a file that cannot is an [`Item`].
    pub fn look(&self) -> Result<Vec<Item>, Failure> {
        let files = self.files()?;
        let mut items: BTreeMap<String, Item> = BTreeMap::new();
        for file in files {
            let item = self.item(file)?;
            match items.get_mut(&item.prompt) {
                Some(first) => {
                    first.note = format!("{} has the same name", item.file.display());
                    first.state = State::Unusable;
                }
                None => drop(items.insert(item.prompt.clone(), item)),
            }
        }
        for entry in self.library.list()? {
            let newest = entry.newest;
            let absent = || Item {
                prompt: newest.prompt.clone(),
                file: self.path.join(format!("{}.{EXTENSION}", newest.prompt)),
                state: State::LibraryOnly,
                version: Some(newest.version),
                note: String::new(),
                source: String::new(),
                newest: Some(newest.clone()),
            };
            items.entry(newest.prompt.clone()).or_insert_with(absent);
        }
        Ok(items.into_values().collect())
    }

    fn item(&self, file: PathBuf) -> Result<Item, Failure> {
        let prompt = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut item =
            Item { prompt, file, state: State::Unusable, version: None, note: String::new(), source: String::new(), newest: None };
        match std::fs::read_to_string(&item.file) {
            Ok(source) => item.source = source,
            Err(error) => {
                item.note = error.to_string();
                return Ok(item);
            }
        }
        if !ids::is_slug(&item.prompt) || item.prompt == LATEST {
            item.note = "a prompt's file is named as the prompt is: lower-case letters, digits, ., - and _, and not \"latest\"; rename it, or put _ before it".into();
            return Ok(item);
        }
        item.newest = self.library.newest(&item.prompt)?;
        item.version = item.newest.as_ref().map(|newest| newest.version);
        if let Err(error) = Prompt::parse(&item.prompt, &item.source) {
            item.note = error.to_string();
            return Ok(item);
        }
        self.judge(&mut item)?;
        Ok(item)
    }

    fn judge(&self, item: &mut Item) -> Result<(), StoreError> {
        let db = self.store.db.as_ref();
        let now = Digest::of(&item.source);
        let base = rows::synced(db, &key(&item.file), &item.prompt)?;
        let newest = item.newest.as_ref().map(|newest| newest.digest);
        let known = rows::by_digest(db, Some(&item.prompt), &now)?;
        item.state = match (newest, base) {
            (None, _) => State::FileNew,
            (Some(newest), _) if newest == now => State::Same,
            (Some(_), Some(base)) if base == now => State::LibraryNewer,
            // Never the same, but an older version: somebody published since.
            (Some(_), None) if known.is_some() => State::LibraryNewer,
            (Some(_), _) if known.is_some() => State::WentBack,
            (Some(newest), Some(base)) if base == newest => State::FileNewer,
            (Some(_), _) => State::BothChanged,
        };
        if let Some(known) = known.filter(|_| item.state != State::Same) {
            item.note = format!("the file is version {}", known.version);
        }
        Ok(())
    }

    /// Publishes the file of an item.
    ///
    /// # Errors
    /// [`LibraryError::Edited`] when somebody published meanwhile.
    pub fn push(&self, item: &Item, by: By<'_>) -> Result<Published, LibraryError> {
        let parent = item.newest.as_ref().map_or(Parent::Nothing, |newest| Parent::Version(newest.digest));
        let published = self.library.publish_from(&item.prompt, &item.source, parent, by)?;
        remember(self.store, &item.file, &item.prompt, published.version.digest)?;
        Ok(published)
    }

    /// Writes the newest version of an item into its file: beside it first, then in its place.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when the file changed meanwhile, [`Code::STORAGE`] when it cannot be written.
    pub fn pull(&self, item: &Item) -> Result<(), Failure> {
        let Some(newest) = &item.newest else { return Ok(()) };
        let stands = std::fs::read_to_string(&item.file).unwrap_or_default();
        if stands != item.source {
            return Err(Failure::new(Code::CONFLICT, format!("{} changed meanwhile", item.file.display())).with_hint("run it again"));
        }
        write(&item.file, &newest.source)
            .map_err(|error| Failure::new(Code::STORAGE, format!("cannot write {}: {error}", item.file.display())))?;
        Ok(remember(self.store, &item.file, &item.prompt, newest.digest)?)
    }

    /// Remembers that an item's file and the library are the same.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn agree(&self, item: &Item) -> Result<(), StoreError> {
        remember(self.store, &item.file, &item.prompt, Digest::of(&item.source))
    }
}

/// Writes a file whole or not at all.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = folder.join(format!(".{name}.{}.part", std::process::id()));
    let written = std::fs::File::create(&beside).and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.sync_all()
    });
    let moved = written.and_then(|()| std::fs::rename(&beside, file));
    if moved.is_err() {
        // What is left of it helps nobody.
        let _ = std::fs::remove_file(&beside);
    }
    moved
}

/// Prompt files below a folder; hidden ones, partials (`_name.prompt`) and links are left out.
fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|error| unreadable(folder, &error))?;
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type().map_err(|error| unreadable(folder, &error))?);
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(['.', '_']) {
            continue;
        }
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::INVALID_FILE, format!("cannot read the folder {}: {error}", path.display()))
}
