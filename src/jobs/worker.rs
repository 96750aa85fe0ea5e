//! The worker process: the same binary, started at low priority for one job, so that running out of memory ends the job and not the
//! gateway. The parent watches; the job goes on when the parent goes away.

use super::JobError;
use crate::store::jobs::{self, End, JobRecord, Lease};
use crate::store::{Store, StoreError};
use crate::types::{Code, Failure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A worker that is silent this long is taken for dead.
const LEASE_MS: i64 = 30_000;
const HEARTBEAT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(200);

/// Kinds that `refit serve` works on in its own process.
const SERVED: &[&str] = &[crate::store::batches::JOB_KIND, crate::store::openai_evals::JOB_KIND];

/// Kinds that are queued again by themselves when their worker died. The others are resumed by somebody who knows why they ended.
pub const RESUMABLE: &[&str] = &[crate::store::batches::JOB_KIND, crate::store::openai_evals::JOB_KIND, crate::store::fine_tunes::JOB_KIND];

/// The hidden verb that runs a worker.
pub const WORKER_VERB: &str = "job-worker";

/// One kind of work.
pub trait Job {
    /// The word in the job's row.
    const KIND: &'static str;

    /// Does the work that `spec` describes; reports through the handle and stops when it says so.
    ///
    /// # Errors
    /// [`JobError::Cancelled`] after stopping as asked; anything else fails the job with its message.
    fn run(store: &Store, spec: &Value, handle: &Handle) -> Result<Value, Failure>;
}

/// A running job's line to its row: the newest progress goes out with every heartbeat.
pub struct Handle {
    /// The job.
    pub id: String,
    /// Who works on it.
    pub owner: String,
    progress: Mutex<Value>,
    cancelled: AtomicBool,
}

impl Handle {
    /// Puts the newest progress in place; cheap, may be called at every step.
    pub fn progress(&self, progress: Value) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// Whether the work should stop: somebody asked for it, or the lease was lost.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Runs a queued job in this process, to its end. Returns `false` when it is not queued any more: nothing was done then.
///
/// # Errors
/// The work's own error after it was written to the job's row.
pub fn work(store: &Store, id: &str) -> Result<bool, Failure> {
    let owner = format!("{}{}", owner_prefix(std::process::id()), crate::types::time::now_ms());
    let lease = Lease { job: id, owner: &owner, lease_ms: LEASE_MS };
    let db = store.db.as_ref();
    if SERVED.contains(&jobs::get(db, id)?.kind.as_str()) {
        return Err(JobError::Served(id.to_string()).into());
    }
    let Some(job) = jobs::claim_one(db, lease)? else { return Ok(false) };
    let handle = Handle { id: id.to_string(), owner: owner.clone(), progress: Mutex::new(job.progress), cancelled: AtomicBool::new(false) };
    let handle = Arc::new(handle);
    let heart = Heart::start(store.clone(), handle.clone(), owner.clone());
    let outcome = run_kind(&job.kind, store, &job.spec, &handle);
    drop(heart);
    let progress = handle.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Err(error) = jobs::heartbeat(db, lease, &progress) {
        tracing::warn!(%error, "the last heartbeat could not be stored");
    }
    match outcome {
        Ok(result) => {
            jobs::end(db, lease, &End::Succeeded(result))?;
            // Only now: whoever is killed before it goes on from the newest checkpoint.
            let _ = std::fs::remove_dir_all(store.directory().join("jobs").join(id));
            Ok(true)
        }
        Err(failure) if failure.code() == Code::CANCELLED => {
            jobs::end(db, lease, &End::Cancelled)?;
            Ok(true)
        }
        Err(failure) => {
            jobs::end(db, lease, &End::Failed(failure.to_string()))?;
            Err(failure)
        }
    }
}

/// How the owner of a job is named; `nice` replaces itself with the worker, so the parent knows its number.
fn owner_prefix(pid: u32) -> String {
    format!("pid-{pid}-")
}

/// What a worker writes to its stderr.
fn worker_log(data_dir: &Path, id: &str) -> PathBuf {
    data_dir.join("jobs").join(id).join("worker.log")
}

/// The registry of kinds.
fn run_kind(kind: &str, store: &Store, spec: &Value, handle: &Handle) -> Result<Value, Failure> {
    match kind {
        #[cfg(feature = "local")]
        super::tune::Tune::KIND => super::tune::Tune::run(store, spec, handle),
        #[cfg(feature = "local")]
        super::tune::sweep::Sweep::KIND => super::tune::sweep::Sweep::run(store, spec, handle),
        #[cfg(feature = "local")]
        super::tune::files::FineTune::KIND => super::tune::files::FineTune::run(store, spec, handle),
        other => {
            let _ = (store, spec, handle);
            Err(JobError::Kind(other.to_string()).into())
        }
    }
}

/// Keeps the lease alive from a thread of its own: a training step may take longer than a lease.
struct Heart {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Heart {
    fn start(store: Store, handle: Arc<Handle>, owner: String) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let watched = stop.clone();
        let thread = std::thread::spawn(move || {
            let (stopped, signal) = &*watched;
            let mut guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                let progress = handle.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let lease = Lease { job: &handle.id, owner: &owner, lease_ms: LEASE_MS };
                match jobs::heartbeat(store.db.as_ref(), lease, &progress) {
                    Ok(cancel) => handle.cancelled.store(cancel, Ordering::Relaxed),
                    Err(StoreError::Conflict(_)) => handle.cancelled.store(true, Ordering::Relaxed),
                    Err(error) => tracing::warn!(%error, "a heartbeat could not be stored"),
                }
                guard = signal.wait_timeout(guard, HEARTBEAT).map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
            }
        });
        Heart { stop, thread: Some(thread) }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in the heartbeat was reported by the panic hook; the job's own outcome counts.
            let _ = thread.join();
        }
    }
}

