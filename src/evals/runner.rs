//! Runs a plan: bounded concurrency, each case stored as it ends, errors as a third outcome, resumable after anything.
//!
//! Outcomes go to one writer thread that stores whatever has gathered in one short transaction and then looks again: no case waits
//! for a timer, and a thousand quick ones do not make a thousand transactions.

use super::prepare::{Plan, PlanTarget, restore};
use super::report::Report;
use super::respond::{Reply, Respond};
use super::scorers::Case;
use super::{EvalError, suite::Suite};
use crate::datasets::Sample;
use crate::store::runs::{self, CaseRecord, RunRecord, RunTarget};
use crate::store::{Store, StoreError};
use crate::types::time::now_ms;
use crate::types::traits::Progress;
use crate::types::{Code, Digest, Failure, ids};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Times a case is asked again when the answer is "too busy".
const BUSY_RETRIES: u32 = 8;
/// Most outcomes in one transaction.
const WRITE_BATCH: usize = 256;

/// What a run needs beside its plan.
#[derive(Clone)]
pub struct Runner {
    /// Where outcomes go.
    pub store: Store,
    /// What answers.
    pub respond: Arc<dyn Respond>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
}

impl Runner {
    /// Stores the run and executes it until every case has an outcome or `stop` resolves.
    ///
    /// # Errors
    /// When outcomes cannot be stored. Failing models are outcomes, not errors.
    pub async fn run(&self, plan: Plan, stop: impl Future<Output = ()>) -> Result<Report, Failure> {
        let run = RunRecord {
            id: ids::new_id("run"),
            suite: plan.suite.name.clone(),
            suite_digest: Digest::of(&plan.suite.source),
            dataset: plan.dataset.clone(),
            dataset_digest: plan.dataset_digest,
            split: plan.split.clone(),
            status: runs::RUNNING.into(),
            config: plan.config(),
            summary: Value::Null,
            created_at: now_ms(),
            finished_at: None,
        };
        let target = |target: &PlanTarget| RunTarget {
            target: target.name.clone(),
            release: target.release,
            manifest: json!(target.manifest),
            metrics: json!({}),
        };
        let targets: Vec<RunTarget> = plan.targets.iter().map(target).collect();
        let (store, stored) = (self.store.clone(), run.clone());
        blocking(move || Ok(runs::insert(store.db.as_ref(), &stored, &targets)?)).await?;
        self.execute(run, plan, HashSet::new(), stop).await
    }

    async fn execute(
        &self,
        mut run: RunRecord,
        plan: Plan,
        answered: HashSet<(String, String)>,
        stop: impl Future<Output = ()>,
    ) -> Result<Report, Failure> {
        let started = Instant::now();
        let plan = Arc::new(plan);
        let (sender, receiver) = channel();
        let (store, id) = (self.store.clone(), run.id.clone());
        let writer = tokio::task::spawn_blocking(move || write(&store, &id, &receiver));
        let was_stopped = self.ask(&plan, &answered, sender, stop).await;
        writer.await.map_err(|_| EvalError::Writer(run.id.clone()))??;
        let (store, shared) = (self.store.clone(), plan.clone());
        blocking(move || {
            let cases = runs::cases(store.db.as_ref(), &run.id)?;
            run.status = status(&shared, &cases, was_stopped).into();
            run.finished_at = Some(now_ms());
            let report = Report::build(&run, &shared, &cases, started.elapsed().as_secs_f64());
            run.summary = json!(report);
            let metrics: Vec<_> = report.targets.iter().map(|target| (target.name.clone(), target.metrics_json())).collect();
            runs::finish(store.db.as_ref(), &run, &metrics)?;
            Ok(report)
        })
        .await
    }

    /// Asks every case that has no answer yet; returns whether it was stopped.
    async fn ask(
        &self,
        plan: &Arc<Plan>,
        answered: &HashSet<(String, String)>,
        sender: Sender<CaseRecord>,
        stop: impl Future<Output = ()>,
    ) -> bool {
        let mut tally = Tally::new(plan, answered.len());
        self.progress.update(tally.done, tally.total, "");
        let places = plan.targets.iter().flat_map(|target| plan.samples.iter().enumerate().map(move |(i, sample)| (target, i, sample)));
        let open = places.filter(|(target, _, sample)| !answered.contains(&(target.name.clone(), sample.id.clone())));
        let asked = stream::iter(open).map(|(target, position, sample)| self.case(&plan.suite, target, position, sample));
        let mut outcomes = std::pin::pin!(asked.buffer_unordered(plan.suite.concurrency));
        let mut stop = std::pin::pin!(stop);
        loop {
            let case = tokio::select! {
                biased;
                () = &mut stop => return true,
                next = outcomes.next() => match next {
                    Some(case) => case,
                    None => return false,
                },
            };
            tally.add(&case);
            self.progress.update(tally.done, tally.total, &tally.note());
            if sender.send(case).is_err() {
                // The writer failed; its error is reported when it is joined.
                return false;
            }
        }
    }

