//! Files that scorers are made of: modules of `wasm`. A suite's stand below its own folder; a stored run has kept those that it was scored
//! with, so that it is compared and resumed with the same ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest file.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Where files are read, and which ones were.
#[derive(Debug)]
pub struct ScorerFiles {
    place: Place,
    read: Mutex<Kept>,
}

/// Bytes by the name that a suite has for them.
pub type Kept = BTreeMap<String, Arc<[u8]>>;

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Kept(Kept),
}

impl ScorerFiles {
    /// Files below a folder.
    pub fn below(folder: impl Into<PathBuf>) -> Self {
        ScorerFiles { place: Place::Folder(folder.into()), read: Mutex::default() }
    }

    /// Files that were kept, and no others.
    pub fn kept(files: Kept) -> Self {
        ScorerFiles { place: Place::Kept(files), read: Mutex::default() }
    }

    /// The bytes of a file.
    pub(super) fn read(&self, name: &str) -> Result<Arc<[u8]>, String> {
        let bytes = match &self.place {
            Place::Kept(files) => files.get(name).cloned().ok_or_else(|| format!("{name} was not kept with the run"))?,
            Place::Folder(folder) => {
                let path = folder.join(name);
                let unreadable = |error| format!("cannot read {}: {error}", path.display());
                let length = std::fs::metadata(&path).map_err(unreadable)?.len();
                if length > MAX_FILE_BYTES {
                    return Err(format!("{} has more than {MAX_FILE_BYTES} bytes", path.display()));
                }
                std::fs::read(&path).map_err(unreadable)?.into()
            }
        };
        self.lock().insert(name.to_string(), bytes.clone());
        Ok(bytes)
    }

    /// What was read.
    pub fn taken(&self) -> Kept {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
