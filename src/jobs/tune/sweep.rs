//! A sweep: every combination of some learning rates and ranks, halved again and again (successive halving, Jamieson and Talwalkar 2016, arXiv
//! 1502.07943). Each trial is a tuning job that stops at a rung and goes on from its checkpoint if its validation loss is in the better half; the
//! winner is trained to its end and measured on the test split, once. Where it stands is in the job's progress: a sweep that was stopped goes on.

use super::estimate::forecast;
use super::work::checkpoint_directory;
use super::{Examined, Spec, Tune, conversations, examined};
use crate::datasets::Datasets;
use crate::jobs::worker::{self, Handle, Job};
use crate::models;
use crate::store::jobs::{self, JobRecord};
use crate::store::{Store, StoreError, adapters, job_events};
use crate::tuning::measure::{Measured, measure};
use crate::tuning::{AnyRecipe, Data, Method, Recipe};
use crate::types::ids::new_id;
use crate::types::{Code, Failure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The split that the winner is measured on.
const TEST: &str = "test";
/// Pause between looks at a trial that somebody else works on.
const POLL: Duration = Duration::from_millis(500);
/// Trials of a sweep, at most.
const MAX_TRIALS: usize = 64;

/// The work.
pub struct Sweep;

/// What a sweep tries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SweepSpec {
    /// What all trials share.
    pub recipe: AnyRecipe,
    /// Learning rates; the recipe's own where empty.
    pub learning_rates: Vec<f64>,
    /// Ranks; the recipe's own where empty. alpha stays in proportion.
    pub ranks: Vec<usize>,
    /// Seconds of training, over all trials and resumptions.
    pub budget_s: f64,
}

/// One combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trial {
    /// Its tuning job.
    pub job: String,
    /// Learning rate.
    pub learning_rate: f64,
    /// Rank.
    pub rank: usize,
    /// Steps that it got.
    pub steps: usize,
    /// Lowest validation loss within them.
    pub validation_loss: Option<f64>,
    /// Seconds that it trained.
    pub seconds: f64,
    /// Why it fell out, where that is not its loss.
    pub error: Option<String>,
}

/// Where a sweep stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SweepState {
    /// Everything that is tried.
    pub trials: Vec<Trial>,
    /// Trials that are still in.
    pub alive: Vec<usize>,
    /// Steps of each rung.
    pub rungs: Vec<usize>,
    /// Rungs that are done.
    pub rung: usize,
    /// Trial and rung that is trained now, for bars.
    pub step: usize,
    /// Steps of the whole sweep, as far as it is planned.
    pub steps: usize,
}

/// What a sweep returns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SweepResult {
    /// Every trial, the winner first.
    pub trials: Vec<Trial>,
    /// The winner's adapter; none where the budget ended before it was trained.
    pub adapter: Option<String>,
    /// The winner on the test split; none without one, or without an adapter.
    pub test: Option<Measured>,
    /// What is to be said about it.
    pub note: Option<String>,
}

/// Checks a sweep and queues its job.
///
/// # Errors
/// [`Code::INVALID_VALUE`] for a head, too many trials or a recipe that cannot work; [`Code::INVALID_REQUEST`] without a validation split.
pub fn enqueue_sweep(store: &Store, spec: &SweepSpec) -> Result<JobRecord, Failure> {
    let recipes = recipes(spec)?;
    for recipe in &recipes {
        AnyRecipe::Lora(recipe.clone()).check()?;
    }
    // The one that needs the most memory.
    let Some(largest) = recipes.into_iter().max_by_key(|recipe| recipe.rank) else { return Err(nothing()) };
    let Examined { forecast, validation, .. } = examined(store, AnyRecipe::Lora(largest))?;
    if validation == 0 {
        let dataset = spec.recipe.dataset();
        let message = format!("dataset {dataset}: a sweep chooses by the validation split, and it has none");
        return Err(Failure::on(Code::INVALID_REQUEST, "dataset", message).with_hint(format!("refit data split {dataset} --seed 7")));
    }
    forecast.map_or(Ok(()), |forecast| forecast.check())?;
    let spec = serde_json::to_value(spec).expect("a spec is texts and numbers: serialising cannot fail");
    Ok(jobs::enqueue(store.db.as_ref(), Sweep::KIND, &spec)?)
}

fn nothing() -> Failure {
    Failure::on(Code::INVALID_VALUE, "rank", "there is nothing to try")
}

