//! From a suite to a plan: datasets, prompts, models and adapters are found and checked first; only then is anything written (the
//! dataset and prompts that the suite names as files).

use super::EvalError;
use super::bounds::Bounds;
use super::samples::{Samples, assignment_of};
use super::score::keep_targets;
use super::scorers::ScorerFiles;
use super::scorers::files::Kept;
use super::suite::{MAX_REPEATS, Suite, Target};
use super::variants;
use crate::access::audit;
use crate::datasets::import::Replace;
use crate::datasets::{Datasets, Sample};
use crate::prompts::library::By;
use crate::prompts::{Library, Prompt, sync};
use crate::releases::Manifest;
use crate::releases::manifest::PromptRef;
use crate::store::datasets::DatasetVersion;
use crate::store::runs::RunRecord;
use crate::store::{Store, StoreError, adapters, models, runs};
use crate::types::error::did_you_mean;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure, ids};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What to change of a suite for one run.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Another split.
    pub split: Option<String>,
    /// Only these targets.
    pub targets: Vec<String>,
    /// Only the first samples of the split; such a run proves nothing.
    pub limit: Option<usize>,
    /// Another concurrency.
    pub concurrency: Option<usize>,
    /// These prompts instead of the targets' own: every target with every prompt.
    pub prompts: Vec<String>,
    /// How often each sample is asked.
    pub repeats: Option<usize>,
    /// Whether answers that were given before are given again.
    pub cache: Option<bool>,
    /// What the run may cost and take.
    pub bounds: Bounds,
}

/// A run, ready to begin.
pub struct Plan {
    /// The suite.
    pub suite: Suite,
    /// Dataset name.
    pub dataset: String,
    /// Dataset version.
    pub dataset_digest: Digest,
    /// Split, `all` without one.
    pub split: String,
    /// Blob with the assignment of samples to splits.
    pub assignment: Option<Digest>,
    /// Samples asked for, when not all of the split.
    pub limit: Option<usize>,
    /// Prompts that stand in place of the targets' own.
    pub prompts: Vec<String>,
    /// The samples, in the order of the split.
    pub samples: Samples,
    /// What is measured.
    pub targets: Vec<PlanTarget>,
}

/// One target, found.
#[derive(Debug, Clone)]
pub struct PlanTarget {
    /// Name.
    pub name: String,
    /// Everything that decides what it answers.
    pub manifest: Manifest,
    /// Digest of the manifest: the release that the run can prove.
    pub release: Digest,
}

/// Finds everything a suite names and returns the plan.
///
/// # Errors
/// The first thing that is missing or does not fit; nothing is written then.
pub fn prepare(store: &Store, mut suite: Suite, selection: &Selection, author: &str) -> Result<Plan, Failure> {
    select(&mut suite, selection)?;
    let library = Library::new(store);
    let prompts = suite.targets.iter().map(|target| prompt_of(&suite, &library, target)).collect::<Result<Vec<_>, _>>()?;
    let mut targets = Vec::new();
    for (target, prompt) in suite.targets.iter().zip(&prompts) {
        let manifest = manifest(store, target, prompt.as_ref().map(|found| found.prompt.as_ref()))?;
        targets.push(PlanTarget { name: target.name.clone(), release: manifest.digest(), manifest });
    }
    let (row, assignment) = dataset(store, &suite)?;
    let samples = Samples::open(store, &row, suite.split.as_deref().zip(assignment.as_ref()), selection.limit)?;
    samples_fit(&suite, &samples, &prompts)?;
    for found in prompts.iter().flatten() {
        if let Some(source) = &found.source {
            let by = By { author, message: &format!("suite {}", suite.name), commit: &audit::commit(store) };
            publish(store, &library, found, source, by)?;
        }
    }
    let split = suite.split.clone().unwrap_or_else(|| "all".into());
    let (limit, prompts) = (selection.limit, selection.prompts.clone());
    Ok(Plan { suite, dataset: row.dataset, dataset_digest: row.digest, split, assignment, limit, prompts, samples, targets })
}

/// Publishes the file of a target, as `refit prompt publish` would. What is a version already is measured as that version.
fn publish(store: &Store, library: &Library, found: &Found, source: &str, by: By<'_>) -> Result<(), Failure> {
    let (name, digest) = (&found.prompt.name, found.prompt.digest);
    let is_newest = library.newest(name)?.is_some_and(|newest| newest.digest == digest);
    if !is_newest && library.holding(name, &digest)?.is_some() {
        return Ok(());
    }
    library.publish_from(name, source, sync::edited_from(store, &found.path, name)?, by)?;
    Ok(sync::remember(store, &found.path, name, digest)?)
}