    async fn case(&self, suite: &Suite, target: &PlanTarget, position: usize, sample: &Sample) -> CaseRecord {
        let outcome = self.patiently(target, sample).await;
        let (reply, error) = match outcome {
            Ok(reply) => (reply, None),
            Err(failure) => (Reply::default(), Some(format!("{}: {failure}", failure.code().name))),
        };
        let mut scores = Map::new();
        if error.is_none() {
            let case = Case { output: &reply.output, target: &sample.target };
            for scorer in &suite.scorers {
                scores.extend(scorer.metrics().into_iter().zip(scorer.score(case).into_iter().map(Value::from)));
            }
        }
        CaseRecord {
            target: target.name.clone(),
            sample: sample.id.clone(),
            position,
            output: reply.output,
            error,
            scores: Value::Object(scores),
            input_tokens: reply.input_tokens,
            output_tokens: reply.output_tokens,
            latency_ms: reply.latency_ms,
            finished_at: now_ms(),
        }
    }

    /// One answer; "too busy" is asked again, as late as the answer says or twice as late each time.
    async fn patiently(&self, target: &PlanTarget, sample: &Sample) -> Result<Reply, Failure> {
        let mut attempt = 0;
        loop {
            match self.respond.respond(&target.manifest, &sample.input).await {
                Err(failure)
                    if attempt < BUSY_RETRIES && matches!(failure.code(), Code::RATE_LIMIT | Code::OVERLOADED | Code::UNAVAILABLE) =>
                {
                    let wait = failure.retry_after_s().map_or(Duration::from_millis(100 << attempt), Duration::from_secs);
                    tokio::time::sleep(wait.min(Duration::from_secs(60))).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Goes on with a run: cases without an outcome and cases that ended in an error are asked, all others are kept.
///
/// # Errors
/// [`EvalError::Run`] for a run that has every answer; what [`Runner::run`] says.
pub async fn resume(runner: &Runner, run: &str, stop: impl Future<Output = ()>) -> Result<Report, Failure> {
    let (store, id) = (runner.store.clone(), run.to_string());
    let (run, plan, answered) = blocking(move || {
        let mut run = runs::get(store.db.as_ref(), &id)?;
        if matches!(run.status.as_str(), runs::FINISHED | runs::PARTIAL) {
            return Err(EvalError::Run { run: run.id, problem: "every case has its answer already".into() }.into());
        }
        let plan = restore(&store, &run)?;
        run.status = runs::RUNNING.into();
        runs::finish(store.db.as_ref(), &run, &[])?;
        let answered = runs::cases(store.db.as_ref(), &run.id)?.into_iter().filter(|case| case.error.is_none());
        let answered = answered.map(|case| (case.target, case.sample)).collect();
        Ok((run, plan, answered))
    })
    .await?;
    runner.execute(run, plan, answered, stop).await
}

fn status(plan: &Plan, cases: &[CaseRecord], was_stopped: bool) -> &'static str {
    let answered = cases.iter().filter(|case| case.error.is_none()).count();
    match plan.samples.len() * plan.targets.len() {
        _ if was_stopped => runs::CANCELLED,
        all if answered < all => runs::INCOMPLETE,
        _ if plan.limit.is_some() => runs::PARTIAL,
        _ => runs::FINISHED,
    }
}

fn write(store: &Store, run: &str, outcomes: &Receiver<CaseRecord>) -> Result<(), StoreError> {
    while let Ok(first) = outcomes.recv() {
        let mut batch = vec![first];
        while batch.len() < WRITE_BATCH
            && let Ok(next) = outcomes.try_recv()
        {
            batch.push(next);
        }
        runs::put_cases(store.db.as_ref(), run, &batch)?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::new(Code::INTERNAL, "a storage task ended early")),
    }
}

/// Running numbers for the progress line.
struct Tally {
    done: u64,
    total: u64,
    metric: String,
    /// Sum and number of scores by target.
    means: HashMap<String, (f64, u64)>,
    last: String,
    errors: u64,
}

impl Tally {
    fn new(plan: &Plan, answered: usize) -> Self {
        let total = (plan.samples.len() * plan.targets.len()) as u64;
        let metric = plan.suite.metrics().into_iter().next().unwrap_or_default();
        Tally { done: answered as u64, total, metric, means: HashMap::new(), last: String::new(), errors: 0 }
    }

    fn add(&mut self, case: &CaseRecord) {
        self.done += 1;
        self.last.clone_from(&case.target);
        let Some(value) = case.scores[&self.metric].as_f64() else {
            self.errors += 1;
            return;
        };
        let (sum, scored) = self.means.entry(case.target.clone()).or_default();
        (*sum, *scored) = (*sum + value, *scored + 1);
    }

    fn note(&self) -> String {
        let (sum, scored) = self.means.get(&self.last).copied().unwrap_or_default();
        let errors = if self.errors > 0 { format!(" · {} errors", self.errors) } else { String::new() };
        format!("{} {} {:.3}{errors}", self.last, self.metric, sum / scored.max(1) as f64)
    }
}
