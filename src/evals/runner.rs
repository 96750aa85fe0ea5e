//! Runs a plan: bounded concurrency that adapts to what providers can take, each case stored as it ends, errors as a third outcome,
//! resumable after anything, by one process at a time.
//!
//! Outcomes go to one writer thread that stores whatever has gathered in one short transaction and then looks again: no case waits
//! for a timer, and a thousand quick ones do not make a thousand transactions.

use super::EvalError;
use super::affordable::affordable;
use super::calls::{cost_of_failure, is_busy};
use super::keep::{self, Kept};
use super::order::{Answered, Place, places, providers};
use super::paid::Paid;
use super::prepare::{Plan, PlanTarget, restore};
use super::report::Report;
use super::respond::Respond;
use super::score::Others;
use super::scorers::{self, Case};
use super::tally::Tally;
use super::work::Work;
use crate::datasets::Sample;
use crate::store::cases::KeptReply;
use crate::store::lock::Lock;
use crate::store::runs::{self, CaseRecord, RunRecord, RunTarget};
use crate::store::{Store, StoreError, cases};
use crate::types::blocking::blocking;
use crate::types::time::now_ms;
use crate::types::traits::Progress;
use crate::types::{Code, Failure};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Times a case is asked again when the answer is "too busy".
const BUSY_RETRIES: u32 = 8;
/// Most outcomes in one transaction.
const WRITE_BATCH: usize = 256;
/// Outcomes that may wait to be stored; more make the asking wait.
const WAITING: usize = 1_024;
/// How long a run that is to end waits for the calls under way: they are paid for.
const GRACE: Duration = Duration::from_secs(20);

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

/// Why the asking ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything was asked.
    Whole,
    Stopped,
    Money,
    Time,
}

/// A case that was asked, and its answer, where that may be given again.
struct Outcome {
    case: CaseRecord,
    keep: Option<KeptReply>,
}

/// What asking came to, and what it cost, with the calls before it that were refused.
struct Got {
    answer: Result<Kept, Failure>,
    cost: Option<i64>,
}

impl Runner {
    /// Stores the run and executes it until every case has an outcome, a bound is reached or `stop` says so: once, and calls under way
    /// are waited for; twice, and they are given up.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] where another process executes the run.
    /// [`Code::PRICE_UNKNOWN`] for a bound of money over a model whose price is not known; when outcomes cannot be stored. Failing models
    /// are outcomes, not errors.
    pub async fn run(&self, plan: Plan, stop: impl Stream<Item = ()>) -> Result<Report, Failure> {
        affordable(self.respond.as_ref(), &plan.suite, &plan.targets)?;
        self.permits(&plan)?;
        let run = plan.record();
        let _lock = lock(&self.store, &run.id)?;
        let target = |target: &PlanTarget| RunTarget {
            target: target.name.clone(),
            release: target.release,
            manifest: json!(target.manifest),
            metrics: json!({}),
        };
        let targets: Vec<RunTarget> = plan.targets.iter().map(target).collect();
        let (store, stored) = (self.store.clone(), run.clone());
        let plan = blocking(move || {
            plan.keep_files(&store)?;
            runs::insert(store.db.as_ref(), &stored, &targets)?;
            Ok(plan)
        })
        .await?;
        let answered = Answered::new(&plan);
        self.execute(run, plan, answered, stop).await
    }

    /// Programs of a suite's author run only where that is allowed: better to know before the first call.
    pub(super) fn permits(&self, plan: &Plan) -> Result<(), Failure> {
        let refused = plan.suite.scorers.iter().find(|scorer| scorer.runs_commands());
        match refused.filter(|_| !self.respond.services().allows_commands()) {
            None => Ok(()),
            Some(scorer) => {
                let name = scorer.metrics().into_iter().next().unwrap_or_default();
                let message = format!("the scorer \"{name}\" runs a program, which is not allowed here");
                let hint = "allow it with --allow-commands, or with allow_commands = true under [evals] of refit.toml";
                Err(Failure::on(Code::FORBIDDEN, "scorers", message).with_hint(hint))
            }
        }
    }

