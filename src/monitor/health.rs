//! Whether the data directory can be written now: a row written over itself in the database, and a synced file beside it. Asked for by
//! `/ready` and `/status`; nobody asking costs nothing, and many asking cost one look.

use crate::store::{Store, StoreError, migrate};
use crate::types::time::now_ms;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long a look is good for, milliseconds.
const GOOD_FOR_MS: i64 = 2_000;
/// How long a look may take before the disk counts as not answering, milliseconds.
const PATIENCE_MS: i64 = 5_000;
/// More than a file of that size may hold in its inode.
const PROBE: [u8; 8_192] = [b'.'; 8_192];

/// Looks at a data directory.
pub struct Health {
    store: Store,
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: Option<Look>,
    looking_since: Option<i64>,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Look {
    /// When, milliseconds.
    pub at: i64,
    /// Why the database cannot be written; none when it can.
    pub database: Option<String>,
    /// Why files cannot be written; none when they can.
    pub files: Option<String>,
}

impl Health {
    /// Of a store.
    pub fn new(store: &Store) -> Self {
        let file = store.directory().join("probe");
        Health { store: store.clone(), file, state: Mutex::default() }
    }

    /// The newest look, where it is good enough and a new one would only wait.
    pub fn known(&self) -> Option<Look> {
        let state = self.lock();
        let now = now_ms();
        if let Some(since) = state.looking_since
            && now - since > PATIENCE_MS
        {
            let hangs = Some(format!("no answer for {} s", (now - since) / 1_000));
            return Some(Look { at: now, database: hangs.clone(), files: hangs });
        }
        state.newest.clone().filter(|look| state.looking_since.is_some() || now - look.at < GOOD_FOR_MS)
    }

    /// Looks now; while somebody looks already, the newest look. Blocking.
    pub fn look(&self) -> Look {
        let mut state = self.lock();
        if state.looking_since.is_some() {
            let unknown = Some("not known yet".to_string());
            return state.newest.clone().unwrap_or(Look { at: now_ms(), database: unknown.clone(), files: unknown });
        }
        state.looking_since = Some(now_ms());
        drop(state);
        let database = migrate::touch(self.store.db.as_ref()).err().map(|error| error.to_string());
        let files = self.write().err().map(told);
        let look = Look { at: now_ms(), database, files };
        let mut state = self.lock();
        state.looking_since = None;
        state.newest = Some(look.clone());
        look
    }

    fn write(&self) -> Result<(), StoreError> {
        let written = File::create(&self.file).and_then(|mut file| file.write_all(&PROBE).and_then(|()| file.sync_all()));
        let removed = std::fs::remove_file(&self.file);
        written.and(removed).map_err(|source| StoreError::Io { path: self.file.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is an assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the path, which is nobody's business over HTTP.
fn told(error: StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_makes_nobody_read_anything_again() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(directory.path()).expect("store");
        let generation = || store.db.generation().expect("a number");
        let before = generation();
        let look = Health::new(&store).look();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!((look.database, look.files, generation()), (None, None, before));
    }
}
