//! The work on one batch: check the file, answer its lines, write the files. What stops it (a kill, a restart, a lost lease) costs
//! at most the lines that were on their way.

use super::check::{self, Lines, Problem};
use super::line::{Asker, Outcome, Waiting};
use super::results::Results;
use super::{Batches, Endpoint, OUTPUT_PURPOSE, blocking, endpoint};
use crate::jobs::heart::{Heart, Holder, Note, Told};
use crate::jobs::served::raised;
use crate::store::batches::{self, BatchRow, Counts, Status};
use crate::store::files::{FileRow, new_file_id};
use crate::store::jobs::End;
use crate::store::{Db, Statement, Store, StoreError, files, jobs};
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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long lines that are on their way get when a batch is cancelled or out of time.
const GRACE: Duration = Duration::from_secs(60);
/// Longest name of a model that is told with a batch.
const MAX_MODEL_BYTES: usize = 256;

/// Why a batch's lines are no longer asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Every line has its answer.
    Done,
    Cancelled,
    Expired,
    /// The key that made the batch was revoked.
    Revoked,
    /// It cannot go on, and no other try would help.
    Broken(Problem),
    /// The server stops; another one goes on.
    Stopped,
    /// Somebody else holds the lease.
    Lost,
}

impl From<Told> for Why {
    fn from(told: Told) -> Self {
        match told {
            Told::Cancelled => Why::Cancelled,
            Told::Revoked => Why::Revoked,
            Told::Lost => Why::Lost,
        }
    }
}

/// The newest counters of a batch, stored with each beat.
struct Counted {
    batch: String,
    newest: Mutex<Option<Counts>>,
}

impl Counted {
    fn of(batch: &BatchRow) -> Arc<Self> {
        Arc::new(Counted { batch: batch.id.clone(), newest: Mutex::new(None) })
    }

    fn set(&self, counts: Counts) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }

    fn get(&self) -> Option<Counts> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Note for Counted {
    fn progress(&self) -> Value {
        self.get().map_or_else(|| json!({}), |counts| json!({"done": counts.completed + counts.failed, "total": counts.total}))
    }

    fn keep(&self, db: &dyn Db) -> Result<(), StoreError> {
        self.get().map_or(Ok(()), |counts| batches::count(db, &self.batch, &counts))
    }
}

/// What happened next while lines were asked.
enum Next {
    Told,
    TimeIsUp,
    Stop,
    Answer(Option<Result<Option<Outcome>, Failure>>),
}

/// One batch being worked on.
pub(super) struct Work {
    desk: Arc<Batches>,
    endpoint: Arc<dyn Endpoint>,
    holder: Holder,
    stop: watch::Receiver<bool>,
}

impl Work {
    /// The work on a claimed job.
    pub(super) fn new(
        desk: Arc<Batches>,
        endpoint: Arc<dyn Endpoint>,
        (job, owner): (String, String),
        stop: watch::Receiver<bool>,
    ) -> Self {
        let holder = Holder { store: desk.store.clone(), keys: desk.keys.clone(), job, owner };
        Work { desk, endpoint, holder, stop }
    }

    /// Works to the end, or to where another worker goes on.
    pub(super) async fn run(self) {
        if let Err(failure) = self.batch().await {
            // The lease runs out, and the batch is tried again: what failed may pass.
            tracing::warn!(job = self.holder.job, %failure, "a batch could not be worked on");
        }
    }

    async fn batch(&self) -> Result<(), Failure> {
        let (store, job) = (self.desk.store.clone(), self.holder.job.clone());
        let mut batch = blocking(move || Ok(batches::of_job(store.db.as_ref(), &job)?)).await?;
        if batch.status.is_end() {
            self.forget(&batch);
            return self.end(End::Succeeded(Value::Null)).await;
        }
        let counted = Counted::of(&batch);
        let heart = Heart::start(self.holder.clone(), &batch.api_key, counted.clone()).await?;
        if batch.status == Status::Validating {
            match self.check(&batch).await {
                Ok(Ok(begun)) => batch = begun,
                Ok(Err(problems)) => return self.refuse(batch, &problems).await,
                Err(failure) if may_pass(&failure) => return Err(failure),
                Err(failure) => return self.refuse(batch, &[Problem::of(&failure)]).await,
            }
        }
        let (directory, total) = (self.directory(&batch), batch.counts.total);
        let mut results = blocking(move || Ok(Results::open(&directory, total)?)).await?;
        counted.set(results.counts);
        let why = match batch.status {
            // Its last line was answered before an earlier worker died.
            Status::Finalizing => Why::Done,
            _ => match self.answer(&batch, &mut results, (&heart, &counted)).await {
                Ok(why) => why,
                Err(failure) if may_pass(&failure) => return Err(failure),
                Err(failure) => Why::Broken(Problem::of(&failure)),
            },
        };
        match why {
            Why::Lost => Ok(()),
            Why::Stopped => self.release(results.counts, batch.id).await,
            ended => self.finish(batch, results, ended).await,
        }
    }

