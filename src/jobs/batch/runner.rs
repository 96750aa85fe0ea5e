//! Works on batches inside `refit serve`: claims them under a lease, checks the file, answers its lines, and writes the files. What
//! stops it (a kill, a restart, a lost lease) costs at most the lines that were on their way.

use super::check::{self, Line, Lines, Problem};
use super::line::{Asker, Outcome};
use super::results::Results;
use super::{Batches, Endpoint, OUTPUT_PURPOSE, endpoint};
use crate::access::{Caller, Role};
use crate::jobs::JobError;
use crate::jobs::worker::RESUMABLE;
use crate::store::batches::{self, BatchRow, Counts, JOB_KIND, Status};
use crate::store::files::{FileRow, new_file_id};
use crate::store::jobs::{End, Lease};
use crate::store::{Statement, Store, StoreError, files, jobs, keys};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A worker that is silent this long is taken for dead.
const LEASE_MS: i64 = 30_000;
const BEAT: Duration = Duration::from_secs(1);
/// Pause between looks for work that nobody announced: batches whose worker died.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between looks for expired files.
const SWEEP: Duration = Duration::from_secs(60);
/// Batches that are worked on at once; they share the slots for lines.
const AT_ONCE: usize = 8;
/// How long lines that are on their way get when a batch is cancelled or out of time.
const GRACE: Duration = Duration::from_secs(60);

impl Batches {
    /// Works until `stop` becomes true, then lets the lines on their way end and leaves the rest to the next worker. Begins with what
    /// an earlier server of this data directory left: the caller holds the `serve` lock.
    pub async fn run(self: Arc<Self>, endpoint: Arc<dyn Endpoint>, mut stop: watch::Receiver<bool>) {
        let store = self.store.clone();
        if let Err(failure) = blocking(move || Ok(jobs::take_over(store.db.as_ref(), JOB_KIND)?)).await {
            // Their leases run out anyway.
            tracing::warn!(%failure, "batches of an earlier server are left to their leases");
        }
        let mut tasks = JoinSet::new();
        let mut swept = Instant::now() - SWEEP;
        while !*stop.borrow() {
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep().await;
            }
            while tasks.len() < AT_ONCE {
                let owner = format!("serve-{}-{}", std::process::id(), new_id("worker"));
                let Some(job) = self.claim(&owner).await else { break };
                let work = Work { desk: self.clone(), endpoint: endpoint.clone(), stop: stop.clone(), job, owner };
                tasks.spawn(work.run());
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                _ = tasks.join_next(), if !tasks.is_empty() => {}
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

    /// The id of a job to work on.
    async fn claim(&self, owner: &str) -> Option<String> {
        let (store, owner) = (self.store.clone(), owner.to_string());
        let claimed = blocking(move || {
            let db = store.db.as_ref();
            jobs::reap(db, RESUMABLE, i64::MAX)?;
            Ok(jobs::claim(db, JOB_KIND, &owner, LEASE_MS)?)
        });
        match claimed.await {
            Ok(job) => job.map(|job| job.id),
            Err(failure) => {
                tracing::warn!(%failure, "cannot look for batches");
                None
            }
        }
    }
}

/// Why a batch's lines are no longer asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Every line has its answer.
    Done,
    Cancelled,
    Expired,
    /// The key that made the batch was revoked.
    Revoked,
    /// The server stops; another one goes on.
    Stopped,
    /// Somebody else holds the lease.
    Lost,
}

/// What happened next while lines were asked.
enum Next {
    Beat,
    TimeIsUp,
    Stop,
    Answer(Option<Result<Option<Outcome>, Failure>>),
}

/// One batch being worked on.
struct Work {
    desk: Arc<Batches>,
    endpoint: Arc<dyn Endpoint>,
    stop: watch::Receiver<bool>,
    job: String,
    owner: String,
}

impl Work {
    async fn run(self) {
        let job = self.job.clone();
        if let Err(failure) = self.batch().await {
            // The lease runs out, and the batch is tried again.
            tracing::warn!(job, %failure, "a batch could not be worked on");
        }
    }

