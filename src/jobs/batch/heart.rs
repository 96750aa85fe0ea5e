//! What keeps a batch's lease while it is worked on, from a task of its own: checking a large file or writing the results may take
//! longer than a lease. It also stores the counters, and learns when to stop.

use super::blocking;
use super::work::Why;
use crate::access::{Caller, Keys};
use crate::store::batches::{self, BatchRow, Counts};
use crate::store::jobs::{self, Lease};
use crate::store::{Store, StoreError};
use crate::types::{Code, Failure};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A worker that is silent this long is taken for dead.
pub(super) const LEASE: Duration = Duration::from_secs(30);
const BEAT: Duration = Duration::from_secs(1);

/// Stops beating on drop.
pub(super) struct Heart {
    told: watch::Receiver<Option<Why>>,
    caller: watch::Receiver<Option<Caller>>,
    counts: Arc<Mutex<Option<Counts>>>,
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
    /// Begins with a first beat, so that nothing is spent on a batch whose state cannot be stored.
    pub(super) async fn start(holder: Holder, batch: &BatchRow) -> Result<Self, Failure> {
        let counts = Arc::new(Mutex::new(None));
        let first = beat(&holder, batch, None).await?;
        let ((teller, told), (known, caller)) = (watch::channel(first.why), watch::channel(first.caller));
        let (batch, counted) = (batch.clone(), counts.clone());
        let task = tokio::spawn(async move {
            let mut last = Instant::now();
            while *teller.borrow() != Some(Why::Lost) {
                tokio::time::sleep(BEAT).await;
                let counts = *lock(&counted);
                match beat(&holder, &batch, counts).await {
                    Ok(Beat { why, caller }) => {
                        last = Instant::now();
                        if caller.is_some() {
                            known.send_replace(caller);
                        }
                        if why.is_some() {
                            teller.send_if_modified(|told| std::mem::replace(told, why.clone()) != why);
                        }
                    }
                    Err(failure) if last.elapsed() < LEASE => tracing::warn!(%failure, "a batch's state could not be stored"),
                    Err(_) => drop(teller.send_replace(Some(Why::Lost))),
                }
            }
        });
        Ok(Heart { told, caller, counts, task })
    }

    /// Why to stop, when there is a reason.
    pub(super) fn told(&self) -> watch::Receiver<Option<Why>> {
        self.told.clone()
    }

    /// Whom the batch acts for, as of the newest beat: a key's names and limits may change meanwhile. None where its key had ended
    /// before the first.
    pub(super) fn caller(&self) -> watch::Receiver<Option<Caller>> {
        self.caller.clone()
    }

    /// Puts the newest counters in place.
    pub(super) fn count(&self, counts: Counts) {
        *lock(&self.counts) = Some(counts);
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(counts: &Mutex<Option<Counts>>) -> std::sync::MutexGuard<'_, Option<Counts>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a beat found.
struct Beat {
    /// Why to stop.
    why: Option<Why>,
    caller: Option<Caller>,
}

async fn beat(holder: &Holder, batch: &BatchRow, counts: Option<Counts>) -> Result<Beat, Failure> {
    let stopping = |why| Ok(Beat { why: Some(why), caller: None });
    let (holder, id, key) = (holder.clone(), batch.id.clone(), batch.api_key.clone());
    let beaten = blocking(move || {
        let db = holder.store.db.as_ref();
        let progress = counts.map(|counts| json!({"done": counts.completed + counts.failed, "total": counts.total}));
        let cancelled = match jobs::heartbeat(db, holder.lease(), &progress.unwrap_or_else(|| json!({}))) {
            Err(StoreError::Conflict(_)) => return stopping(Why::Lost),
            other => other?,
        };
        if let Some(counts) = counts {
            batches::count(db, &id, &counts)?;
        }
        if cancelled {
            return stopping(Why::Cancelled);
        }
        let caller = holder.keys.caller_of(&key)?;
        Ok(Beat { why: caller.is_none().then_some(Why::Revoked), caller })
    });
    // Whatever else goes wrong may pass.
    beaten.await.map_err(|failure| Failure::new(Code::STORAGE, failure.to_string()))
}
