//! One call for requests that are the same and under way at once: the first asks, the others wait for its reply.

use super::Kept;
use super::key::Key;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

const SHARDS: usize = 16;

type Landing = watch::Receiver<Option<Kept>>;

/// Calls that are under way.
pub(super) struct Flights {
    shards: [Mutex<HashMap<Key, Landing>>; SHARDS],
}

/// What a request does next.
pub(super) enum Joined {
    /// It asks, and the others wait for it.
    Lead(Lead),
    /// It waits for the one that asks.
    Wait(Waiting),
}

/// The one that asks. When it is dropped before it [landed](Lead::land), one of those that wait asks in its place.
pub(super) struct Lead {
    flights: Arc<Flights>,
    key: Key,
    sender: watch::Sender<Option<Kept>>,
}

/// One that waits.
pub(super) struct Waiting(Landing);

impl Flights {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Flights { shards: std::array::from_fn(|_| Mutex::default()) })
    }

    /// Leads, or waits for whoever does.
    pub(super) fn join(self: &Arc<Self>, key: Key) -> Joined {
        let mut shard = self.shard(&key);
        if let Some(landing) = shard.get(&key) {
            return Joined::Wait(Waiting(landing.clone()));
        }
        let (sender, landing) = watch::channel(None);
        shard.insert(key, landing);
        Joined::Lead(Lead { flights: self.clone(), key, sender })
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Landing>> {
        self.shards[key.below(SHARDS)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// Gives the reply to all that wait.
    pub(super) fn land(self, kept: Kept) {
        self.sender.send_replace(Some(kept));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.shard(&self.key).remove(&self.key);
    }
}

impl Waiting {
    /// The reply; none when the one that asked got none.
    pub(super) async fn landed(mut self) -> Option<Kept> {
        let landed = self.0.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}
