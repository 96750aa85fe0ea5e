//! The work on one run: count its items, ask and grade those without an outcome, sum up.

use super::ask::Asker;
use super::item::Bench;
use super::source::{Item, Plan};
use super::{Evals, check};
use crate::evals::graders::Grader;
use crate::jobs::batch::Endpoint;
use crate::jobs::heart::{Heart, Holder, Note, Told};
use crate::jobs::served::raised;
use crate::store::jobs::End;
use crate::store::openai_evals::{self as rows, EvalRunRow, Status};
use crate::store::{StoreError, jobs};
use crate::types::blocking::blocking;
use crate::types::{Code, Failure};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long items on their way get when a run is canceled.
const GRACE: Duration = Duration::from_secs(60);
/// Most outcomes in one transaction.
const WRITE_BATCH: usize = 256;
/// Items that are read at a time when a run is summed up.
const PAGE: usize = 500;

/// Why a run's items are no longer asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    Done,
    Told(Told),
    /// The server stops; another one goes on.
    Stopped,
}

/// One run being worked on.
pub(super) struct Work {
    pub(super) desk: Arc<Evals>,
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) holder: Holder,
    pub(super) stop: watch::Receiver<bool>,
}

/// How many items have an outcome.
#[derive(Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Note for Progress {
    fn progress(&self) -> Value {
        json!({"done": self.done.load(Ordering::Relaxed), "total": self.total.load(Ordering::Relaxed)})
    }
}

impl Work {
    /// Works to the end, or to where another worker goes on.
    pub(super) async fn run(self) {
        if let Err(failure) = self.work().await {
            // The lease runs out, and the run is tried again: what failed may pass.
            tracing::warn!(job = self.holder.job, %failure, "a run of an eval could not be worked on");
        }
    }

    async fn work(&self) -> Result<(), Failure> {
        let (store, job) = (self.desk.store.clone(), self.holder.job.clone());
        let run = blocking(move || Ok(rows::of_job(store.db.as_ref(), &job)?)).await?;
        if run.status.is_end() {
            return self.end(End::Succeeded(Value::Null)).await;
        }
        let progress = Arc::new(Progress::default());
        let heart = Heart::start(self.holder.clone(), &run.api_key, progress.clone()).await?;
        let (store, begun) = (self.desk.store.clone(), run.clone());
        let counted = blocking(move || {
            rows::begin(store.db.as_ref(), &begun.id)?;
            let items = Plan::read(&begun.data_source)?.items(&store, &begun)?;
            let mut total = 0u64;
            for item in items {
                item?;
                total += 1;
            }
            let done: HashSet<u64> = rows::done(store.db.as_ref(), &begun.id)?.into_iter().collect();
            Ok((total, done))
        });
        let (total, done) = match counted.await {
            Ok(counted) => counted,
            Err(failure) if failure.code() == Code::STORAGE => return Err(failure),
            Err(failure) => return self.fail(&run, &failure).await,
        };
        progress.total.store(total, Ordering::Relaxed);
        progress.done.store(done.len() as u64, Ordering::Relaxed);
        match self.items(&run, done, (&heart, &progress)).await {
            Ok(Why::Told(Told::Lost)) => Ok(()),
            Ok(Why::Stopped) => self.release().await,
            Ok(Why::Told(Told::Revoked)) => {
                self.fail(&run, &Failure::new(Code::INVALID_KEY, "the key that made the run was revoked")).await
            }
            Ok(why) => self.finish(&run, why).await,
            Err(failure) if failure.code() == Code::STORAGE => Err(failure),
            Err(failure) => self.fail(&run, &failure).await,
        }
    }

    /// Asks and grades the items that have no outcome yet.
    async fn items(&self, run: &EvalRunRow, done: HashSet<u64>, (heart, progress): (&Heart, &Progress)) -> Result<Why, Failure> {
        let mut told = heart.told();
        if let Some(why) = *told.borrow_and_update() {
            return Ok(Why::Told(why));
        }
        let (halter, halt) = watch::channel(false);
        let bench = Arc::new(self.bench(run, heart, halt.clone()).await?);
        let why = self.outcomes(run, done, (&bench, (halter, halt)), (told, progress)).await;
        if !matches!(why, Ok(Why::Told(Told::Lost))) {
            // What was paid for is graded by whoever goes on.
            let (store, id, answers) = (self.desk.store.clone(), run.id.clone(), bench.ungraded());
            blocking(move || Ok(rows::put_answers(store.db.as_ref(), &id, &answers)?)).await?;
        }
        why
    }

