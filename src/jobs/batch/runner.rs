//! Finds batches to work on inside `refit serve`, and tidies up what earlier servers left.

use super::heart::LEASE;
use super::work::Work;
use super::{Batches, Endpoint, blocking};
use crate::jobs::worker::RESUMABLE;
use crate::store::batches::{self, JOB_KIND};
use crate::store::files;
use crate::store::jobs::{self, Lease};
use crate::types::Failure;
use crate::types::ids::new_id;
use futures_util::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Pause between looks for work that nobody announced: batches whose worker died.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between looks for expired files.
const SWEEP: Duration = Duration::from_secs(60);
/// Batches that are worked on at once, and those of one project among them: however slow its provider, the others get on. All share
/// the slots for lines.
const AT_ONCE: usize = 64;
const AT_ONCE_OF_A_PROJECT: usize = 8;

/// Projects of the batches that are being worked on, by the owner of the job.
type Active = HashMap<String, String>;

impl Batches {
    /// Removes what a killed server left of files and batches. For whoever holds the `serve` lock, before it takes requests. Blocking.
    ///
    /// # Errors
    /// What the database or the file system says.
    pub fn tidy(&self) -> Result<(), Failure> {
        files::tidy(&self.store)?;
        for path in files::entries(&self.directory())? {
            let id = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !batches::is_unfinished(self.store.db.as_ref(), id)? {
                files::remove_any(&path)?;
            }
        }
        Ok(())
    }

    /// Where running batches keep their answers, a directory each.
    pub(super) fn directory(&self) -> PathBuf {
        self.store.directory().join("batches")
    }

    /// Works until `stop` becomes true, then lets the lines on their way end and leaves the rest to the next worker. Begins with what
    /// an earlier server of this data directory left: the caller holds the `serve` lock.
    pub async fn run(self: Arc<Self>, endpoint: Arc<dyn Endpoint>, mut stop: watch::Receiver<bool>) {
        let store = self.store.clone();
        if let Err(failure) = blocking(move || Ok(jobs::take_over(store.db.as_ref(), JOB_KIND)?)).await {
            // Their leases run out anyway.
            tracing::warn!(%failure, "batches of an earlier server are left to their leases");
        }
        let (mut tasks, mut active) = (JoinSet::new(), Active::new());
        let (mut swept, mut looked) = (Instant::now() - SWEEP, Instant::now());
        while !*stop.borrow() {
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep().await;
            }
            // The whole process stood still: its own batches are not taken for dead.
            let stalled = looked.elapsed() > LEASE / 2;
            looked = Instant::now();
            self.running.store(active.len(), Ordering::Relaxed);
            while active.len() < AT_ONCE {
                let owner = format!("serve-{}-{}", std::process::id(), new_id("worker"));
                let Some((job, project)) = self.claim(&owner, &active, stalled).await else { break };
                active.insert(owner.clone(), project);
                self.running.store(active.len(), Ordering::Relaxed);
                let work = Work::new(self.clone(), endpoint.clone(), (job, owner.clone()), stop.clone());
                tasks.spawn(async move {
                    if AssertUnwindSafe(work.run()).catch_unwind().await.is_err() {
                        tracing::error!(owner, "the work on a batch panicked");
                    }
                    owner
                });
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => drop(ended.map(|owner| active.remove(&owner))),
                () = self.woken.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn sweep(&self) {
        let store = self.store.clone();
        if let Err(failure) = blocking(move || Ok(files::sweep(&store)?)).await {
            tracing::warn!(%failure, "expired files could not be removed");
        }
    }

    /// A job to work on, and its project.
    async fn claim(&self, owner: &str, active: &Active, stalled: bool) -> Option<(String, String)> {
        let (store, owner, active) = (self.store.clone(), owner.to_string(), active.clone());
        let claimed = blocking(move || {
            let db = store.db.as_ref();
            let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
            if stalled {
                active.keys().try_for_each(|owner| jobs::renew(db, owner, lease_ms))?;
            }
            jobs::reap(db, RESUMABLE, i64::MAX)?;
            let has_room = |project: &String| active.values().filter(|busy| *busy == project).count() < AT_ONCE_OF_A_PROJECT;
            for (job, project) in batches::queued(db)?.into_iter().filter(|(_, project)| has_room(project)) {
                if jobs::claim_one(db, Lease { job: &job, owner: &owner, lease_ms })?.is_some() {
                    return Ok(Some((job, project)));
                }
            }
            Ok(None)
        });
        claimed.await.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "cannot look for batches");
            None
        })
    }
}