/// Starts a worker process for a queued job, in a process group of its own: a Ctrl-C at the terminal reaches the parent, which asks
/// the job to stop in good order.
///
/// # Errors
/// [`JobError::Spawn`].
pub fn spawn(data_dir: &Path, id: &str) -> Result<Child, JobError> {
    let program = std::env::current_exe().map_err(JobError::Spawn)?;
    let started = worker_command(Command::new("nice").args(["-n", "10"]).arg(&program), data_dir, id);
    match started {
        // No `nice` on this system: at normal priority then.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => worker_command(&mut Command::new(&program), data_dir, id),
        other => other,
    }
    .map_err(JobError::Spawn)
}

fn worker_command(command: &mut Command, data_dir: &Path, id: &str) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let data_dir = std::path::absolute(data_dir)?;
    let log = worker_log(&data_dir, id);
    std::fs::create_dir_all(log.parent().unwrap_or(&data_dir))?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.args([WORKER_VERB, id, "--data-dir"]).arg(&data_dir);
    // candle's own thread pool spins between operations; the trainer brings its threads, so candle keeps to one.
    command.env("CANDLE_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn()
}

/// Watches a worker until its job ended. `watch` sees the row a few times a second and answers whether to go on; after its first
/// `false` the job is asked to stop.
///
/// # Errors
/// What the database says. A worker that died leaves a failed job, which can be resumed.
pub fn wait(store: &Store, id: &str, mut child: Child, watch: &mut dyn FnMut(&JobRecord) -> bool) -> Result<JobRecord, Failure> {
    let db = store.db.as_ref();
    let mut asked = false;
    loop {
        let exited = child.try_wait().map_err(JobError::Spawn)?;
        let job = jobs::get(db, id)?;
        if !watch(&job) && !asked {
            jobs::request_cancel(db, id)?;
            asked = true;
        }
        match exited {
            None => std::thread::sleep(POLL),
            Some(status) => return settle(store, id, (child.id(), status)),
        }
    }
}

/// The job of a worker that is gone: ended by it, or failed now.
pub(super) fn settle(store: &Store, id: &str, (pid, status): (u32, ExitStatus)) -> Result<JobRecord, Failure> {
    let db = store.db.as_ref();
    let job = jobs::get(db, id)?;
    let Some(owner) = job.owner.as_ref().filter(|_| job.status == "running") else { return Ok(job) };
    // Somebody else's worker holds it: ours came too late, and theirs goes on.
    if !owner.starts_with(&owner_prefix(pid)) {
        return Err(JobError::NotQueued(id.to_string()).into());
    }
    {
        let log = worker_log(store.directory(), id);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().rev().find(|line| line.contains("panicked") || line.starts_with("error:")).map(|line| format!(": {line}"));
        let reason = format!("the worker process ended without finishing ({status}){}", last.unwrap_or_default());
        jobs::end(db, Lease { job: id, owner, lease_ms: LEASE_MS }, &End::Failed(reason))?;
    }
    Ok(jobs::get(db, id)?)
}

/// Ends the leases of workers that died unseen; called where jobs are listed or resumed.
///
/// # Errors
/// What the database says.
pub fn reap(store: &Store) -> Result<(), Failure> {
    jobs::reap(store.db.as_ref(), RESUMABLE, i64::MAX)?;
    Ok(())
}
