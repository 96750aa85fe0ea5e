//! What was read from the database, kept in memory for as long as nobody has committed anything: the hot path's way around a query
//! for each request, without a moment in which a revoked key or a moved release is still served.

use super::db::{Db, StoreError};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long the answer to "has anybody committed" is believed. It takes some microseconds to find out, and under load everybody asks.
const BELIEVED: Duration = Duration::from_millis(1);
/// Entries kept; beyond them the whole memory starts anew.
const MAX_ENTRIES: usize = 10_000;

/// A memory of values by key, forgotten with the next commit of any process.
pub struct Fresh<K, V> {
    db: Arc<dyn Db>,
    /// The newest look: one at a time, so that no older one takes its place.
    look: Mutex<Option<(Instant, u64)>>,
    memory: RwLock<Memory<K, V>>,
}

struct Memory<K, V> {
    generation: u64,
    entries: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Clone> Fresh<K, V> {
    /// An empty memory over a database.
    pub fn new(db: Arc<dyn Db>) -> Self {
        let memory = RwLock::new(Memory { generation: 0, entries: HashMap::new() });
        Fresh { db, look: Mutex::new(None), memory }
    }

    /// The generation of what is read from now on; to be taken before reading, and given to [`Fresh::keep`]. Microseconds.
    ///
    /// # Errors
    /// When the database fails.
    pub fn generation(&self) -> Result<u64, StoreError> {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((looked, generation)) = *look
            && now.duration_since(looked) < BELIEVED
        {
            return Ok(generation);
        }
        let generation = self.db.generation()?;
        *look = Some((now, generation));
        Ok(generation)
    }

    /// What is known under a key, if it is of this generation.
    pub fn get<Q>(&self, generation: u64, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        if memory.generation == generation { memory.entries.get(key).cloned() } else { None }
    }

    /// Keeps what was read in a generation.
    pub fn keep(&self, generation: u64, key: K, value: V) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.generation != generation || memory.entries.len() >= MAX_ENTRIES {
            memory.generation = generation;
            memory.entries.clear();
        }
        memory.entries.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_commit_of_anybody_is_the_end_of_what_was_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, other) = (Store::open(directory.path()).expect("a store"), Store::open(directory.path()).expect("another"));
        let fresh = Fresh::new(store.db.clone());
        let generation = fresh.generation().expect("a generation");
        fresh.keep(generation, "a".to_string(), 1);
        let known = || fresh.get(fresh.generation().expect("a generation"), "a");
        assert_eq!(known(), Some(1));
        for committer in [&store, &other] {
            fresh.keep(fresh.generation().expect("a generation"), "a".to_string(), 1);
            committer.db.execute("CREATE TABLE IF NOT EXISTS x (y BIGINT)", &[]).expect("a table");
            committer.db.execute("INSERT INTO x (y) VALUES (1)", &[]).expect("a row");
            std::thread::sleep(2 * BELIEVED);
            assert_eq!(known(), None);
        }
        // What was read before a commit and kept after it does not come back.
        fresh.keep(generation, "a".to_string(), 1);
        assert_eq!(known(), None);
    }
}
