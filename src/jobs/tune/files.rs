//! Training on uploaded files, for OpenAI's fine-tuning API: every assistant message that has weight is an example of its own, with what stands
//! before it as its prompt. Models that chat get a low-rank adapter, models that make embeddings a head whose labels are the answers.
//! [`records`](super::records) reads the files.

use super::estimate;
use super::head::{EMBEDDERS, fits};
use super::records::{DPO, Learned, Part, about, conversations};
use super::work::{self, Training};
use crate::jobs::fine_tune::{Prepared, RESULTS_PURPOSE, Wanted};
use crate::jobs::worker::{Handle, Job};
use crate::models;
use crate::store::files::{self, FileRow};
use crate::store::fine_tunes::{self, JOB_KIND};
use crate::store::job_events::{self, JobEvent};
use crate::store::{Store, StoreError};
use crate::tuning::{self, AnyRecipe, Data, TuningError};
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write;

/// The learning rate that a multiplier of 1 stands for.
const LEARNING_RATE: f64 = 1e-3;
/// The same where preferences are learned: they pull the model away from what it says, and more slowly is enough.
const PREFERENCE_RATE: f64 = 2e-4;
/// The `beta` that "auto" stands for (Rafailov et al. 2023, arXiv 2305.18290).
const BETA: f64 = 0.1;
/// Longest example in tokens; the model's own limit still applies.
const MAX_LENGTH: usize = 4_096;

/// The work.
pub struct FineTune;

/// What such a job is made of; everything by digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FileSpec {
    fine_tune: String,
    recipe: AnyRecipe,
    model_digest: Digest,
    training: Part,
    validation: Option<Part>,
}

/// Checks what is wanted against the store, reads the files, and makes the spec of the job.
///
/// # Errors
/// [`Code::MODEL_NOT_FOUND`], [`Code::INVALID_FILE`] naming the line, [`Code::INVALID_VALUE`] naming the hyperparameter.
pub fn prepare(store: &Store, wanted: &Wanted<'_>) -> Result<Prepared, Failure> {
    let found = models::find(store, wanted.model).map_err(|error| about("model", error.into()))?;
    let (training, validation) = (Part::of(wanted.training), wanted.validation.map(Part::of));
    let is_head = found.record.architecture == EMBEDDERS;
    if is_head && wanted.method == DPO {
        let message = "method.type: the model makes embeddings: it says nothing that could be preferred";
        return Err(Failure::on(Code::INVALID_VALUE, "method.type", message));
    }
    let learned = match (is_head, wanted.method) {
        (true, _) => Learned::Labels,
        (false, DPO) => Learned::Preferences,
        _ => Learned::Talks,
    };
    let train = conversations(store, ("training_file", &training), learned)?;
    let measured = validation.as_ref().map_or(Ok(Vec::new()), |part| conversations(store, ("validation_file", part), learned))?;
    let (recipe, hyperparameters) = if is_head { head(wanted) } else { adapter(wanted, train.len()) };
    let recipe: AnyRecipe = serde_json::from_value(recipe)
        .map_err(|error| Failure::new(Code::INTERNAL, format!("the recipe of the fine-tuning job: {error}")))?;
    recipe.check().map_err(|error| hyperparameter(wanted, error.into()))?;
    fits(store, &recipe).map_err(|failure| about("model", failure))?;
    if is_head {
        let told = |error: TuningError| Failure::on(Code::INVALID_FILE, "training_file", error.to_string());
        tuning::head::labels(&Data { train: &train, validation: &measured }).map_err(told)?;
    }
    let data = Data { train: &train, validation: &measured };
    let told = |failure: Failure| about("training_file", failure);
    if let Some(forecast) = estimate::forecast(store, &recipe, found.record.digest, &data).map_err(told)? {
        forecast.check()?;
    }
    let spec = FileSpec { fine_tune: String::new(), recipe, model_digest: found.record.digest, training, validation };
    let spec = serde_json::to_value(&spec).expect("a spec is texts and numbers: serialising cannot fail");
    Ok(Prepared { spec, hyperparameters })
}

/// What a recipe refuses, in the words of the request.
fn hyperparameter(wanted: &Wanted<'_>, failure: Failure) -> Failure {
    const NAMES: [(&str, &str); 4] =
        [("learning_rate", "learning_rate_multiplier"), ("epochs", "n_epochs"), ("batch_size", "batch_size"), ("beta", "beta")];
    let key = failure.param().unwrap_or_default();
    let Some((key, name)) = NAMES.iter().find(|(own, _)| *own == key) else { return failure };
    let field = format!("{}.{name}", wanted.place);
    let problem = failure.to_string();
    let problem = problem.strip_prefix(&format!("recipe: {key} ")).unwrap_or(&problem);
    let rate = if wanted.method == DPO { PREFERENCE_RATE } else { LEARNING_RATE };
    let of_rate = if *key == "learning_rate" { format!("the learning rate, {rate} times it, ") } else { String::new() };
    Failure::on(Code::INVALID_VALUE, &field, format!("{field}: {of_rate}{problem}"))
}