/// A recipe for every combination.
fn recipes(spec: &SweepSpec) -> Result<Vec<Recipe>, Failure> {
    let AnyRecipe::Lora(base) = &spec.recipe else {
        return Err(Failure::on(Code::INVALID_VALUE, "method", "a head tries its strengths by itself; a sweep is for adapters"));
    };
    if base.method == Method::Full {
        let message = "every trial of a sweep would be a model of its own; a sweep is for adapters";
        return Err(Failure::on(Code::INVALID_VALUE, "method", message));
    }
    let rates = if spec.learning_rates.is_empty() { vec![base.learning_rate] } else { spec.learning_rates.clone() };
    let ranks = if spec.ranks.is_empty() { vec![base.rank] } else { spec.ranks.clone() };
    let mut all = Vec::new();
    for learning_rate in &rates {
        for rank in &ranks {
            let alpha = base.alpha * *rank as f32 / base.rank as f32;
            let number = all.len() + 1;
            let name: String = base.name.chars().take(56).collect();
            all.push(Recipe { name: format!("{name}-t{number}"), learning_rate: *learning_rate, rank: *rank, alpha, ..base.clone() });
        }
    }
    if all.len() > MAX_TRIALS {
        return Err(Failure::on(Code::INVALID_VALUE, "rank", format!("{} combinations; at most {MAX_TRIALS} are tried", all.len())));
    }
    Ok(all)
}

/// Steps of each rung: the last is the whole training, each before it half of the next, as many as halve the trials to one.
fn rungs(trials: usize, steps: usize) -> Vec<usize> {
    let halvings = trials.next_power_of_two().trailing_zeros() as usize;
    let mut rungs: Vec<usize> = (0..=halvings).map(|before| (steps >> (halvings - before)).max(1)).collect();
    rungs.dedup();
    rungs
}

impl Job for Sweep {
    const KIND: &'static str = "sweep";

    fn run(store: &Store, spec: &Value, handle: &Handle) -> Result<Value, Failure> {
        let spec: SweepSpec =
            serde_json::from_value(spec.clone()).map_err(|error| Failure::new(Code::CORRUPT, format!("the job's spec: {error}")))?;
        let state: SweepState = serde_json::from_value(jobs::get(store.db.as_ref(), &handle.id)?.progress).unwrap_or_default();
        let mut running = Running { store, handle, spec: &spec, state };
        if !running.is_planned()? {
            running.plan()?;
        }
        let result = running.halve()?;
        Ok(serde_json::to_value(result).expect("texts and numbers: serialising cannot fail"))
    }
}

/// A sweep at work.
struct Running<'a> {
    store: &'a Store,
    handle: &'a Handle,
    spec: &'a SweepSpec,
    state: SweepState,
}