    async fn execute(&self, mut run: RunRecord, plan: Plan, answered: Answered, stop: impl Stream<Item = ()>) -> Result<Report, Failure> {
        let started = Instant::now();
        let plan = Arc::new(plan);
        let (sender, receiver) = channel(WAITING);
        let (store, id) = (self.store.clone(), run.id.clone());
        let forgets = plan.suite.cache.then(|| self.respond.replies_days());
        let spent = blocking(move || {
            forgets.map(|days| keep::forget(&store, days)).transpose()?;
            Ok(cases::spent(store.db.as_ref(), &id)?)
        })
        .await?;
        let (store, id) = (self.store.clone(), run.id.clone());
        let writer = tokio::task::spawn_blocking(move || write(&store, &id, receiver));
        let (end, answers) = self.ask(&Work::new(&run.id, &plan, &answered, spent), (sender, stop)).await;
        writer.await.map_err(|_| EvalError::Writer(run.id.clone()))??;
        let (store, shared) = (self.store.clone(), plan.clone());
        blocking(move || {
            run.status = status(&shared, answers, end).into();
            run.finished_at = Some(now_ms());
            let report = Report::build(&store, &run, &shared, started.elapsed().as_secs_f64())?;
            run.summary = json!(report);
            let metrics: Vec<_> = report.targets.iter().map(|target| (target.name.clone(), target.metrics_json())).collect();
            runs::finish(store.db.as_ref(), &run, &metrics)?;
            Ok(report)
        })
        .await
    }

    /// Asks every case that has no answer yet; why that ended, and how many have one then.
    async fn ask(&self, work: &Work<'_>, (sender, stop): (Sender<Outcome>, impl Stream<Item = ()>)) -> (End, usize) {
        let (plan, answered) = (work.plan, work.answered);
        let mut answers = answered.count();
        let mut tally = Tally::new(plan, answers);
        tally.tell(self.progress.as_ref());
        // Each provider's cases are begun by themselves: one that rests keeps none of another waiting.
        let mut outcomes = stream::select_all(providers(plan).into_iter().map(|provider| {
            let open = places(plan, provider).filter(|place| !answered.has(*place)).take_while(|_| work.calls.is_open());
            stream::iter(open).map(|place| self.case(work, place)).buffer_unordered(plan.suite.concurrency).boxed()
        }));
        let mut stop = std::pin::pin!(stop);
        let mut late = std::pin::pin!(over(plan.suite.bounds.time));
        let mut end = None;
        loop {
            let outcome = tokio::select! {
                biased;
                Some(()) = stop.next() => match end {
                    Some(_) => break,
                    None => {
                        end = Some(End::Stopped);
                        work.calls.close();
                        late.set(over(Some(GRACE)));
                        continue;
                    }
                },
                () = &mut late => match end {
                    Some(_) => break,
                    None => {
                        end = Some(End::Time);
                        work.calls.close();
                        late.set(over(Some(GRACE)));
                        continue;
                    }
                },
                next = outcomes.next() => match next {
                    Some(Some(outcome)) => outcome,
                    // It was not asked: there was no money for it, or no time.
                    Some(None) => continue,
                    None => break,
                },
            };
            answers += usize::from(outcome.case.error.is_none());
            tally.add(&outcome.case);
            tally.tell(self.progress.as_ref());
            if sender.send(outcome).await.is_err() {
                // The writer failed; its error is reported when it is joined.
                end = Some(End::Stopped);
                break;
            }
        }
        for case in work.given_up() {
            if sender.send(Outcome { case, keep: None }).await.is_err() {
                break;
            }
        }
        (if work.calls.purse.is_empty() { End::Money } else { end.unwrap_or(End::Whole) }, answers)
    }

    /// One case, scored; none where it was not to be asked.
    async fn case(&self, work: &Work<'_>, place: Place) -> Option<Outcome> {
        let outcome = match work.answered.is_unscored(place) {
            true => self.case_again(work, place).await,
            false => self.case_asked(work, place).await,
        };
        work.end(place);
        outcome
    }

