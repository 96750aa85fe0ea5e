//! What keeps a job's lease while `refit serve` works on it, from a task of its own: checking a large file or writing the results may
//! take longer than a lease. It also stores how far the work is, and learns when to stop.

use crate::access::{Caller, Keys};
use crate::store::jobs::{self, Lease};
use crate::store::{Db, Store, StoreError};
use crate::types::blocking::blocking;
use crate::types::{Code, Failure};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A worker that is silent this long is taken for dead.
pub(super) const LEASE: Duration = Duration::from_secs(30);
const BEAT: Duration = Duration::from_secs(1);

/// Why work is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Somebody asked to cancel it.
    Cancelled,
    /// The key that it acts for was revoked.
    Revoked,
    /// Somebody else holds the lease.
    Lost,
}

/// How far the work is.
pub(super) trait Note: Send + Sync {
    /// For the job: `{"done": …, "total": …}`.
    fn progress(&self) -> Value;

    /// Stores it where else it is looked for.
    fn keep(&self, _db: &dyn Db) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Stops beating on drop.
pub(super) struct Heart {
    told: watch::Receiver<Option<Told>>,
    caller: watch::Receiver<Option<Caller>>,
    task: JoinHandle<()>,
}

/// Whose heart it is.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) store: Store,
    pub(super) keys: Keys,
    pub(super) job: String,
    pub(super) owner: String,
}

impl Holder {
    /// The hold on the job.
    pub(super) fn lease(&self) -> Lease<'_> {
        Lease { job: &self.job, owner: &self.owner, lease_ms: i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX) }
    }
}

impl Heart {
    /// Begins with a first beat, so that nothing is spent on work whose state cannot be stored. `api_key` is whom it acts for.
    pub(super) async fn start(holder: Holder, api_key: &str, note: Arc<dyn Note>) -> Result<Self, Failure> {
        let key = api_key.to_string();
        let first = beat(&holder, &key, &note).await?;
        let ((teller, told), (known, caller)) = (watch::channel(first.why), watch::channel(first.caller));
        let task = tokio::spawn(async move {
            let mut last = Instant::now();
            while *teller.borrow() != Some(Told::Lost) {
                tokio::time::sleep(BEAT).await;
                match beat(&holder, &key, &note).await {
                    Ok(Beat { why, caller }) => {
                        last = Instant::now();
                        if caller.is_some() {
                            known.send_replace(caller);
                        }
                        if why.is_some() {
                            teller.send_if_modified(|told| std::mem::replace(told, why) != why);
                        }
                    }
                    Err(failure) if last.elapsed() < LEASE => tracing::warn!(%failure, "a job's state could not be stored"),
                    Err(_) => drop(teller.send_replace(Some(Told::Lost))),
                }
            }
        });
        Ok(Heart { told, caller, task })
    }

    /// Why to stop, when there is a reason.
    pub(super) fn told(&self) -> watch::Receiver<Option<Told>> {
        self.told.clone()
    }

    /// Whom the work acts for, as of the newest beat: a key's names and limits may change meanwhile. None where its key had ended
    /// before the first.
    pub(super) fn caller(&self) -> watch::Receiver<Option<Caller>> {
        self.caller.clone()
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a beat found.
struct Beat {
    /// Why to stop.
    why: Option<Told>,
    caller: Option<Caller>,
}

async fn beat(holder: &Holder, api_key: &str, note: &Arc<dyn Note>) -> Result<Beat, Failure> {
    let stopping = |why| Ok(Beat { why: Some(why), caller: None });
    let (holder, key, note) = (holder.clone(), api_key.to_string(), note.clone());
    let beaten = blocking(move || {
        let db = holder.store.db.as_ref();
        let cancelled = match jobs::heartbeat(db, holder.lease(), &note.progress()) {
            Err(StoreError::Conflict(_)) => return stopping(Told::Lost),
            other => other?,
        };
        note.keep(db)?;
        if cancelled {
            return stopping(Told::Cancelled);
        }
        let caller = holder.keys.caller_of(&key)?;
        Ok(Beat { why: caller.is_none().then_some(Told::Revoked), caller })
    });
    // Whatever else goes wrong may pass.
    beaten.await.map_err(|failure| Failure::new(Code::STORAGE, failure.to_string()))
}
