//! The work of `refit serve` on fine-tunes: one training at a time, each in a worker process of its own that outlives the server. A worker that
//! died with its server is found by its lease, and its training goes on from the newest checkpoint.

use super::FineTunes;
use crate::jobs::worker;
use crate::store::job_events::{self, JobEvent};
use crate::store::{fine_tunes as rows, jobs};
use crate::types::Failure;
use crate::types::blocking::blocking;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Pause between looks for work that nobody announced, and at the worker.
const LOOK: Duration = Duration::from_millis(500);
/// How often a training may be begun without an end, pauses counted.
const MAX_ATTEMPTS: i64 = 20;

impl FineTunes {
    /// Starts workers until `stop` becomes true. A worker that runs then goes on; the next server of this data directory finds it.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let desk = self.clone();
            if let Err(failure) = blocking(move || desk.look()).await {
                tracing::warn!(%failure, "cannot look for fine-tuning jobs");
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = self.woken.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Sees to the worker that runs, or starts one. Blocking.
    fn look(&self) -> Result<(), Failure> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((job, child)) = worker.as_mut() {
            let Ok(Some(status)) = child.try_wait() else { return Ok(()) };
            let died = jobs::get(self.db(), job)?.status == "running";
            let settled = worker::settle(&self.store, job, (child.id(), status));
            *worker = None;
            let ended = settled?;
            if ended.status == "queued" && !status.success() {
                rows::give_up(self.db(), &ended.id, "its worker process ended before it began; jobs/<id>/worker.log says why")?;
            }
            // What went wrong in good order was told by the worker.
            if let Some(error) = ended.error.as_ref().filter(|_| died) {
                job_events::append(self.db(), &ended.id, &[JobEvent::message("error", error.clone())])?;
            }
        }
        // Of another process: an earlier server's, or somebody's `refit tune resume`.
        if rows::running(self.db())? > 0 {
            return Ok(());
        }
        for job in rows::queued(self.db())? {
            if job.attempts >= MAX_ATTEMPTS {
                rows::give_up(self.db(), &job.id, &format!("it was begun {} times and did not end", job.attempts))?;
                continue;
            }
            *worker = Some((job.id.clone(), worker::spawn(self.store.directory(), &job.id)?));
            break;
        }
        Ok(())
    }
}