    /// A case whose answer is stored and whose scorers failed: only they are asked again.
    async fn case_again(&self, work: &Work<'_>, place: Place) -> Option<Outcome> {
        let (store, run, target) = (self.store.clone(), work.run.to_string(), work.plan.targets[place.target].name.clone());
        let stored = blocking(move || Ok(cases::case(store.db.as_ref(), &run, &target, (place.position, place.repeat))?)).await;
        // What cannot be read now stays without an outcome, and the run incomplete. What the answer cost is written down already.
        let case = CaseRecord { cost_micro_usd: None, ..stored.ok()?? };
        let paid = Paid::new(self.respond.services(), &work.calls);
        work.scoring(place, &case, paid.spent());
        let case = self.scored(work.plan, &Others::new(), (case, &paid)).await;
        Some(Outcome { case, keep: None })
    }

    async fn case_asked(&self, work: &Work<'_>, place: Place) -> Option<Outcome> {
        let (plan, target) = (work.plan, &work.plan.targets[place.target]);
        let mut case = CaseRecord {
            target: target.name.clone(),
            position: place.position,
            repeat: place.repeat,
            scores: json!({}),
            scoring_cost_micro_usd: Some(0),
            ..CaseRecord::default()
        };
        let sample = match plan.samples.get(place.position) {
            Ok(sample) => sample,
            Err(error) => {
                let failure = Failure::from(error);
                case.error = Some(format!("{}: {failure}", failure.code().name));
                case.finished_at = now_ms();
                return Some(Outcome { case, keep: None });
            }
        };
        case.sample.clone_from(&sample.id);
        case.group = plan.group_of(&sample);
        let mut keep = None;
        let Got { answer, cost } = self.patiently(work, place, &sample).await?;
        case.cost_micro_usd = cost;
        match answer {
            Ok(Kept { reply, cached, keep: kept }) => {
                keep = kept;
                (case.cached, case.latency_ms) = (cached, reply.latency_ms);
                (case.input_tokens, case.output_tokens) = (reply.input_tokens, reply.output_tokens);
                case.output.clone_from(&reply.output);
                case.tool_calls.clone_from(&reply.tool_calls);
                case.refusal.clone_from(&reply.refusal);
                case.answered_as.clone_from(&reply.answered_as);
                let paid = Paid::new(self.respond.services(), &work.calls);
                work.scoring(place, &case, paid.spent());
                let verdict = scorers::score(&plan.suite.scorers, &Case::new(&sample, &reply), &paid).await;
                case.notes = verdict.notes();
                case.scores = Value::Object(verdict.scores);
                case.error = verdict.error;
                case.scoring_cost_micro_usd = paid.spent().known();
            }
            Err(failure) => case.error = Some(format!("{}: {failure}", failure.code().name)),
        }
        case.finished_at = now_ms();
        Some(Outcome { case, keep })
    }

    /// One answer; "too busy" is asked again, when the provider may be asked again. None where nothing is to be asked any more.
    async fn patiently(&self, work: &Work<'_>, place: Place, sample: &Sample) -> Option<Got> {
        let target = &work.plan.targets[place.target];
        let (mut paid, mut refusal) = (None::<i64>, None);
        for _ in 0..=BUSY_RETRIES {
            let ready = match self.respond.write(target, &sample.input).await {
                Ok(ready) => ready,
                Err(failure) => return Some(Got { answer: Err(failure), cost: paid }),
            };
            let key = work.plan.suite.cache.then(|| keep::key(&ready, place.repeat));
            if let Some(found) = keep::look_up(&self.store, (key.as_deref(), ready.target()), self.respond.replies_days()).await {
                return Some(Got { cost: paid.or(found.is_ok().then_some(0)), answer: found });
            }
            let Some(leave) = work.begin(place, ready.most_cost().cost).await else { break };
            let answer = self.respond.ask(ready).await;
            let known = match &answer {
                Ok(reply) => reply.cost_micro_usd,
                Err(failure) => cost_of_failure(failure),
            };
            let charged = leave.held.settle(known);
            let cost = known.or(work.calls.purse.is_bounded().then_some(charged));
            paid = paid.into_iter().chain(cost).reduce(i64::saturating_add);
            work.cost(place, paid.unwrap_or(0));
            match answer {
                Ok(reply) => {
                    leave.permit.answered();
                    return Some(Got { answer: Ok(Kept::new(reply, key)), cost: paid });
                }
                Err(failure) if is_busy(&failure) => {
                    leave.permit.refused(failure.retry_after_s().map(Duration::from_secs));
                    refusal = Some(failure);
                }
                Err(failure) => return Some(Got { answer: Err(failure), cost: paid }),
            }
        }
        refusal.map(|failure| Got { answer: Err(failure), cost: paid })
    }
}

