//! A training in its worker: conversations in, a stored adapter out, and what happens meanwhile told to the job's row and its events.

use super::{TuneProgress, TuneResult, estimate, head};
use crate::jobs::worker::Handle;
use crate::models::{self, Files};
use crate::store::Store;
use crate::store::adapters::{self, AdapterRecord, NewAdapter};
use crate::store::job_events::{self, JobEvent};
use crate::store::models::{self as rows, ModelRecord};
use crate::tuning::{self, AnyRecipe, Data, Method, Observer, StepReport};
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use serde_json::{Map, Value, json};
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often events go to the store.
const FLUSH: Duration = Duration::from_secs(1);

/// A training, wherever its conversations came from.
pub(super) struct Training<'a> {
    pub(super) recipe: &'a AnyRecipe,
    pub(super) model_digest: Digest,
    pub(super) data: Data<'a>,
    /// What the adapter's provenance says of its inputs.
    pub(super) lineage: Map<String, Value>,
    /// Steps after which to stop as if somebody had asked for it.
    pub(super) stop_at: Option<usize>,
}

/// Where a job keeps its checkpoints.
pub(super) fn checkpoint_directory(store: &Store, job: &str) -> PathBuf {
    store.directory().join("jobs").join(job)
}

/// Trains by the recipe's method and stores what comes out.
pub(super) fn train(store: &Store, training: &Training<'_>, handle: &Handle) -> Result<TuneResult, Failure> {
    let recipe = match training.recipe {
        AnyRecipe::Lora(recipe) => recipe,
        AnyRecipe::Head(recipe) => return head::run(store, training, recipe, handle),
    };
    let files = models::open(store, &training.model_digest)?;
    let directory = checkpoint_directory(store, &handle.id);
    let watch = Watch::new(store, handle, training.stop_at);
    let trained = tuning::fit(&files, recipe, &training.data, directory, &watch);
    watch.flush();
    let trained = trained?;
    let position = &trained.position;
    let provenance = json!({"steps": position.step, "trained_tokens": position.trained_tokens, "seconds": trained.seconds,
        "losses": position.losses, "metrics": position.metrics, "validations": position.validations,
        "validation_metrics": position.validation_metrics, "stopped_early": trained.stopped_early});
    let (adapter, digest) = if recipe.method == Method::Full {
        let model = keep_model(store, training, handle, (&files, &trained.weights), provenance)?;
        (format!("local/{}", model.name), model.digest)
    } else {
        let adapter = keep(store, training, handle, (&trained.config, &trained.weights), provenance)?;
        (name_of(&adapter), adapter.digest)
    };
    let losses = &position.losses;
    Ok(TuneResult {
        adapter,
        digest,
        parameters: trained.parameters,
        steps: position.step,
        trained_tokens: position.trained_tokens,
        seconds: trained.seconds,
        tokens_per_second: trained.tokens_per_second,
        first_and_last_loss: [losses.first().copied().unwrap_or_default(), losses.last().copied().unwrap_or_default()],
        validation_loss: position.best,
        metrics: position.told(),
        stopped_early: trained.stopped_early,
        peak_memory_bytes: estimate::peak(),
        accuracy: None,
    })
}

/// `local/<model>:<name>@<version>`
pub(super) fn name_of(adapter: &AdapterRecord) -> String {
    format!("local/{}:{}@{}", adapter.model, adapter.name, adapter.version)
}

/// Stores the weights as a blob and the adapter as a row, with where it came from and how that went.
pub(super) fn keep(
    store: &Store,
    training: &Training<'_>,
    handle: &Handle,
    (config, weights): (&[u8], &[u8]),
    how: Value,
) -> Result<AdapterRecord, Failure> {
    let weights = store.blobs.put(weights)?;
    let config: Value = serde_json::from_slice(config).expect("the trainer wrote this JSON");
    let digest = Digest::of_json(&json!({"config": config, "weights": weights, "model": training.model_digest}));
    let (model, name) = (training.recipe.model().to_string(), training.recipe.name().to_string());
    // A worker that was killed after it had stored the adapter, and before it told its job.
    if let Some(stored) = adapters::of_job(store.db.as_ref(), &model, &handle.id)? {
        return Ok(stored);
    }
    let provenance = provenance(training, handle, how);
    let adapter = NewAdapter { model, name, digest, model_digest: training.model_digest, weights, config, provenance };
    Ok(adapters::insert(store.db.as_ref(), &adapter)?)
}

/// Where it came from, and how that went.
fn provenance(training: &Training<'_>, handle: &Handle, how: Value) -> Value {
    let own = json!({"job": handle.id, "recipe": training.recipe, "finished_at": now_ms()});
    let parts = [own, Value::Object(training.lineage.clone()), how];
    parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect::<Map<_, _>>().into()
}

