//! Finds batches to work on inside `refit serve`, and tidies up what earlier servers left.

use super::work::Work;
use super::{Batches, Endpoint, blocking};
use crate::jobs::served::{self, Claimed, Served};
use crate::store::batches::{self, JOB_KIND};
use crate::store::{Db, Store, StoreError, files};
use crate::types::Failure;
use futures_util::future::BoxFuture;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Pause between looks for expired files.
const SWEEP: Duration = Duration::from_secs(60);

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

    /// Works until `stop` becomes true, then lets the lines on their way end and leaves the rest to the next worker. The caller holds
    /// the `serve` lock.
    pub async fn run(self: Arc<Self>, endpoint: Arc<dyn Endpoint>, stop: watch::Receiver<bool>) {
        served::serve(self, endpoint, stop).await;
    }

    async fn sweep(&self) {
        let store = self.store.clone();
        if let Err(failure) = blocking(move || Ok(files::sweep(&store)?)).await {
            tracing::warn!(%failure, "expired files could not be removed");
        }
    }
}

impl Served for Batches {
    const KIND: &'static str = JOB_KIND;
    /// All share the slots for lines.
    const AT_ONCE: (usize, usize) = (64, 8);

    fn store(&self) -> &Store {
        &self.store
    }

    fn state(&self) -> (&AtomicUsize, &Notify) {
        (&self.running, &self.woken)
    }

    fn queued(db: &dyn Db) -> Result<Vec<(String, String)>, StoreError> {
        batches::queued(db)
    }

    fn work(self: Arc<Self>, on: Claimed) -> BoxFuture<'static, ()> {
        let Claimed { job, owner, endpoint, stop } = on;
        Box::pin(Work::new(self, endpoint, (job, owner), stop).run())
    }

    fn look_after(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let due = {
                let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
                let due = swept.is_none_or(|swept| swept.elapsed() >= SWEEP);
                if due {
                    *swept = Some(Instant::now());
                }
                due
            };
            if due {
                self.sweep().await;
            }
        })
    }
}