/// One process at a time executes a run: two would ask everything twice. The system gives the lock back however a process ends.
fn lock(store: &Store, run: &str) -> Result<Lock, StoreError> {
    Lock::take(store.directory(), run, &format!("executes run {run} from"))
}

/// Goes on with a run: cases without an outcome and cases that ended in an error are asked, all others are kept. What `bounds` say
/// stands in the place of the run's own.
///
/// # Errors
/// [`EvalError::Run`] for a run that has every answer; [`Code::CONFLICT`] where another process executes it; what [`Runner::run`] says.
pub async fn resume_within(
    runner: &Runner,
    run: &str,
    bounds: super::bounds::Bounds,
    stop: impl Stream<Item = ()>,
) -> Result<Report, Failure> {
    let (store, id) = (runner.store.clone(), run.to_string());
    let (mut run, plan, _lock) = blocking(move || {
        let run = runs::get(store.db.as_ref(), &id)?;
        let lock = lock(&store, &run.id)?;
        // As it stands now that nobody else changes it.
        let run = runs::get(store.db.as_ref(), &run.id)?;
        let why = match run.status.as_str() {
            runs::FINISHED | runs::PARTIAL => Some("every case has its answer already"),
            runs::SCORED => Some("its answers were stored before, and nothing is asked; score it again: refit eval score"),
            _ => None,
        };
        if let Some(problem) = why {
            return Err(EvalError::Run { run: run.id, problem: problem.into() }.into());
        }
        let mut plan = restore(&store, &run)?;
        plan.suite.bounds = bounds.or(plan.suite.bounds);
        Ok((run, plan, lock))
    })
    .await?;
    affordable(runner.respond.as_ref(), &plan.suite, &plan.targets)?;
    runner.permits(&plan)?;
    let store = runner.store.clone();
    let (run, plan, answered) = blocking(move || {
        run.status = runs::RUNNING.into();
        runs::finish(store.db.as_ref(), &run, &[])?;
        let answered = Answered::of(&store, &run.id, &plan)?;
        Ok((run, plan, answered))
    })
    .await?;
    runner.execute(run, plan, answered, stop).await
}

/// As [`resume_within`], within the run's own bounds.
///
/// # Errors
/// As [`resume_within`].
pub async fn resume(runner: &Runner, run: &str, stop: impl Stream<Item = ()>) -> Result<Report, Failure> {
    resume_within(runner, run, super::bounds::Bounds::default(), stop).await
}

/// Resolves when the time is over.
async fn over(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn status(plan: &Plan, answers: usize, end: End) -> &'static str {
    match end {
        End::Stopped => runs::CANCELLED,
        End::Money => runs::OUT_OF_MONEY,
        End::Time => runs::OUT_OF_TIME,
        End::Whole if answers < plan.cases() => runs::INCOMPLETE,
        End::Whole if plan.limit.is_some() => runs::PARTIAL,
        End::Whole => runs::FINISHED,
    }
}

fn write(store: &Store, run: &str, mut outcomes: Receiver<Outcome>) -> Result<(), StoreError> {
    let (mut batch, mut replies) = (Vec::new(), Vec::new());
    while let Some(first) = outcomes.blocking_recv() {
        let mut next = Some(first);
        while let Some(Outcome { case, keep }) = next {
            batch.push(case);
            replies.extend(keep);
            next = if batch.len() < WRITE_BATCH { outcomes.try_recv().ok() } else { None };
        }
        cases::put_cases(store.db.as_ref(), run, &batch, &replies)?;
        batch.clear();
        replies.clear();
    }
    Ok(())
}