/// Stores a model whose own weights were trained, under the recipe's name. Its weights' metadata says where it came from.
fn keep_model(
    store: &Store,
    training: &Training<'_>,
    handle: &Handle,
    (files, weights): (&Files, &[u8]),
    how: Value,
) -> Result<ModelRecord, Failure> {
    let folder = checkpoint_directory(store, &handle.id).join("model");
    // What a worker that was killed left: a folder, or a model that its job never told of.
    let _ = fs::remove_dir_all(&folder);
    let job = format!("tune:{} ", handle.id);
    if let Some(stored) = rows::find_by_source(store.db.as_ref(), &job)? {
        return Ok(stored);
    }
    let base = training.recipe.model();
    let mut provenance = provenance(training, handle, how);
    provenance["model"] = base.into();
    provenance["model_digest"] = json!(training.model_digest);
    let licence = rows::find(store.db.as_ref(), base)?.map_or_else(|| "unknown".into(), |base| base.licence);
    let origin = format!("{job}of local/{base} {}", training.model_digest.short());
    let kept = write_and_keep((store, training.recipe.name()), (files, weights), &provenance, &folder, (&origin, &licence));
    // Also where it failed: a disk that is full must not stay full.
    let _ = fs::remove_dir_all(&folder);
    kept
}

/// Writes the folder of a model and stores it under that name, or one with a number.
fn write_and_keep(
    (store, name): (&Store, &str),
    (files, weights): (&Files, &[u8]),
    provenance: &Value,
    folder: &Path,
    told: (&str, &str),
) -> Result<ModelRecord, Failure> {
    let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("cannot write to {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    let names = tuning::whole::write_model(files, weights, provenance, folder)?;
    Ok(models::made::keep(store, name, (folder, &names), told)?)
}

/// Reports to the job's row, and every step to its events.
struct Watch<'a> {
    store: &'a Store,
    handle: &'a Handle,
    pending: RefCell<Vec<JobEvent>>,
    flushed: Cell<Instant>,
    stop_at: Option<usize>,
    step: Cell<usize>,
}

impl<'a> Watch<'a> {
    fn new(store: &'a Store, handle: &'a Handle, stop_at: Option<usize>) -> Self {
        let (pending, step) = (RefCell::default(), Cell::new(0));
        Watch { store, handle, pending, flushed: Cell::new(Instant::now()), stop_at, step }
    }

    /// Stores what has not been stored yet. A training does not end because its curve cannot be kept.
    fn flush(&self) {
        let events = self.pending.take();
        self.flushed.set(Instant::now());
        if let Err(error) = job_events::append(self.store.db.as_ref(), &self.handle.id, &events) {
            tracing::warn!(%error, "the numbers of {} steps could not be stored", events.len());
        }
    }
}

/// The numbers of a step as OpenAI's events name them, and more. `validation` is the loss where the step was validated.
fn metrics(report: &StepReport, validation: Option<f32>) -> Value {
    let accuracy = validation.and(report.validation_accuracy);
    let mut told = json!({"step": report.step, "total_steps": report.steps, "train_loss": report.loss, "train_mean_token_accuracy": null,
        "valid_loss": validation, "valid_mean_token_accuracy": accuracy, "learning_rate": report.learning_rate, "gradient_norm": report.gradient_norm,
        "tokens_per_second": report.tokens_per_second, "trained_tokens": report.trained_tokens});
    if let Some(fields) = told.as_object_mut() {
        // Of preferences: rewards and how often they are on the right side.
        fields.extend(report.metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
    }
    told
}

impl Observer for Watch<'_> {
    fn step(&self, report: &StepReport) {
        let progress = TuneProgress {
            step: report.step,
            steps: report.steps,
            loss: report.loss,
            metrics: report.metrics.clone(),
            validation_loss: report.validation_loss,
            learning_rate: report.learning_rate,
            tokens_per_second: report.tokens_per_second,
            trained_tokens: report.trained_tokens,
            seconds_left: report.seconds_left,
            embedded: None,
        };
        self.handle.progress(serde_json::to_value(progress).expect("numbers: serialising cannot fail"));
        self.step.set(report.step);
        let validation = report.validation_loss.filter(|_| report.validated_at == Some(report.step));
        let told = validation.map(|loss| format!(", validation loss={loss:.4}")).unwrap_or_default();
        let message = format!("Step {}/{}: training loss={:.4}{told}", report.step, report.steps, report.loss);
        self.pending.borrow_mut().push(JobEvent::metrics(&self.handle.id, report.step, message, metrics(report, validation)));
        if self.flushed.get().elapsed() >= FLUSH {
            self.flush();
        }
    }

    fn cancelled(&self) -> bool {
        self.handle.cancelled() || self.stop_at.is_some_and(|stop| self.step.get() >= stop)
    }
}