/// The plan of a stored run, exactly as it began.
///
/// # Errors
/// When the stored run cannot be read, or its dataset is gone.
pub fn restore(store: &Store, run: &RunRecord) -> Result<Plan, Failure> {
    restore_as(store, run, None)
}

/// As [`restore`], with the scorers and the gate of another suite, where one is given.
///
/// # Errors
/// As [`restore`].
pub fn restore_as(store: &Store, run: &RunRecord, suite: Option<Suite>) -> Result<Plan, Failure> {
    let unreadable = |what: &str| unreadable(run, what);
    let prompts: Vec<String> = serde_json::from_value(run.config["prompts"].clone()).unwrap_or_default();
    let mut suite = match suite {
        Some(suite) => suite,
        None => {
            let mut suite = suite_of(store, run)?;
            variants::replace(&mut suite, &prompts)?;
            suite
        }
    };
    settle(&mut suite, &run.config);
    let stored = runs::targets(store.db.as_ref(), &run.id)?;
    let mut targets = Vec::new();
    for name in run.config["targets"].as_array().into_iter().flatten().filter_map(|name| name.as_str()) {
        let found = stored.iter().find(|target| target.target == name).ok_or_else(|| unreadable("targets"))?;
        let manifest: Manifest = serde_json::from_value(found.manifest.clone()).map_err(|_| unreadable("manifests"))?;
        targets.push(PlanTarget { name: name.to_string(), release: found.release, manifest });
    }
    let row = Datasets::new(store).get(&format!("{}@{}", run.dataset, run.dataset_digest))?;
    let assignment: Option<Digest> = run.config["assignment"].as_str().and_then(|text| text.parse().ok());
    let limit = run.config["limit"].as_u64().map(|limit| limit as usize);
    let samples = Samples::open(store, &row, suite.split.as_deref().zip(assignment.as_ref()), limit)?;
    let (split, dataset, dataset_digest) = (run.split.clone(), run.dataset.clone(), run.dataset_digest);
    let mut plan = Plan { suite, dataset, dataset_digest, split, assignment, limit, prompts, samples, targets };
    keep_targets(&mut plan);
    Ok(plan)
}

/// The suite of a stored run as it was written, with the files that its scorers were made of.
///
/// # Errors
/// When it, or one of its files, cannot be read.
pub fn suite_of(store: &Store, run: &RunRecord) -> Result<Suite, Failure> {
    let source = run.config["suite_source"].as_str().ok_or_else(|| unreadable(run, "suite"))?;
    let mut files = Kept::new();
    for (name, digest) in run.config["scorer_files"].as_object().into_iter().flatten() {
        let digest = digest.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| unreadable(run, "scorers"))?;
        files.insert(name.clone(), store.blobs.get(&digest)?.into());
    }
    Ok(Suite::parse_with(source, &format!("suite of {}", run.id), Path::new(""), ScorerFiles::kept(files))?)
}

fn unreadable(run: &RunRecord, what: &str) -> EvalError {
    EvalError::Run { run: run.id.clone(), problem: format!("its stored {what} cannot be read") }
}

/// What flags said when a run began.
fn settle(suite: &mut Suite, config: &Value) {
    let number = |key: &str| config[key].as_u64();
    suite.split = config["split"].as_str().map(String::from);
    suite.concurrency = number("concurrency").map_or(suite.concurrency, |count| count as usize);
    suite.repeats = number("repeats").map_or(suite.repeats, |count| count as usize);
    suite.cache = config["cache"].as_bool().unwrap_or(suite.cache);
    let cost = config["max_cost_micro_usd"].as_i64().map(MicroUsd);
    suite.bounds = Bounds { cost, time: config["max_time_s"].as_f64().and_then(|time| Duration::try_from_secs_f64(time).ok()) };
}

impl Plan {
    /// The record of a run that begins.
    pub(super) fn record(&self) -> RunRecord {
        RunRecord {
            id: ids::new_id("run"),
            suite: self.suite.name.clone(),
            suite_digest: Digest::of(&self.suite.source),
            scorers_digest: self.suite.scorers_digest,
            dataset: self.dataset.clone(),
            dataset_digest: self.dataset_digest,
            split: self.split.clone(),
            status: runs::RUNNING.into(),
            config: self.config(),
            summary: Value::Null,
            created_at: now_ms(),
            finished_at: None,
        }
    }