    /// Their outcomes, stored as they come.
    async fn outcomes(
        &self,
        run: &EvalRunRow,
        done: HashSet<u64>,
        (bench, (halter, mut halted)): (&Arc<Bench>, (watch::Sender<bool>, watch::Receiver<bool>)),
        (mut told, progress): (watch::Receiver<Option<Told>>, &Progress),
    ) -> Result<Why, Failure> {
        let waiting = self.waiting(run, done)?.take_until(Box::pin(async move {
            let _ = halted.wait_for(|halted| *halted).await;
        }));
        let asked = waiting.map(|next| {
            let bench = bench.clone();
            async move {
                let (number, item) = next?;
                Ok::<_, Failure>(bench.outcome(number, item).await)
            }
        });
        let mut outcomes = std::pin::pin!(asked.buffer_unordered(self.desk.concurrency).ready_chunks(WRITE_BATCH));
        let mut stop = self.stop.clone();
        let (mut why, mut until) = (None, None);
        loop {
            let cut = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Ok(()) = told.changed() => {
                    let now = told.borrow().map(Why::Told);
                    if now == Some(Why::Told(Told::Lost)) {
                        return Ok(Why::Told(Told::Lost));
                    }
                    why = why.or(now);
                }
                () = cut => return Ok(why.unwrap_or(Why::Done)),
                () = raised(&mut stop), if why.is_none() => why = Some(Why::Stopped),
                chunk = outcomes.next() => match chunk {
                    None => return Ok(why.unwrap_or(Why::Done)),
                    Some(chunk) => {
                        let items: Vec<_> = chunk.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
                        let (kept, numbers) = (items.len() as u64, items.iter().map(|item| item.number).collect::<Vec<_>>());
                        let (store, id) = (self.desk.store.clone(), run.id.clone());
                        blocking(move || Ok(rows::put_items(store.db.as_ref(), &id, &items)?)).await?;
                        bench.graded(&numbers);
                        progress.done.fetch_add(kept, Ordering::Relaxed);
                    }
                },
            }
            if why.is_some() && until.is_none() {
                until = Some(Instant::now() + GRACE);
                halter.send_replace(true);
            }
        }
    }

    async fn bench(&self, run: &EvalRunRow, heart: &Heart, halt: watch::Receiver<bool>) -> Result<Bench, Failure> {
        let asker = Asker { endpoint: self.endpoint.clone(), caller: heart.caller(), slots: self.desk.slots.clone(), halt };
        let (store, schemas, run) = (self.desk.store.clone(), self.desk.schemas.clone(), run.clone());
        blocking(move || {
            let eval = rows::get(store.db.as_ref(), &run.project, &run.eval)?;
            let schema = check::item_schema(&eval.data_source).map(|schema| schemas.of(schema)).transpose();
            let schema = schema.map_err(|why| Failure::new(Code::INVALID_VALUE, format!("item_schema: {why}")))?;
            // They were checked when the eval was made.
            let kept = rows::answers(store.db.as_ref(), &run.id)?;
            let graders =
                Grader::read_all(&run.criteria, true).map_err(|(path, problem)| Failure::on(Code::INVALID_VALUE, path, problem))?;
            let asking = Plan::read(&run.data_source)?.asking().cloned();
            Ok(Bench::new(graders, (asking, schema), asker, kept))
        })
        .await
    }

    /// The items without an outcome, with their places, read as they are asked for.
    fn waiting(
        &self,
        run: &EvalRunRow,
        done: HashSet<u64>,
    ) -> Result<impl futures_util::Stream<Item = Result<(u64, Item), Failure>> + use<>, Failure> {
        let items = Plan::read(&run.data_source)?.items(&self.desk.store, run)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            for (number, item) in (0u64..).zip(items).filter(|(number, _)| !done.contains(number)) {
                // Nobody listens any more when the run was halted.
                if sender.blocking_send(item.map(|item| (number, item))).is_err() {
                    return;
                }
            }
        });
        Ok(unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
    }

    async fn finish(&self, run: &EvalRunRow, why: Why) -> Result<(), Failure> {
        let (store, run) = (self.desk.store.clone(), run.clone());
        let status = if why == Why::Done { Status::Completed } else { Status::Canceled };
        blocking(move || {
            let db = store.db.as_ref();
            let sums = Sums::of(db, &run)?;
            let summed = rows::summing(&run.id, &sums.usage(), &sums.criteria(&run));
            match db.batch(&[summed, rows::ending(&run.id, status, &Value::Null), rows::forgetting_answers(&run.id)]) {
                // Somebody ended it otherwise meanwhile.
                Err(StoreError::Conflict(_)) => Ok(()),
                other => Ok(other?),
            }
        })
        .await?;
        self.end(if status == Status::Completed { End::Succeeded(Value::Null) } else { End::Cancelled }).await
    }

    async fn fail(&self, run: &EvalRunRow, failure: &Failure) -> Result<(), Failure> {
        let error = json!({"code": failure.code().name, "message": failure.to_string()});
        let (store, failed) = (self.desk.store.clone(), run.clone());
        blocking(move || {
            // What was graded before stands.
            let sums = Sums::of(store.db.as_ref(), &failed)?;
            let summed = rows::summing(&failed.id, &sums.usage(), &sums.criteria(&failed));
            match store.db.batch(&[summed, rows::ending(&failed.id, Status::Failed, &error), rows::forgetting_answers(&failed.id)]) {
                Err(StoreError::Conflict(_)) => Ok(()),
                other => Ok(other?),
            }
        })
        .await?;
        self.end(End::Failed(failure.to_string())).await
    }

    async fn release(&self) -> Result<(), Failure> {
        let holder = self.holder.clone();
        blocking(move || Ok(jobs::release(holder.store.db.as_ref(), holder.lease())?)).await
    }

    async fn end(&self, end: End) -> Result<(), Failure> {
        let holder = self.holder.clone();
        blocking(move || Ok(jobs::end(holder.store.db.as_ref(), holder.lease(), &end)?)).await
    }
}

