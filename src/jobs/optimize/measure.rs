//! Runs of one prompt on one split: found where they are stored, resumed where they were left, made otherwise.

use super::meter::Meter;
use super::{Halt, Request};
use crate::datasets::{Datasets, Sample};
use crate::evals::compare::{Difference, difference};
use crate::evals::prepare::Selection;
use crate::evals::{EvalError, Plan, Runner, Suite, prepare, resume};
use crate::store::Store;
use crate::store::runs::{self, CaseRecord, RunRecord};
use crate::types::error::did_you_mean;
use crate::types::traits::Progress;
use crate::types::{Code, Digest, Failure};
use futures_util::{StreamExt, stream};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A suite, of which one target is measured with other prompts.
pub(super) struct Bench {
    store: Store,
    meter: Arc<Meter>,
    runner: Runner,
    /// The suite as it was read: a file that changes meanwhile changes nothing.
    source: String,
    file: PathBuf,
    author: String,
    model: String,
    pub(super) suite: String,
    pub(super) target: String,
    pub(super) metric: String,
    /// Dataset, as `name@digest`; known after the first measurement.
    dataset: std::sync::OnceLock<String>,
}

/// What a prompt reached on a split.
pub(super) struct Measured {
    pub(super) run: String,
    pub(super) cases: Vec<CaseRecord>,
    /// By id.
    pub(super) samples: HashMap<String, Sample>,
    pub(super) mean: f64,
    /// Cases with an answer.
    pub(super) n: usize,
    pub(super) errors: usize,
}

impl Bench {
    pub(super) fn open(request: &Request, store: Store, meter: Arc<Meter>, progress: Arc<dyn Progress>) -> Result<Self, Failure> {
        let suite = Suite::open(&request.suite)?;
        let (target, metric) = (target(&suite, request)?, metric(&suite, request)?);
        let found = suite.targets.iter().find(|one| one.name == target);
        let model = found.map(|target| target.model.clone()).unwrap_or_default();
        let runner = Runner { store: store.clone(), respond: meter.clone(), progress };
        let (file, author) = (request.suite.clone(), request.author.clone());
        let dataset = std::sync::OnceLock::new();
        Ok(Bench { store, meter, runner, source: suite.source, file, author, model, suite: suite.name, target, metric, dataset })
    }

    /// The model that answers.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The dataset with its version, as people write it.
    pub(super) fn dataset_version(&self) -> Result<String, Failure> {
        let row = Datasets::new(&self.store).get(self.dataset.get().map_or("", String::as_str))?;
        Ok(format!("{}@{}", row.dataset, row.version))
    }

    /// Measures a stored prompt on the first samples of a split, or on all.
    pub(super) async fn measure(&self, prompt: &str, split: &str, limit: Option<usize>) -> Result<Measured, Halt> {
        let plan = self.plan(prompt, split, limit)?;
        let _ = self.dataset.set(format!("{}@{}", plan.dataset, plan.dataset_digest));
        let samples = plan.samples.iter().map(|sample| sample.map(|sample| (sample.id.clone(), sample)));
        let samples: HashMap<String, Sample> = samples.collect::<Result<_, _>>()?;
        let stop = stream::once(async {
            self.meter.ended().await;
        });
        // What ended stays ended: it is said once.
        let stop = stop.chain(stream::pending());
        let run = match self.stored(&plan)? {
            Some(run) if matches!(run.status.as_str(), runs::FINISHED | runs::PARTIAL) => run.id,
            Some(run) => self.whole(resume(&self.runner, &run.id, stop).await?).await?,
            None => self.whole(self.runner.run(plan, stop).await?).await?,
        };
        let cases = runs::cases(self.store.db.as_ref(), &run)?;
        let values: Vec<f64> = cases.iter().filter_map(|case| case.scores[&self.metric].as_f64()).collect();
        let (n, errors) = (values.len(), cases.len() - values.len());
        let mean = values.iter().sum::<f64>() / (n.max(1) as f64);
        Ok(Measured { run, cases, samples, mean, n, errors })
    }