    /// What a run stores to be resumed.
    pub(super) fn config(&self) -> serde_json::Value {
        let targets: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
        let Bounds { cost, time } = self.suite.bounds;
        let files: Map<_, _> = self.suite.files.iter().map(|(name, bytes)| (name.clone(), json!(Digest::of(bytes)))).collect();
        json!({"suite_source": self.suite.source, "scorer_files": files, "split": self.suite.split, "assignment": self.assignment, "limit": self.limit,
            "concurrency": self.suite.concurrency, "targets": targets, "prompts": self.prompts, "repeats": self.suite.repeats,
            "cache": self.suite.cache, "max_cost_micro_usd": cost, "max_time_s": time.map(|time| time.as_secs_f64())})
    }

    /// Stores the files that the scorers are made of, so that the run can be scored again with the same ones. Blocking.
    pub(super) fn keep_files(&self, store: &Store) -> Result<(), StoreError> {
        self.suite.files.values().try_for_each(|bytes| store.blobs.put(bytes).map(drop))
    }

    /// Calls that the run makes: every sample of every target, as often as it is repeated.
    pub fn cases(&self) -> usize {
        self.samples.len() * self.targets.len() * self.suite.repeats
    }

    /// The group of a sample, where the suite names a field.
    pub(super) fn group_of(&self, sample: &Sample) -> Option<String> {
        self.suite.cluster.as_ref().and_then(|path| group(sample, path))
    }
}

fn select(suite: &mut Suite, selection: &Selection) -> Result<(), Failure> {
    if let Some(split) = &selection.split {
        suite.split = Some(split.clone());
    }
    suite.concurrency = selection.concurrency.unwrap_or(suite.concurrency).clamp(1, 1024);
    suite.repeats = selection.repeats.unwrap_or(suite.repeats).clamp(1, MAX_REPEATS);
    suite.cache = selection.cache.unwrap_or(suite.cache);
    suite.bounds = selection.bounds.or(suite.bounds);
    for name in &selection.targets {
        if !suite.targets.iter().any(|target| target.name == *name) {
            let nearest = did_you_mean(name, suite.targets.iter().map(|target| target.name.as_str()));
            let problem = format!("there is no target \"{name}\"{nearest}");
            return Err(EvalError::Invalid { suite: suite.name.clone(), problem, hint: None }.into());
        }
    }
    if !selection.targets.is_empty() {
        suite.targets.retain(|target| selection.targets.contains(&target.name));
        // What is not measured is not judged.
        suite.gate.retain(|condition| condition.target.as_ref().is_none_or(|target| selection.targets.contains(target)));
        suite.demands.retain(|demand| demand.target.as_ref().is_none_or(|target| selection.targets.contains(target)));
    }
    variants::replace(suite, &selection.prompts)
}

/// Prompts of a suite's targets, by the names that the suite has for them.
pub type Prompts = BTreeMap<String, Arc<Prompt>>;

/// What a suite measures with, found as a run finds it (its dataset becomes a version): the samples, and the prompts of its targets by
/// the names that it has for them.
///
/// # Errors
/// The first thing that is missing.
pub fn materials(store: &Store, suite: &Suite) -> Result<(Vec<Sample>, Prompts), Failure> {
    let (row, assignment) = dataset(store, suite)?;
    let samples = Samples::open(store, &row, suite.split.as_deref().zip(assignment.as_ref()), None)?;
    let library = Library::new(store);
    let mut prompts = Prompts::new();
    for target in &suite.targets {
        if let Some((name, found)) = target.prompt.clone().zip(prompt_of(suite, &library, target)?) {
            prompts.insert(name, found.prompt);
        }
    }
    Ok((samples.iter().collect::<Result<_, _>>()?, prompts))
}

/// A prompt of a target; with its source when it comes from a file and has to be published.
struct Found {
    prompt: Arc<Prompt>,
    source: Option<String>,
    path: PathBuf,
}

fn prompt_of(suite: &Suite, library: &Library, target: &Target) -> Result<Option<Found>, Failure> {
    let Some(reference) = &target.prompt else { return Ok(None) };
    if !reference.ends_with(".prompt") {
        return Ok(Some(Found { prompt: library.open(reference)?, source: None, path: PathBuf::new() }));
    }
    let path = suite.path(reference);
    let read = |cause| EvalError::Read { file: path.display().to_string(), cause };
    let source = std::fs::read_to_string(&path).map_err(read)?;
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Some(Found { prompt: Arc::new(Prompt::parse(&name, &source)?), source: Some(source), path }))
}

