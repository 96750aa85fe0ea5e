//! What was read from the database, kept in memory for as long as nobody has committed anything: the hot path's way around a query
//! for each request, without a moment in which a revoked key or a moved release is still served.

use super::db::{Db, StoreError};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

/// Entries kept; beyond them the whole memory starts anew.
const MAX_ENTRIES: usize = 10_000;

/// A memory of values by key, forgotten with the next commit of any process.
pub struct Fresh<K, V> {
    db: Arc<dyn Db>,
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
        Fresh { db, memory }
    }

    /// The generation of what is read from now on; to be taken before reading, and given to [`Fresh::keep`]. Microseconds.
    ///
    /// # Errors
    /// When the database fails.
    pub fn generation(&self) -> Result<u64, StoreError> {
        self.db.generation()
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
    use crate::store::sqlite::BELIEVED;
    use crate::store::{Bound, Bulk, Statement, Store};

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
        // But for our own that changes nothing of what is kept, whatever comes with it.
        let apart = || Bulk { sql: "INSERT INTO x (y) VALUES (?)".into(), columns: 1, values: vec![Bound::Int(2), Bound::Int(3)] };
        let known_after = |commits: &[&dyn Fn()]| {
            fresh.keep(fresh.generation().expect("a generation"), "a".to_string(), 1);
            commits.iter().for_each(|commit| commit());
            std::thread::sleep(2 * BELIEVED);
            known()
        };
        let own = || store.db.batch_apart(&apart(), &[]).expect("two rows");
        let counted = || store.db.batch(&[Statement::new("INSERT INTO x (y) VALUES (4)", [])]).expect("a row");
        let of_another = || assert_eq!(other.db.execute("INSERT INTO x (y) VALUES (5)", &[]).expect("a row"), 1);
        assert_eq!(known_after(&[&own, &own]), Some(1));
        for commits in [[&own as &dyn Fn(), &counted], [&counted, &own], [&own, &of_another], [&of_another, &own]] {
            assert_eq!(known_after(&commits), None);
        }
        // What was read before a commit and kept after it does not come back.
        fresh.keep(generation, "a".to_string(), 1);
        assert_eq!(known(), None);
    }
}