    async fn batch(self) -> Result<(), Failure> {
        let (store, job) = (self.desk.store.clone(), self.job.clone());
        let mut batch = blocking(move || Ok(batches::of_job(store.db.as_ref(), &job)?)).await?;
        if batch.status == Status::Validating {
            match self.check(&batch).await? {
                Ok(begun) => batch = begun,
                Err(problems) => return self.refuse(batch, &problems).await,
            }
        }
        if batch.status.is_end() {
            return self.end(End::Succeeded(Value::Null)).await;
        }
        let (directory, total) = (self.directory(&batch), batch.counts.total);
        let mut results = blocking(move || Ok(Results::open(&directory, total)?)).await?;
        let why = match self.answer(&batch, &mut results).await {
            Ok(why) => why,
            // Nothing more is spent on answers that cannot be kept.
            Err(failure) if failure.code() == Code::STORAGE => {
                let message = format!("the answers could not be kept: {failure}");
                let problem = Problem { code: failure.code().name, message, param: None, line: None };
                return self.refuse(batch, &[problem]).await;
            }
            Err(failure) => return Err(failure),
        };
        match why {
            Why::Lost => Ok(()),
            Why::Stopped => self.release(results.counts, batch.id).await,
            ended => self.finish(batch, results, ended).await,
        }
    }

    /// Reads the whole file once; a good one begins.
    async fn check(&self, batch: &BatchRow) -> Result<Result<BatchRow, Vec<Problem>>, Failure> {
        let (store, batch, limit) = (self.desk.store.clone(), batch.clone(), self.desk.max_line_bytes);
        blocking(move || {
            let db = store.db.as_ref();
            let (lines, _) = lines(&store, &batch, limit)?;
            let checked = check::file(lines, known(&batch)).map_err(|error| unreadable(&error))?;
            let checked = match checked {
                Ok(checked) => checked,
                Err(problems) => return Ok(Err(problems)),
            };
            let counts = Counts { total: checked.lines, ..Counts::default() };
            let begun = db.batch(&[
                batches::advancing(&batch.id, &[Status::Validating], Status::InProgress),
                batches::naming_model(&batch.id, checked.model.as_deref()),
                batches::counting(&batch.id, &counts),
            ]);
            match begun {
                // Somebody cancelled it meanwhile.
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(Ok(batches::get(db, &batch.project, &batch.id)?))
        })
        .await
    }

    /// Asks the lines that have no answer yet.
    async fn answer(&self, batch: &BatchRow, results: &mut Results) -> Result<Why, Failure> {
        let Some(caller) = self.caller(batch).await? else { return Ok(Why::Revoked) };
        let (halter, halt) = watch::channel(false);
        let asker =
            Asker { endpoint: self.endpoint.clone(), caller, path: known(batch), slots: self.desk.slots.clone(), halt: halt.clone() };
        let halted = async move {
            let mut halt = halt;
            raised(&mut halt).await;
        };
        let waiting = self.waiting(batch, results.done())?.take_until(Box::pin(halted));
        let asked = waiting.map(move |line| {
            let asker = asker.clone();
            async move {
                match line {
                    Ok(line) => Ok(asker.ask(line).await),
                    Err(failure) => Err(failure),
                }
            }
        });
        let mut answers = std::pin::pin!(asked.buffer_unordered(self.desk.concurrency));
        let (mut beat, mut stop) = (tokio::time::interval(BEAT), self.stop.clone());
        let left = u64::try_from(batch.expires_at - now_ms()).unwrap_or(0);
        let (mut why, mut until) = (None, Instant::now() + Duration::from_millis(left));
        loop {
            let next = tokio::select! {
                biased;
                _ = beat.tick() => Next::Beat,
                () = tokio::time::sleep_until(until) => Next::TimeIsUp,
                () = raised(&mut stop), if why.is_none() => Next::Stop,
                answer = answers.next() => Next::Answer(answer),
            };
            let halted = match next {
                Next::Beat => self.beat(batch, results.counts).await?,
                Next::TimeIsUp => match why {
                    None => Some(Why::Expired),
                    // Their time to end is over, too.
                    Some(why) => return Ok(why),
                },
                Next::Stop => Some(Why::Stopped),
                Next::Answer(None) => return Ok(why.unwrap_or(Why::Done)),
                Next::Answer(Some(answer)) => {
                    if let Some(outcome) = answer? {
                        results.keep(&outcome)?;
                    }
                    None
                }
            };
            if halted == Some(Why::Lost) {
                return Ok(Why::Lost);
            }
            if let Some(first) = halted.filter(|_| why.is_none()) {
                (why, until) = (Some(first), Instant::now() + GRACE);
                halter.send_replace(true);
            }
        }
    }

    /// The lines without an answer, read as they are asked for.
    fn waiting(
        &self,
        batch: &BatchRow,
        done: HashSet<(u64, u64)>,
    ) -> Result<impl futures_util::Stream<Item = Result<Line, Failure>> + use<>, Failure> {
        let (limit, path) = (self.desk.max_line_bytes, known(batch));
        let (lines, _) = lines(&self.desk.store, batch, limit)?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            for read in lines {
                let parsed = read.map_err(|error| unreadable(&error)).and_then(|(_, bytes)| parsed(&bytes, path, limit));
                let skip = parsed.as_ref().is_ok_and(|line| done.contains(&check::key(&line.custom_id)));
                // Nobody listens any more when the batch was halted.
                if !skip && sender.blocking_send(parsed).is_err() {
                    return;
                }
            }
        });
        Ok(unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
    }

