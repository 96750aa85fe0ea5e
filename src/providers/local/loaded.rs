//! Things that are loaded once each, by digest, and of which only so many are kept: the one unused longest goes first. Whoever still
//! works with it keeps it until then.

use super::{Arc, Digest, Failure, blocking};
use std::sync::{Mutex, PoisonError};
use tokio::sync::OnceCell;

/// The digest, and what is loaded or being loaded.
type Entry<T> = (Digest, Arc<OnceCell<Arc<T>>>);

/// Loaded things, the last used last.
pub(super) struct Loaded<T> {
    entries: Mutex<Vec<Entry<T>>>,
    most: usize,
}

impl<T: Send + Sync + 'static> Loaded<T> {
    /// Nothing yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Loaded { entries: Mutex::new(Vec::new()), most: most.max(1) }
    }

    /// The thing with a digest, loaded where it is not there; callers that come meanwhile wait for the one load.
    pub(super) async fn get(&self, digest: Digest, load: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<Arc<T>, Failure> {
        let cell = self.cell(digest);
        let loaded = cell.get_or_try_init(|| async { blocking(load).await.map(Arc::new) }).await?;
        Ok(loaded.clone())
    }

    fn cell(&self, digest: Digest) -> Arc<OnceCell<Arc<T>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.iter().position(|(known, _)| *known == digest).map(|at| entries.remove(at));
        let entry = known.unwrap_or_else(|| (digest, Arc::default()));
        let cell = entry.1.clone();
        entries.push(entry);
        while entries.len() > self.most {
            entries.remove(0);
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_longest_unused_goes_first() {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
        let loaded: Loaded<usize> = Loaded::new(2);
        let loads = Arc::new(AtomicUsize::new(0));
        let get = |name: &str| {
            let loads = loads.clone();
            let load = move || Ok(loads.fetch_add(1, Ordering::Relaxed));
            *runtime.block_on(loaded.get(Digest::of(name), load)).expect("loads")
        };
        // a, b, a again (kept), c puts out b, a is still there, b is loaded anew.
        assert_eq!(["a", "b", "a", "c", "a", "b"].map(get), [0, 1, 0, 2, 0, 3]);
    }
}