    /// The run of a report, unless it was stopped.
    async fn whole(&self, report: crate::evals::Report) -> Result<String, Halt> {
        if report.status == runs::CANCELLED {
            return Err(Halt::Ended(self.meter.ended().await));
        }
        Ok(report.run)
    }

    fn plan(&self, prompt: &str, split: &str, limit: Option<usize>) -> Result<Plan, Failure> {
        let folder = self.file.parent().unwrap_or(std::path::Path::new(""));
        let mut suite = Suite::parse(&self.source, &self.file.display().to_string(), folder)?;
        for target in suite.targets.iter_mut().filter(|target| target.name == self.target) {
            target.prompt = Some(prompt.to_string());
        }
        let targets = vec![self.target.clone()];
        let selection = Selection { split: Some(split.to_string()), targets, limit, ..Selection::default() };
        prepare(&self.store, suite, &selection, &self.author)
    }

    /// A run that measures, or measured, the same.
    fn stored(&self, plan: &Plan) -> Result<Option<RunRecord>, Failure> {
        let db = self.store.db.as_ref();
        let release = plan.targets.first().map(|target| target.release);
        for run in runs::list(db, Some(&plan.suite.name))? {
            let is_same = run.suite_digest == Digest::of(&self.source)
                && (run.dataset_digest, &run.split) == (plan.dataset_digest, &plan.split)
                && run.config["limit"].as_u64() == plan.limit.map(|limit| limit as u64)
                && run.config["assignment"].as_str() == plan.assignment.map(|digest| digest.to_string()).as_deref();
            if !is_same {
                continue;
            }
            if let [only] = &runs::targets(db, &run.id)?[..]
                && Some(only.release) == release
                && only.target == self.target
            {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }
}

impl Measured {
    /// Refuses a measurement in which something went wrong.
    pub(super) fn complete(&self, name: &str) -> Result<(), Failure> {
        if self.errors == 0 {
            return Ok(());
        }
        let message = format!("{} cases of run {} ({name}) ended in an error: there is nothing to compare with", self.errors, self.run);
        Err(Failure::new(Code::UPSTREAM, message).with_hint(format!("`refit eval show {} --cases --missed` lists them", self.run)))
    }

    /// What `other` reached beyond this, over the samples that both have.
    pub(super) fn difference(&self, metric: &str, (name, other_name): (&str, &str), other: &Measured) -> Difference {
        let (left, right): (Vec<_>, Vec<_>) = (self.cases.iter().collect(), other.cases.iter().collect());
        difference(metric, (name, &left), (other_name, &right))
    }
}

/// The target that is measured: the one that is named, the one that has the prompt, or the first.
fn target(suite: &Suite, request: &Request) -> Result<String, Failure> {
    let names = || suite.targets.iter().map(|target| target.name.as_str());
    match &request.target {
        Some(name) if names().any(|known| known == name) => Ok(name.clone()),
        Some(name) => {
            let problem = format!("there is no target \"{name}\"{}", did_you_mean(name, names()));
            Err(EvalError::Invalid { suite: suite.name.clone(), problem, hint: None }.into())
        }
        None => {
            let (as_file, as_reference) = (format!("{}.prompt", request.name), format!("{}@", request.name));
            let has = |prompt: &String| {
                *prompt == request.name || prompt.starts_with(&as_reference) || prompt.rsplit('/').next() == Some(as_file.as_str())
            };
            let own = suite.targets.iter().find(|target| target.prompt.as_ref().is_some_and(has));
            Ok(own.or(suite.targets.first()).map(|target| target.name.clone()).unwrap_or_default())
        }
    }
}

fn metric(suite: &Suite, request: &Request) -> Result<String, Failure> {
    let known = suite.metrics();
    match &request.metric {
        None => Ok(known.into_iter().next().unwrap_or_default()),
        Some(metric) if known.contains(metric) => Ok(metric.clone()),
        Some(metric) => {
            let nearest = did_you_mean(metric, known.iter().map(String::as_str));
            let message = format!("no scorer of suite \"{}\" reports \"{metric}\"{nearest} (metrics: {})", suite.name, known.join(", "));
            Err(Failure::on(Code::UNKNOWN_NAME, "--metric", message))
        }
    }
}