    /// Keeps the lease and the counters; says why to stop, if so.
    async fn beat(&self, batch: &BatchRow, counts: Counts) -> Result<Option<Why>, Failure> {
        let (store, job, owner) = (self.desk.store.clone(), self.job.clone(), self.owner.clone());
        let id = batch.id.clone();
        let beaten = blocking(move || {
            let db = store.db.as_ref();
            let progress = json!({"done": counts.completed + counts.failed, "total": counts.total});
            let cancelled = jobs::heartbeat(db, Lease { job: &job, owner: &owner, lease_ms: LEASE_MS }, &progress)?;
            batches::count(db, &id, &counts)?;
            Ok(cancelled)
        });
        match beaten.await {
            Ok(true) => Ok(Some(Why::Cancelled)),
            Ok(false) => Ok(self.caller(batch).await?.is_none().then_some(Why::Revoked)),
            Err(failure) if failure.code() == Code::CONFLICT => Ok(Some(Why::Lost)),
            Err(failure) => Err(failure),
        }
    }

    /// On whose behalf lines are asked; none when the key was revoked.
    async fn caller(&self, batch: &BatchRow) -> Result<Option<Caller>, Failure> {
        let (store, id) = (self.desk.store.clone(), batch.api_key.clone());
        let key = blocking(move || Ok(keys::by_id(store.db.as_ref(), &id)?)).await?;
        let Some(key) = key.filter(|key| key.revoked_at.is_none()) else { return Ok(None) };
        Ok(Some(Caller { key_id: key.id, project: key.project, role: key.role.parse::<Role>()? }))
    }

    /// Leaves the batch to the next worker.
    async fn release(&self, counts: Counts, id: String) -> Result<(), Failure> {
        let (store, job, owner) = (self.desk.store.clone(), self.job.clone(), self.owner.clone());
        blocking(move || {
            let db = store.db.as_ref();
            batches::count(db, &id, &counts)?;
            Ok(jobs::release(db, Lease { job: &job, owner: &owner, lease_ms: 0 })?)
        })
        .await
    }

    /// Turns the answers into files and ends the batch, all in one transaction; the answers stay where they are until then.
    async fn finish(&self, batch: BatchRow, mut results: Results, why: Why) -> Result<(), Failure> {
        let (store, directory, limit) = (self.desk.store.clone(), self.directory(&batch), self.desk.max_line_bytes);
        let cancelled = blocking(move || {
            let db = store.db.as_ref();
            let mut why = why;
            if why == Why::Done && batch.status != Status::Finalizing {
                match db.batch(&[batches::advancing(&batch.id, &[Status::InProgress], Status::Finalizing)]) {
                    // Somebody asked to cancel it after its last line was answered.
                    Err(StoreError::Conflict(_)) => why = Why::Cancelled,
                    other => other?,
                }
            }
            if why == Why::Expired {
                expire(&store, &batch, &mut results, limit)?;
            }
            let (from, to): (&[Status], _) = match why {
                Why::Done => (&[Status::Finalizing], Status::Completed),
                Why::Expired => (&[Status::InProgress, Status::Cancelling], Status::Expired),
                _ => (&[Status::InProgress, Status::Cancelling], Status::Cancelled),
            };
            let mut more = vec![batches::counting(&batch.id, &results.counts), batches::advancing(&batch.id, from, to)];
            if why == Why::Revoked {
                let message = "the key that made the batch was revoked".into();
                let problem = Problem { code: Code::INVALID_KEY.name, message, param: None, line: None };
                more.push(batches::failing(&batch.id, &json!([problem.to_json()])));
            }
            file(&store, &batch, results, more)?;
            // What is left of it is found by nobody.
            let _ = fs::remove_dir_all(directory);
            Ok(why != Why::Done)
        });
        let end = if cancelled.await? { End::Cancelled } else { End::Succeeded(Value::Null) };
        self.end(end).await
    }