/// The manifest that a target stands for.
///
/// # Errors
/// [`Code::MODEL_NOT_FOUND`] for a local model that is not stored; unknown adapters.
pub fn manifest(store: &Store, target: &Target, prompt: Option<&Prompt>) -> Result<Manifest, Failure> {
    let db = store.db.as_ref();
    let mut model_digest = None;
    let mut adapter = None;
    if let Some(name) = target.model.strip_prefix("local/") {
        let Some(model) = models::find(db, name)? else {
            let message = format!("target \"{}\": model \"{}\" is not stored here", target.name, target.model);
            return Err(Failure::on(Code::MODEL_NOT_FOUND, "model", message).with_hint(format!("fetch it: refit model pull {name}")));
        };
        model_digest = Some(model.digest);
        adapter = target.adapter.as_ref().map(|reference| adapters::get(db, name, reference)).transpose()?.map(|found| found.digest);
    } else if target.adapter.is_some() {
        let message = format!("target \"{}\": only local models take an adapter", target.name);
        return Err(Failure::on(Code::UNSUPPORTED, "adapter", message));
    }
    let mut parameters = prompt.map(|prompt| prompt.front.config.clone()).unwrap_or_default();
    parameters.extend(target.parameters.clone());
    Ok(Manifest {
        model: target.model.clone(),
        model_digest,
        adapter,
        prompt: prompt.map(|prompt| PromptRef { name: prompt.name.clone(), digest: prompt.digest }),
        parameters,
        tools: Vec::new(),
        response_format: None,
        guardrails: Vec::new(),
    })
}

/// The dataset version of a suite, and how it is split, where a split is measured.
pub(super) fn dataset(store: &Store, suite: &Suite) -> Result<(DatasetVersion, Option<Digest>), Failure> {
    let datasets = Datasets::new(store);
    let path = suite.path(&suite.dataset);
    let row = if path.extension().is_some() && (path.is_file() || suite.dataset.contains('/')) {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        datasets.import(&name, &path, None)?.0
    } else {
        datasets.get(&suite.dataset)?
    };
    let row = match (&suite.split, &suite.splits) {
        (Some(_), Some(plan)) if row.splits.is_null() => {
            datasets.split(&format!("{}@{}", row.dataset, row.version), plan, Replace::No)?.row
        }
        _ => row,
    };
    let assignment = suite.split.as_ref().map(|_| assignment_of(&row)).transpose()?;
    Ok((row, assignment))
}

/// Every sample must bring what the prompts require and the suite groups by: better to know before the first call than after the last.
fn samples_fit(suite: &Suite, samples: &Samples, prompts: &[Option<Found>]) -> Result<(), Failure> {
    let invalid = |problem: String, hint: Option<String>| EvalError::Invalid { suite: suite.name.clone(), problem, hint };
    if samples.is_empty() {
        return Err(invalid("there are no samples to measure".into(), None).into());
    }
    let required: Vec<_> = prompts
        .iter()
        .flatten()
        .flat_map(|found| found.prompt.required_variables().into_iter().map(|name| (&found.prompt.name, name)))
        .collect();
    for sample in samples.iter() {
        let sample = sample?;
        if let Some((prompt, name)) = required.iter().find(|(_, name)| !sample.input.contains_key(name)) {
            let nearest = did_you_mean(name, sample.input.keys().map(String::as_str));
            let problem = format!("prompt \"{prompt}\" needs variable \"{name}\", which sample {} does not have{nearest}", sample.id);
            let has: Vec<&str> = sample.input.keys().map(String::as_str).collect();
            return Err(invalid(problem, Some(format!("the sample's input has: {}", has.join(", ")))).into());
        }
        if let Some(path) = suite.cluster.as_ref().filter(|path| group(&sample, path).is_none()) {
            let problem = format!("cluster: sample {} has no field \"{path}\"", sample.id);
            let hint = "name a field of the samples' metadata, input or target, such as metadata.article";
            return Err(invalid(problem, Some(hint.into())).into());
        }
    }
    Ok(())
}

/// A field of a sample: `metadata.x`, `input.x`, `target.x`, or a name that is looked for in metadata and then in the input.
fn group(sample: &Sample, path: &str) -> Option<String> {
    let found = match path.split_once('.') {
        Some(("metadata", name)) => sample.metadata.get(name),
        Some(("input", name)) => sample.input.get(name),
        Some(("target", name)) => sample.target.get(name),
        _ if path == "target" => Some(&sample.target),
        _ => sample.metadata.get(path).or_else(|| sample.input.get(path)),
    };
    found.filter(|value| !value.is_null()).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_string))
}