/// What a run's items add up to.
#[derive(Default)]
struct Sums {
    /// By model: calls, tokens read, written, in all, and read from a cache.
    models: BTreeMap<String, [u64; 5]>,
    /// By criterion: passed and failed.
    criteria: BTreeMap<String, [u64; 2]>,
}

impl Sums {
    fn of(db: &dyn crate::store::Db, run: &EvalRunRow) -> Result<Self, StoreError> {
        let mut sums = Sums::default();
        let mut after = None;
        loop {
            let (page, more) = rows::items(db, &run.id, (after, PAGE, true), None)?;
            for item in &page {
                sums.call(&item.sample);
                for result in item.results.as_array().into_iter().flatten() {
                    let of = sums.criteria.entry(result["name"].as_str().unwrap_or_default().to_string()).or_default();
                    of[usize::from(result["passed"] != true)] += 1;
                    if let Some(sample) = result.get("sample") {
                        sums.call(sample);
                    }
                }
            }
            after = page.last().map(|item| item.number);
            if !more {
                return Ok(sums);
            }
        }
    }

    fn call(&mut self, sample: &Value) {
        let number = |name: &str| sample["usage"][name].as_u64().unwrap_or(0);
        let model = sample["model"].as_str().unwrap_or_default();
        if model.is_empty() || number("total_tokens") == 0 {
            return;
        }
        let counted = [1, number("prompt_tokens"), number("completion_tokens"), number("total_tokens"), number("cached_tokens")];
        self.models.entry(model.to_string()).or_default().iter_mut().zip(counted).for_each(|(sum, more)| *sum += more);
    }

    fn usage(&self) -> Value {
        let model = |(name, [calls, read, written, total, cached]): (&String, &[u64; 5])| {
            json!({"model_name": name, "invocation_count": calls, "prompt_tokens": read, "completion_tokens": written,
                "total_tokens": total, "cached_tokens": cached})
        };
        self.models.iter().map(model).collect()
    }

    /// In the order of the eval.
    fn criteria(&self, run: &EvalRunRow) -> Value {
        let names = run.criteria.as_array().into_iter().flatten().filter_map(|criterion| criterion["name"].as_str());
        let one = |name: &str| {
            let [passed, failed] = self.criteria.get(name).copied().unwrap_or_default();
            json!({"testing_criteria": name, "passed": passed, "failed": failed})
        };
        names.map(one).collect()
    }
}