    /// Ends the batch without answers, saying why.
    async fn refuse(&self, batch: BatchRow, problems: &[Problem]) -> Result<(), Failure> {
        let errors: Value = problems.iter().map(Problem::to_json).collect();
        let reason = problems.first().map_or(String::new(), |problem| problem.message.clone());
        let store = self.desk.store.clone();
        blocking(move || {
            let alive = [Status::Validating, Status::InProgress, Status::Cancelling, Status::Finalizing];
            let statements = [batches::advancing(&batch.id, &alive, Status::Failed), batches::failing(&batch.id, &errors)];
            Ok(store.db.batch(&statements)?)
        })
        .await?;
        self.end(End::Failed(reason)).await
    }

    async fn end(&self, end: End) -> Result<(), Failure> {
        let (store, job, owner) = (self.desk.store.clone(), self.job.clone(), self.owner.clone());
        blocking(move || Ok(jobs::end(store.db.as_ref(), Lease { job: &job, owner: &owner, lease_ms: LEASE_MS }, &end)?)).await
    }

    fn directory(&self, batch: &BatchRow) -> PathBuf {
        self.desk.store.directory().join("batches").join(&batch.id)
    }
}

/// The endpoint that a stored batch names.
fn known(batch: &BatchRow) -> &'static str {
    endpoint(&batch.endpoint).unwrap_or(super::ENDPOINTS[0])
}

/// The lines of a batch's file, whose bytes are what was uploaded.
fn lines(store: &Store, batch: &BatchRow, limit: usize) -> Result<(Lines<BufReader<File>>, Digest), Failure> {
    let row = files::get(store.db.as_ref(), &batch.project, &batch.input_file)?;
    let opened = File::open(store.uploads.path(&row.digest)).map_err(|error| unreadable(&error))?;
    Ok((Lines::new(BufReader::with_capacity(1 << 16, opened), limit), row.digest))
}

fn parsed(bytes: &[u8], path: &str, limit: usize) -> Result<Line, Failure> {
    // It was good when the batch began; the limit may have been lowered since.
    check::line(bytes, path, limit).map_err(|problem| Failure::new(Code::INVALID_FILE, problem.message))
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(Code::STORAGE, format!("the input file cannot be read: {error}"))
}

/// Gives every line without an answer its reason.
fn expire(store: &Store, batch: &BatchRow, results: &mut Results, limit: usize) -> Result<(), Failure> {
    let (lines, _) = lines(store, batch, limit)?;
    for read in lines {
        let (_, bytes) = read.map_err(|error| unreadable(&error))?;
        let line = parsed(&bytes, known(batch), limit)?;
        if !results.has(&line.custom_id) {
            let message = format!("the line was not answered within {}", batch.completion_window);
            results.keep(&Outcome::failed(line.custom_id, "batch_expired", message))?;
        }
    }
    Ok(())
}

/// Makes files of the answers, together with the statements that end the batch.
fn file(store: &Store, batch: &BatchRow, results: Results, mut more: Vec<Statement>) -> Result<(), Failure> {
    let now = now_ms();
    let row = |kind: &str| FileRow {
        id: new_file_id(),
        project: batch.project.clone(),
        filename: format!("{}_{kind}.jsonl", batch.id),
        purpose: OUTPUT_PURPOSE.into(),
        digest: Digest::of(b""),
        size_bytes: 0,
        created_by: batch.api_key.clone(),
        created_at: now,
        expires_at: batch.output_expires_s.map(|seconds| now + seconds * 1000),
    };
    let (mut made, mut ids) = (Vec::new(), [None, None]);
    for ((path, kind), id) in results.finish()?.into_iter().zip(["output", "error"]).zip(&mut ids) {
        let Some(path) = path else { continue };
        let row = row(kind);
        *id = Some(row.id.clone());
        made.push((row, linked(store, &path)?));
    }
    more.push(batches::filing(&batch.id, ids[0].as_deref(), ids[1].as_deref()));
    files::create(store, made, more)?;
    Ok(())
}

/// A second name for a file, to be adopted while the first stays.
fn linked(store: &Store, path: &Path) -> Result<PathBuf, StoreError> {
    let temporary = store.uploads.incoming().join(new_id("answers"));
    let linked = fs::hard_link(path, &temporary).or_else(|_| fs::copy(path, &temporary).map(drop));
    linked.map(|()| temporary.clone()).map_err(|source| StoreError::Io { path: temporary, source })
}

/// Ready when the flag is true, or when nobody can raise it any more.
async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(JobError::Broken(error.to_string()).into()))
}