impl Running<'_> {
    /// Whether the jobs of its trials are there: they and what is known of them are stored together.
    fn is_planned(&self) -> Result<bool, Failure> {
        let Some(first) = self.state.trials.first() else { return Ok(false) };
        match jobs::get(self.store.db.as_ref(), &first.job) {
            Err(StoreError::Unknown { .. }) => Ok(false),
            found => Ok(found.map(|_| true)?),
        }
    }

    /// Plans the rungs and queues a job for every combination, all of them or none.
    fn plan(&mut self) -> Result<(), Failure> {
        let recipes = recipes(self.spec)?;
        let (resolved, dataset) = super::resolved(self.store, self.spec.recipe.clone())?;
        let train = conversations(self.store, &resolved, &dataset, "train")?;
        let data = Data { train: &train, validation: &[] };
        let first = AnyRecipe::Lora(recipes.first().ok_or_else(nothing)?.clone());
        let steps = forecast(self.store, &first, resolved.model_digest, &data)?.map_or(0, |forecast| forecast.estimate.steps);
        self.state = SweepState { rungs: rungs(recipes.len(), steps), alive: (0..recipes.len()).collect(), ..SweepState::default() };
        let mut statements = Vec::new();
        for recipe in recipes {
            let (job, learning_rate, rank) = (new_id("job"), recipe.learning_rate, recipe.rank);
            // Every rung ends with a validation.
            let recipe = AnyRecipe::Lora(Recipe { validate_every: self.state.rungs[0], ..recipe });
            let spec =
                serde_json::to_value(Spec { recipe, ..resolved.clone() }).expect("a spec is texts and numbers: serialising cannot fail");
            statements.push(jobs::queueing(&job, Tune::KIND, &spec));
            self.state.trials.push(Trial { job, learning_rate, rank, steps: 0, validation_loss: None, seconds: 0.0, error: None });
        }
        self.state.steps = self.planned();
        // Known to the heartbeat first, which would store what was before over it.
        self.keep();
        statements.push(jobs::progressing(&self.handle.id, &self.handle.owner, &self.told()));
        Ok(self.store.db.batch(&statements)?)
    }

    /// Steps that are left and done, if nothing but losses decides.
    fn planned(&self) -> usize {
        let (mut alive, mut before, mut sum) = (self.state.trials.len(), 0, 0);
        for rung in &self.state.rungs {
            sum += alive * (rung - before);
            (before, alive) = (*rung, alive.div_ceil(2));
        }
        sum
    }

    fn told(&self) -> Value {
        serde_json::to_value(&self.state).expect("texts and numbers: serialising cannot fail")
    }

    fn keep(&self) {
        self.handle.progress(self.told());
    }

    fn spent(&self) -> f64 {
        self.state.trials.iter().map(|trial| trial.seconds).sum()
    }

    /// Rung after rung, the better half goes on.
    fn halve(&mut self) -> Result<SweepResult, Failure> {
        while self.state.rung < self.state.rungs.len() {
            let stop_at = self.state.rungs[self.state.rung];
            let is_last = self.state.rung + 1 == self.state.rungs.len();
            for at in self.state.alive.clone() {
                if self.state.trials[at].steps >= stop_at || self.state.trials[at].error.is_some() {
                    continue;
                }
                if self.spent() < self.spec.budget_s {
                    self.train(at, stop_at, is_last)?;
                    self.keep();
                }
                if self.state.trials[at].steps < stop_at && self.state.trials[at].error.is_none() {
                    return self.out_of_time();
                }
            }
            self.state.alive.retain(|at| self.state.trials[*at].error.is_none());
            let loss = |at: &usize| self.state.trials[*at].validation_loss.unwrap_or(f64::MAX);
            let mut order = self.state.alive.clone();
            order.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
            if !is_last {
                order.truncate(order.len().div_ceil(2));
            }
            if order.is_empty() {
                let why = self.state.trials.iter().filter_map(|trial| trial.error.clone()).next().unwrap_or_default();
                return Err(Failure::new(Code::INVALID_VALUE, format!("every trial failed: {why}")));
            }
            self.state.alive = order;
            self.state.rung += 1;
            self.keep();
        }
        self.finish()
    }

    /// Trains one until it has so many steps, or to its end, or until the budget is spent: then it has fewer.
    fn train(&mut self, at: usize, stop_at: usize, is_last: bool) -> Result<(), Failure> {
        let db = self.store.db.as_ref();
        let id = self.state.trials[at].job.clone();
        let (began, mut is_late) = (Instant::now(), false);
        let mut ended = self.idle(&id)?;
        let step = |job: &JobRecord| usize::try_from(job.progress["step"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        let done = step(&ended);
        let stands = ended.status == "succeeded" || (ended.status == "cancelled" && !is_last && done >= stop_at);
        if !stands {
            let mut spec = ended.spec.clone();
            spec["stop_at"] = if is_last { Value::Null } else { stop_at.into() };
            jobs::respec(db, &id, &spec)?;
            if ended.status != "queued" {
                jobs::requeue(db, &id)?;
            }
            let child = worker::spawn(self.store.directory(), &id)?;
            let (before, left) = (self.state.step, self.spec.budget_s - self.spent());
            ended = worker::wait(self.store, &id, child, &mut |job| {
                self.state.step = before + step(job).saturating_sub(done);
                self.keep();
                is_late = began.elapsed().as_secs_f64() >= left;
                !self.handle.cancelled() && !is_late
            })?;
        }
        let curve = job_events::curve(db, &id)?;
        let within = curve.iter().filter(|event| event.step.is_some_and(|step| step <= stop_at as i64));
        let trial = &mut self.state.trials[at];
        trial.validation_loss = within.filter_map(|event| event.data["valid_loss"].as_f64()).min_by(f64::total_cmp);
        trial.seconds += began.elapsed().as_secs_f64();
        if self.handle.cancelled() {
            self.keep();
            return Err(crate::jobs::JobError::Cancelled.into());
        }
        match ended.status.as_str() {
            "failed" => trial.error = Some(ended.error.clone().unwrap_or_else(|| "it failed".into())),
            "cancelled" if step(&ended) < stop_at && is_late => trial.steps = step(&ended),
            "cancelled" if step(&ended) < stop_at => trial.error = Some("it was cancelled".into()),
            _ => trial.steps = stop_at,
        }
        Ok(())
    }

    /// A trial's job when nobody works on it: its worker outlives a sweep that was killed.
    fn idle(&self, id: &str) -> Result<JobRecord, Failure> {
        loop {
            worker::reap(self.store)?;
            let job = jobs::get(self.store.db.as_ref(), id)?;
            if job.status != "running" {
                return Ok(job);
            }
            if self.handle.cancelled() {
                return Err(crate::jobs::JobError::Cancelled.into());
            }
            std::thread::sleep(POLL);
        }
    }

    fn ordered(&self) -> Vec<Trial> {
        let rank = |trial: &Trial| (std::cmp::Reverse(trial.steps), trial.validation_loss.unwrap_or(f64::MAX));
        let mut trials = self.state.trials.clone();
        trials.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        trials
    }

    fn out_of_time(&self) -> Result<SweepResult, Failure> {
        let trials = self.ordered();
        trials.iter().try_for_each(|trial| self.free(trial))?;
        let note = format!(
            "the budget of {:.0} s was spent before the winner was trained; the first of the table goes on with: refit tune resume {}",
            self.spec.budget_s, trials[0].job
        );
        Ok(SweepResult { trials, adapter: None, test: None, note: Some(note) })
    }

    /// Whoever goes on with a trial trains it to its end.
    fn free(&self, trial: &Trial) -> Result<(), Failure> {
        let mut spec = jobs::get(self.store.db.as_ref(), &trial.job)?.spec;
        spec["stop_at"] = Value::Null;
        Ok(jobs::respec(self.store.db.as_ref(), &trial.job, &spec)?)
    }

    /// The winner on the test split, once. The others keep their curves, and no checkpoint unless somebody goes on with it.
    fn finish(&self) -> Result<SweepResult, Failure> {
        let trials = self.ordered();
        let winner = &self.state.trials[self.state.alive[0]];
        for loser in trials.iter().filter(|trial| trial.job != winner.job) {
            match self.free(loser) {
                // Somebody goes on with it, or will.
                Ok(()) if jobs::get(self.store.db.as_ref(), &loser.job)?.status == "queued" => {}
                Ok(()) => drop(std::fs::remove_dir_all(checkpoint_directory(self.store, &loser.job))),
                Err(failure) if failure.code() == Code::CONFLICT => {}
                Err(failure) => return Err(failure),
            }
        }
        let job = jobs::get(self.store.db.as_ref(), &winner.job)?;
        let adapter = job.result["adapter"].as_str().map(String::from);
        // The winner is stored, whatever the split is like.
        let (test, note) = match adapter.as_ref().map(|_| self.tested(&job)) {
            Some(Ok(test)) => (test, None),
            Some(Err(failure)) if [Code::STORAGE, Code::CORRUPT, Code::INTERNAL].contains(&failure.code()) => return Err(failure),
            Some(Err(failure)) => (None, Some(format!("the winner was not measured on the split \"{TEST}\": {failure}"))),
            None => (None, None),
        };
        Ok(SweepResult { trials, adapter, test, note })
    }

    fn tested(&self, job: &JobRecord) -> Result<Option<Measured>, Failure> {
        let corrupt = |error: serde_json::Error| Failure::new(Code::CORRUPT, format!("the spec of job {}: {error}", job.id));
        let spec: Spec = serde_json::from_value(job.spec.clone()).map_err(corrupt)?;
        let dataset = Datasets::new(self.store).open_split(&spec.dataset_digest, &spec.split_digest)?;
        if !dataset.split_names().any(|name| name == TEST) {
            return Ok(None);
        }
        let test = conversations(self.store, &spec, &dataset, TEST)?;
        let digest = job.result["digest"].as_str().and_then(|digest| digest.parse().ok());
        let adapter = digest.map(|digest| adapters::by_digest(self.store.db.as_ref(), &digest)).transpose()?.flatten();
        let (Some(adapter), AnyRecipe::Lora(recipe)) = (adapter, &spec.recipe) else { return Ok(None) };
        let files = models::open(self.store, &spec.model_digest)?;
        let weights = self.store.blobs.get(&adapter.weights)?;
        Ok(Some(measure(&files, recipe, (adapter.config.to_string().as_bytes(), &weights), &test)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_halve_the_steps_and_the_last_is_the_whole_training() {
        assert_eq!(rungs(4, 100), [25, 50, 100]);
        assert_eq!(rungs(5, 80), [10, 20, 40, 80]);
        assert_eq!(rungs(1, 7), [7]);
        assert_eq!(rungs(8, 2), [1, 2], "fewer steps than halvings");
    }

    #[test]
    fn every_combination_is_a_recipe_and_alpha_keeps_its_proportion() {
        let recipe = AnyRecipe::parse("name: a\nmodel: local/m\ndataset: d\nrank: 8\nalpha: 16\n").expect("parses");
        let spec = SweepSpec { recipe, learning_rates: vec![1e-3, 1e-4], ranks: vec![4, 8], budget_s: 1.0 };
        let all = recipes(&spec).expect("recipes");
        let told: Vec<_> = all.iter().map(|recipe| (recipe.name.as_str(), recipe.learning_rate, recipe.rank, recipe.alpha)).collect();
        assert_eq!(told, [("a-t1", 1e-3, 4, 8.0), ("a-t2", 1e-3, 8, 16.0), ("a-t3", 1e-4, 4, 8.0), ("a-t4", 1e-4, 8, 16.0)]);
        assert!(recipes(&SweepSpec { ranks: (1..70).collect(), ..spec }).is_err());
    }
}
