//! Scoring what is stored: a new run, in which no target is asked. [`outputs`] reads answers from a file, [`again`] those of an earlier
//! run. Such a run says where its answers are from, and proves no release: nobody knows what a file is from, and the answers of an old
//! run could be made the newest ones at will.

pub mod again;
pub mod outputs;

use super::affordable::affordable;
use super::calls::Calls;
use super::paid::Paid;
use super::prepare::{Plan, PlanTarget};
use super::report::Report;
use super::scorers::seam::SCORER_ERROR;
use super::scorers::{self, Case};
use super::{EvalError, Reply, Runner};
use crate::store::cases::{self, CaseRecord};
use crate::store::runs::{self, RunRecord, RunTarget};
use crate::store::{Store, StoreError};
use crate::types::Failure;
use crate::types::blocking::blocking;
use crate::types::time::now_ms;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Most outcomes in one transaction.
const WRITE_BATCH: usize = 256;

/// Hands stored cases over, one by one; the receiver may have gone.
pub type Source = Box<dyn FnOnce(&Store, &Sender<CaseRecord>) -> Result<(), Failure> + Send>;

/// Answers by position and repeat: targets' names and texts.
pub type Others = HashMap<(usize, usize), Vec<(String, String)>>;

/// What is scored.
pub struct Scoring {
    /// Samples, targets, and the suite with the scorers.
    pub plan: Plan,
    /// How many cases there are.
    pub cases: usize,
    /// The cases, with the answers that they have.
    pub source: Source,
    /// What the run says about where its answers are from: a run or a file.
    pub from: String,
    /// Answers that others are compared with.
    pub others: Others,
}

impl Runner {
    /// Scores stored answers as a new run.
    ///
    /// # Errors
    /// Where a scorer may not run here; when cases cannot be read or stored. Failing scorers are outcomes, not errors.
    pub async fn score(&self, scoring: Scoring) -> Result<Report, Failure> {
        self.permits(&scoring.plan)?;
        // No target is asked.
        affordable(self.respond.as_ref(), &scoring.plan.suite, &[])?;
        let started = Instant::now();
        let run = record(&scoring);
        let targets: Vec<RunTarget> = scoring.plan.targets.iter().map(target).collect();
        let (store, stored) = (self.store.clone(), run.clone());
        let scoring = blocking(move || {
            scoring.plan.keep_files(&store)?;
            runs::insert(store.db.as_ref(), &stored, &targets)?;
            Ok(scoring)
        })
        .await?;
        let plan = self.each(&run.id, scoring).await?;
        let store = self.store.clone();
        blocking(move || {
            let run = RunRecord { status: runs::SCORED.into(), finished_at: Some(now_ms()), ..run };
            let report = Report::build(&store, &run, &plan, started.elapsed().as_secs_f64())?;
            let metrics: Vec<_> = report.targets.iter().map(|target| (target.name.clone(), target.metrics_json())).collect();
            runs::finish(store.db.as_ref(), &RunRecord { summary: json!(report), ..run }, &metrics)?;
            Ok(report)
        })
        .await
    }

    /// Scores case by case, in their order; hands the plan back.
    async fn each(&self, run: &str, scoring: Scoring) -> Result<Plan, Failure> {
        let Scoring { plan, cases, source, others, .. } = scoring;
        let (sender, mut receiver): (_, Receiver<CaseRecord>) = channel(WRITE_BATCH);
        let store = self.store.clone();
        let reader = tokio::task::spawn_blocking(move || source(&store, &sender));
        let total = cases as u64;
        self.progress.update(0, total, "");
        let mut done = 0;
        let calls = Calls::new(plan.suite.concurrency, plan.suite.bounds.cost, 0);
        {
            let arriving = stream::poll_fn(|context| receiver.poll_recv(context));
            let scored = arriving.map(|case| {
                let (plan, others, paid) = (&plan, &others, Paid::new(self.respond.services(), &calls));
                async move { self.scored(plan, others, (case, &paid)).await }
            });
            let mut scored = std::pin::pin!(scored.buffered(plan.suite.concurrency).ready_chunks(WRITE_BATCH));
            while let Some(batch) = scored.next().await {
                done += batch.len() as u64;
                let (store, run) = (self.store.clone(), run.to_string());
                blocking(move || Ok(cases::put_cases(store.db.as_ref(), &run, &batch, &[])?)).await?;
                self.progress.update(done, total, "");
            }
        }
        reader.await.map_err(|_| EvalError::Writer(run.to_string()))??;
        Ok(plan)
    }

    /// A case with its new scores. One that never got an answer stays what it is.
    pub(super) async fn scored(&self, plan: &Plan, others: &Others, (mut case, paid): (CaseRecord, &Paid<'_>)) -> CaseRecord {
        case.scoring_cost_micro_usd = Some(0);
        if case.error.as_ref().is_some_and(|error| !error.starts_with(SCORER_ERROR)) {
            return case;
        }
        case.finished_at = now_ms();
        let sample = match plan.samples.get(case.position) {
            Ok(sample) => sample,
            Err(error) => {
                let failure = Failure::from(error);
                case.error = Some(format!("{}: {failure}", failure.code().name));
                return case;
            }
        };
        case.group = plan.group_of(&sample);
        let reply = Reply::stored(&case);
        let others = others.get(&(case.position, case.repeat)).map(Vec::as_slice).unwrap_or_default();
        let seen = Case { answered_by: &case.target, others, ..Case::new(&sample, &reply) };
        let verdict = scorers::score(&plan.suite.scorers, &seen, paid).await;
        case.notes = verdict.notes();
        case.scores = Value::Object(verdict.scores);
        case.error = verdict.error;
        case.scoring_cost_micro_usd = paid.spent().known();
        case
    }
}

fn record(scoring: &Scoring) -> RunRecord {
    let mut run = scoring.plan.record();
    run.config["scored_from"] = scoring.from.clone().into();
    run
}

fn target(target: &PlanTarget) -> RunTarget {
    RunTarget { target: target.name.clone(), release: target.release, manifest: json!(target.manifest), metrics: json!({}) }
}

/// Hands a case over; an error when nobody takes it any more, which ends the reading.
fn hand_over(sender: &Sender<CaseRecord>, case: CaseRecord) -> Result<(), StoreError> {
    sender.blocking_send(case).map_err(|_| StoreError::Corrupt("the scoring ended early".into()))
}

/// Other targets' answers that scorers compare with.
fn compared_with(plan: &Plan) -> Vec<String> {
    plan.suite.scorers.iter().flat_map(|scorer| scorer.compares_with()).collect()
}

/// Only what a suite asks of the targets at hand.
pub(super) fn keep_targets(plan: &mut Plan) {
    let names: Arc<[String]> = plan.targets.iter().map(|target| target.name.clone()).collect();
    let is_here = |target: &Option<String>| target.as_ref().is_none_or(|name| names.contains(name));
    plan.suite.gate.retain(|condition| is_here(&condition.target));
    plan.suite.demands.retain(|demand| is_here(&demand.target));
    plan.suite.targets.retain(|target| names.contains(&target.name));
}
