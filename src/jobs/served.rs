//! Jobs that `refit serve` works on itself, in its own process: found, claimed under a lease, and worked on a few of each project at
//! once, so that however slow one of them is the others get on.

use super::batch::Endpoint;
use super::heart::LEASE;
use super::worker::RESUMABLE;
use crate::store::jobs::{self, Lease};
use crate::store::{Db, Store, StoreError};
use crate::types::blocking::blocking;
use crate::types::ids::new_id;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pause between looks for work that nobody announced: jobs whose worker died.
const LOOK: Duration = Duration::from_secs(1);

/// One kind of such work.
pub(super) trait Served: Send + Sync + 'static {
    /// The word in the job's row.
    const KIND: &'static str;
    /// Jobs that are worked on at once, and those of one project among them.
    const AT_ONCE: (usize, usize);

    /// Where the jobs are.
    fn store(&self) -> &Store;

    /// How many jobs are being worked on, and what says that there is another.
    fn state(&self) -> (&AtomicUsize, &Notify);

    /// Queued jobs, oldest first: `(job, project)`.
    fn queued(db: &dyn Db) -> Result<Vec<(String, String)>, StoreError>;

    /// Works on a claimed job, to its end or to where another worker goes on.
    fn work(self: Arc<Self>, on: Claimed) -> BoxFuture<'static, ()>;

    /// What is to be done now and then.
    fn look_after(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A job that was claimed.
pub(super) struct Claimed {
    pub(super) job: String,
    pub(super) owner: String,
    pub(super) endpoint: Arc<dyn Endpoint>,
    /// Becomes true when the server stops.
    pub(super) stop: watch::Receiver<bool>,
}

/// Projects of the jobs that are being worked on, by the owner of the job.
type Active = HashMap<String, String>;

/// Works until `stop` becomes true, then lets the calls on their way end and leaves the rest to the next worker. Begins with what an
/// earlier server of this data directory left: the caller holds the `serve` lock.
pub(super) async fn serve<S: Served>(desk: Arc<S>, endpoint: Arc<dyn Endpoint>, mut stop: watch::Receiver<bool>) {
    let store = desk.store().clone();
    if let Err(failure) = blocking(move || Ok(jobs::take_over(store.db.as_ref(), S::KIND)?)).await {
        // Their leases run out anyway.
        tracing::warn!(kind = S::KIND, %failure, "jobs of an earlier server are left to their leases");
    }
    let (mut tasks, mut active) = (JoinSet::new(), Active::new());
    let mut looked = Instant::now();
    let (running, woken) = desk.state();
    while !*stop.borrow() {
        desk.look_after().await;
        // The whole process stood still: its own jobs are not taken for dead.
        let stalled = looked.elapsed() > LEASE / 2;
        looked = Instant::now();
        running.store(active.len(), Ordering::Relaxed);
        while active.len() < S::AT_ONCE.0 {
            let owner = format!("serve-{}-{}", std::process::id(), new_id("worker"));
            let Some((job, project)) = claim::<S>(desk.store(), &owner, &active, stalled).await else { break };
            active.insert(owner.clone(), project);
            running.store(active.len(), Ordering::Relaxed);
            let work = desk.clone().work(Claimed { job, owner: owner.clone(), endpoint: endpoint.clone(), stop: stop.clone() });
            tasks.spawn(async move {
                if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                    tracing::error!(owner, kind = S::KIND, "the work on a job panicked");
                }
                owner
            });
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => drop(ended.map(|owner| active.remove(&owner))),
            () = woken.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// A job to work on, and its project.
async fn claim<S: Served>(store: &Store, owner: &str, active: &Active, stalled: bool) -> Option<(String, String)> {
    let (store, owner, active) = (store.clone(), owner.to_string(), active.clone());
    let claimed = blocking(move || {
        let db = store.db.as_ref();
        let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        if stalled {
            active.keys().try_for_each(|owner| jobs::renew(db, owner, lease_ms))?;
        }
        jobs::reap(db, RESUMABLE, i64::MAX)?;
        let has_room = |project: &String| active.values().filter(|busy| *busy == project).count() < S::AT_ONCE.1;
        for (job, project) in S::queued(db)?.into_iter().filter(|(_, project)| has_room(project)) {
            if jobs::claim_one(db, Lease { job: &job, owner: &owner, lease_ms })?.is_some() {
                return Ok(Some((job, project)));
            }
        }
        Ok(None)
    });
    claimed.await.unwrap_or_else(|failure| {
        tracing::warn!(kind = S::KIND, %failure, "cannot look for jobs");
        None
    })
}

/// Ready when the flag is true, or when nobody can raise it any more.
pub(super) async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}