/// The recipe of a head, which none of the hyperparameters is for.
fn head(wanted: &Wanted<'_>) -> (Value, Value) {
    let recipe = json!({"method": "head", "name": wanted.name, "model": format!("local/{}", wanted.model),
        "dataset": wanted.training.id, "seed": wanted.seed});
    (recipe, json!({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}))
}

/// The recipe of an adapter. "auto" means: about 1,500 examples in all, at most ten times each one; batches of 8, of 4 where there are few.
fn adapter(wanted: &Wanted<'_>, examples: usize) -> (Value, Value) {
    let asked = wanted.hyperparameters;
    let epochs = asked.n_epochs.or((1_500 / examples.max(1)).clamp(2, 10) as f64);
    let batch = asked.batch_size.or(if examples < 32 { 4.0 } else { 8.0 });
    let multiplier = asked.learning_rate_multiplier.or(1.0);
    let mut recipe = json!({"name": wanted.name, "model": format!("local/{}", wanted.model), "dataset": wanted.training.id,
        "epochs": epochs as u64, "batch_size": batch as u64, "learning_rate": LEARNING_RATE * multiplier,
        "max_length": MAX_LENGTH, "loss_on": "assistant", "seed": wanted.seed});
    let mut told = json!({"n_epochs": epochs as u64, "batch_size": batch as u64, "learning_rate_multiplier": multiplier});
    if wanted.method == DPO {
        let beta = asked.beta.or(BETA);
        (recipe["method"], recipe["beta"], told["beta"]) = (DPO.into(), beta.into(), beta.into());
        recipe["loss_on"] = "completion".into();
        recipe["learning_rate"] = (PREFERENCE_RATE * multiplier).into();
    }
    (recipe, told)
}

impl Job for FineTune {
    const KIND: &'static str = JOB_KIND;

    fn run(store: &Store, spec: &Value, handle: &Handle) -> Result<Value, Failure> {
        let spec: FileSpec =
            serde_json::from_value(spec.clone()).map_err(|error| Failure::new(Code::CORRUPT, format!("the job's spec: {error}")))?;
        let trained = train(store, &spec, handle);
        if let Err(failure) = &trained
            && failure.code() != Code::CANCELLED
        {
            job_events::append(store.db.as_ref(), &handle.id, &[JobEvent::message("error", failure.told())])?;
        }
        trained
    }
}

fn train(store: &Store, spec: &FileSpec, handle: &Handle) -> Result<Value, Failure> {
    let tell = |message: String| job_events::append(store.db.as_ref(), &handle.id, &[JobEvent::message("info", message)]);
    let learned = Learned::by(&spec.recipe);
    let train = conversations(store, ("training_file", &spec.training), learned)?;
    let validation = spec.validation.as_ref().map_or(Ok(Vec::new()), |part| conversations(store, ("validation_file", part), learned))?;
    tell(format!("Fine-tuning job started: {} examples, {} to validate on", train.len(), validation.len()))?;
    let fine_tune = fine_tunes::of_job(store.db.as_ref(), &handle.id)?;
    let lineage = json!({"training_file": spec.training, "validation_file": spec.validation, "fine_tune": spec.fine_tune,
        "project": fine_tune.project});
    let lineage = lineage.as_object().cloned().unwrap_or_default();
    let data = Data { train: &train, validation: &validation };
    let training = Training { recipe: &spec.recipe, model_digest: spec.model_digest, data, lineage, stop_at: None };
    let result = work::train(store, &training, handle)?;
    keep_numbers(store, &handle.id, &fine_tune)?;
    tell(format!("New fine-tuned model created: local/{}:{}", spec.recipe.model(), spec.recipe.name()))?;
    tell("The job has successfully completed".into())?;
    Ok(serde_json::to_value(result).expect("texts and numbers: serialising cannot fail"))
}

/// Makes a file of the project out of the numbers of all steps.
fn keep_numbers(store: &Store, job: &str, fine_tune: &fine_tunes::FineTuneRow) -> Result<(), Failure> {
    if fine_tune.result_file.is_some() {
        return Ok(());
    }
    let mut table = String::from("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n");
    for event in job_events::curve(store.db.as_ref(), job)? {
        let cell = |name: &str| event.data.get(name).filter(|value| !value.is_null()).map(Value::to_string).unwrap_or_default();
        let cells = ["step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"].map(cell);
        writeln!(table, "{}", cells.join(",")).expect("writing to a text cannot fail");
    }
    // Not where uploads come in: a server that starts meanwhile clears that.
    let directory = work::checkpoint_directory(store, job);
    let path = directory.join("step_metrics.csv");
    let failed = |source| StoreError::Io { path: path.clone(), source };
    std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, table)).map_err(failed)?;
    let row = FileRow {
        id: files::new_file_id(),
        project: fine_tune.project.clone(),
        filename: "step_metrics.csv".into(),
        purpose: RESULTS_PURPOSE.into(),
        digest: Digest::of(b""),
        size_bytes: 0,
        created_by: fine_tune.api_key.clone(),
        created_at: now_ms(),
        expires_at: None,
    };
    let naming = fine_tunes::filing(&fine_tune.id, &row.id);
    files::create(store, vec![(row, path)], vec![naming])?;
    Ok(())
}