    /// Reads the whole file once; a good one begins.
    async fn check(&self, batch: &BatchRow) -> Result<Result<BatchRow, Vec<Problem>>, Failure> {
        let (store, batch, limit) = (self.desk.store.clone(), batch.clone(), self.desk.max_line_bytes());
        blocking(move || {
            let db = store.db.as_ref();
            let checked = check::file(lines(&store, &batch, limit)?, known(&batch)).map_err(|error| unreadable(&error))?;
            let checked = match checked {
                Ok(checked) => checked,
                Err(problems) => return Ok(Err(problems)),
            };
            let counts = Counts { total: checked.lines, ..Counts::default() };
            let model = checked.model.filter(|model| model.len() <= MAX_MODEL_BYTES);
            let begun = db.batch(&[
                batches::advancing(&batch.id, &[Status::Validating], Status::InProgress),
                batches::naming_model(&batch.id, model.as_deref()),
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
    async fn answer(&self, batch: &BatchRow, results: &mut Results, (heart, counted): (&Heart, &Counted)) -> Result<Why, Failure> {
        let mut told = heart.told();
        let left = u64::try_from(batch.expires_at - now_ms()).unwrap_or(0);
        let first = told.borrow_and_update().map(Why::from);
        if let Some(why) = first.or((left == 0).then_some(Why::Expired)) {
            return Ok(why);
        }
        let (halter, halt) = watch::channel(false);
        let asker = Asker {
            endpoint: self.endpoint.clone(),
            caller: heart.caller(),
            path: known(batch),
            limit: self.desk.max_line_bytes(),
            slots: self.desk.slots.clone(),
            halt: halt.clone(),
        };
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
        let mut stop = self.stop.clone();
        let (mut why, mut until) = (None, Instant::now() + Duration::from_millis(left));
        loop {
            let next = tokio::select! {
                biased;
                Ok(()) = told.changed() => Next::Told,
                () = tokio::time::sleep_until(until) => Next::TimeIsUp,
                () = raised(&mut stop), if why.is_none() => Next::Stop,
                answer = answers.next() => Next::Answer(answer),
            };
            let halted = match next {
                Next::Told => told.borrow().map(Why::from),
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
                        counted.set(results.counts);
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

    /// The lines without an answer, read as they are asked for; together with those of all other batches they are bounded in bytes.
    fn waiting(
        &self,
        batch: &BatchRow,
        done: HashSet<(u64, u64)>,
    ) -> Result<impl futures_util::Stream<Item = Result<Waiting, Failure>> + use<>, Failure> {
        let lines = lines(&self.desk.store, batch, self.desk.max_line_bytes())?;
        let (sender, receiver) = mpsc::channel(1);
        let (room, runtime) = (self.desk.room.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            for read in lines {
                let waiting = match read {
                    Ok((_, bytes)) if check::custom_id(&bytes).is_some_and(|id| done.contains(&check::key(&id))) => continue,
                    Ok((_, bytes)) => {
                        let admitted = async {
                            tokio::select! {
                                admitted = room.admit(bytes.len()) => admitted,
                                () = sender.closed() => None,
                            }
                        };
                        // Nobody listens any more when the batch was halted.
                        let Some(permit) = runtime.block_on(admitted) else { return };
                        Ok(Waiting { bytes, _permit: permit })
                    }
                    Err(error) => Err(unreadable(&error)),
                };
                if sender.blocking_send(waiting).is_err() {
                    return;
                }
            }
        });
        Ok(unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
    }

    /// Leaves the batch to the next worker.
    async fn release(&self, counts: Counts, id: String) -> Result<(), Failure> {
        let holder = self.holder.clone();
        blocking(move || {
            let db = holder.store.db.as_ref();
            batches::count(db, &id, &counts)?;
            Ok(jobs::release(db, holder.lease())?)
        })
        .await
    }

    /// Turns the answers into files and ends the batch, all in one transaction; the answers stay where they are until then.
    async fn finish(&self, batch: BatchRow, mut results: Results, why: Why) -> Result<(), Failure> {
        let (store, limit) = (self.desk.store.clone(), self.desk.max_line_bytes());
        let (ended, why) = blocking(move || {
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
                Why::Broken(_) => (&[Status::InProgress, Status::Cancelling, Status::Finalizing], Status::Failed),
                _ => (&[Status::InProgress, Status::Cancelling], Status::Cancelled),
            };
            let mut more = vec![batches::counting(&batch.id, &results.counts), batches::advancing(&batch.id, from, to)];
            let revoked = || Problem::new(Code::INVALID_KEY.name, None, "the key that made the batch was revoked");
            let problem = match &why {
                Why::Revoked => Some(revoked()),
                Why::Broken(problem) => Some(problem.clone()),
                _ => None,
            };
            more.extend(problem.map(|problem| batches::failing(&batch.id, &json!([problem.to_json()]))));
            file(&store, &batch, results, more)?;
            Ok((batch, why))
        })
        .await?;
        self.forget(&ended);
        self.end(match why {
            Why::Done => End::Succeeded(Value::Null),
            Why::Broken(problem) => End::Failed(problem.message),
            _ => End::Cancelled,
        })
        .await
    }

    /// Ends the batch before anything was asked, saying why.
    async fn refuse(&self, batch: BatchRow, problems: &[Problem]) -> Result<(), Failure> {
        let errors: Value = problems.iter().map(Problem::to_json).collect();
        let reason = problems.first().map_or(String::new(), |problem| problem.message.clone());
        let (store, id) = (self.desk.store.clone(), batch.id.clone());
        blocking(move || {
            let alive = [Status::Validating, Status::InProgress, Status::Cancelling];
            Ok(store.db.batch(&[batches::advancing(&id, &alive, Status::Failed), batches::failing(&id, &errors)])?)
        })
        .await?;
        self.forget(&batch);
        self.end(End::Failed(reason)).await
    }

    async fn end(&self, end: End) -> Result<(), Failure> {
        let holder = self.holder.clone();
        blocking(move || Ok(jobs::end(holder.store.db.as_ref(), holder.lease(), &end)?)).await
    }

    fn directory(&self, batch: &BatchRow) -> PathBuf {
        self.desk.directory().join(&batch.id)
    }

    /// Removes what the batch needed on its way.
    fn forget(&self, batch: &BatchRow) {
        if let Err(error) = files::remove_any(&self.directory(batch)) {
            // The next server removes it.
            tracing::warn!(batch = batch.id, %error, "what a batch left could not be removed");
        }
    }
}

/// Whether another try may do better: the disk may have room again, the database may be free.
fn may_pass(failure: &Failure) -> bool {
    failure.code() == Code::STORAGE
}

/// The endpoint that a stored batch names.
fn known(batch: &BatchRow) -> &'static str {
    endpoint(&batch.endpoint).unwrap_or(super::ENDPOINTS[0])
}

/// The lines of a batch's file, which may have expired since it was named: its bytes stay until the batch has ended.
fn lines(store: &Store, batch: &BatchRow, limit: usize) -> Result<Lines<BufReader<File>>, Failure> {
    let row = files::get_any(store.db.as_ref(), &batch.project, &batch.input_file)?;
    let opened = File::open(store.uploads.path(&row.digest)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Code::CORRUPT, format!("the bytes of {} are gone", row.id)),
        _ => unreadable(&error),
    })?;
    Ok(Lines::new(BufReader::with_capacity(1 << 16, opened), limit))
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(Code::STORAGE, format!("the input file cannot be read: {error}"))
}

/// Gives every line without an answer its reason, as far as the lines can be read.
fn expire(store: &Store, batch: &BatchRow, results: &mut Results, limit: usize) -> Result<(), Failure> {
    let lines = match lines(store, batch, limit) {
        Ok(lines) => lines,
        Err(failure) if may_pass(&failure) => return Err(failure),
        Err(_) => return Ok(()),
    };
    for read in lines {
        let (_, bytes) = read.map_err(|error| unreadable(&error))?;
        if let Some(id) = check::custom_id(&bytes).filter(|id| !results.has(id)) {
            let message = format!("the line was not answered within {}", batch.completion_window);
            results.keep(&Outcome::failed(id, "batch_expired", message))?;
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
