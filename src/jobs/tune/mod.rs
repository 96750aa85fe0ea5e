//! The tuning workflow: a recipe becomes a job whose spec names every input by digest; the worker trains and stores the adapter in [`work`].
//! [`head`] is the part that fits classifier heads, [`files`] trains on uploaded files for OpenAI's fine-tuning API,
//! which [`records`] reads.

pub mod advise;
pub mod estimate;
pub mod export;
pub(super) mod files;
mod head;
mod overlap;
mod records;
pub mod sweep;
mod work;

pub use head::EMBEDDERS;

use super::JobError;
use super::worker::{Handle, Job};
use crate::datasets::shapes::REJECTED;
use crate::datasets::{Dataset, Datasets, Sample};
use crate::prompts::render::Input;
use crate::prompts::{Library, Prompt};
use crate::releases::manifest::PromptRef;
use crate::store::{Store, jobs, models};
use crate::tuning::auto::{Choice, Seen};
use crate::tuning::{self, Accuracy, AnyRecipe, Conversation, Data, Recipe, TuningError};
use crate::types::chat::Message;
use crate::types::{Code, Digest, Failure};
use estimate::Forecast;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use work::Training;

/// The split that training is measured on.
const VALIDATION: &str = "validation";

/// The work.
pub struct Tune;

/// What a tuning job is made of; everything by digest, so that a resumed job is the same job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// How.
    pub recipe: AnyRecipe,
    /// Digest of the model file.
    pub model_digest: Digest,
    /// Digest of the dataset version.
    pub dataset_digest: Digest,
    /// Digest of its split assignment.
    pub split_digest: Digest,
    /// The prompt the adapter learns to answer.
    pub prompt: Option<PromptRef>,
    /// Steps after which the training stops with a checkpoint, where a sweep asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<usize>,
}

/// What the worker reports, for bars and pages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TuneProgress {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Loss of the last step.
    pub loss: f32,
    /// Newest validation loss.
    pub validation_loss: Option<f32>,
    /// What is told beside the loss: accuracies and, of preferences, rewards.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Tokens so far.
    pub trained_tokens: u64,
    /// Seconds left.
    pub seconds_left: f64,
    /// Texts that have become vectors, and all of them, where a head is fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedded: Option<[usize; 2]>,
}

/// What a finished job returns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TuneResult {
    /// `local/<model>:<name>@<version>`, or `local/<name>` of a whole model.
    pub adapter: String,
    /// Digest of the adapter or the model.
    pub digest: Digest,
    /// Trained values.
    pub parameters: usize,
    /// Steps taken.
    pub steps: usize,
    /// Tokens that passed through the model.
    pub trained_tokens: u64,
    /// Seconds of training; of the last process alone when the job was resumed.
    pub seconds: f64,
    /// Tokens per second in that time.
    pub tokens_per_second: f64,
    /// Loss of the first and the last step.
    pub first_and_last_loss: [f32; 2],
    /// Lowest validation loss.
    pub validation_loss: Option<f32>,
    /// What was told beside the lowest validation loss, or beside the last loss where there is no validation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Whether the validation loss ended the training before its last step.
    #[serde(default)]
    pub stopped_early: bool,
    /// Most bytes of memory that the worker had, beside what `refit tune estimate` foresees; where the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Of a head, on the validation split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
}

/// Checks a recipe against the store and queues its job.
///
/// # Errors
/// [`JobError::Data`] when the dataset has no split; unknown models, datasets and prompts by name; [`Code::INVALID_VALUE`] when the training
/// cannot fit into memory.
pub fn enqueue(store: &Store, recipe: AnyRecipe) -> Result<jobs::JobRecord, Failure> {
    let Examined { spec, forecast, .. } = examined(store, recipe)?;
    forecast.map_or(Ok(()), |forecast| forecast.check())?;
    let spec = serde_json::to_value(&spec).expect("a spec is texts and numbers: serialising cannot fail");
    Ok(jobs::enqueue(store.db.as_ref(), Tune::KIND, &spec)?)
}

/// A recipe whose inputs were looked at.
struct Examined {
    spec: Spec,
    forecast: Option<Forecast>,
    /// Samples of the validation split.
    validation: usize,
}

/// What a worker would trip over is found before anybody waits for it.
fn examined(store: &Store, recipe: AnyRecipe) -> Result<Examined, Failure> {
    let (spec, dataset) = resolved(store, recipe)?;
    overlap::check(&dataset)?;
    let (train, validation) = (conversations(store, &spec, &dataset, "train")?, validation(store, &spec, &dataset)?);
    let data = Data { train: &train, validation: &validation };
    match &spec.recipe {
        AnyRecipe::Head(_) => drop(tuning::head::labels(&data)?),
        AnyRecipe::Lora(recipe) => data.check(recipe)?,
    }
    let forecast = estimate::forecast(store, &spec.recipe, spec.model_digest, &data)?;
    Ok(Examined { spec, forecast, validation: validation.len() })
}

/// A recipe of which only what is written is decided, with everything else chosen from its data; and what was chosen, with reasons.
///
/// # Errors
/// As [`enqueue`].
pub fn completed(store: &Store, source: &str) -> Result<(AnyRecipe, Vec<Choice>), Failure> {
    let recipe = AnyRecipe::parse(source)?;
    let AnyRecipe::Lora(Recipe { method, .. }) = &recipe else { return Ok((recipe, Vec::new())) };
    let method = *method;
    let (spec, dataset) = resolved(store, recipe)?;
    let (train, validation) = (conversations(store, &spec, &dataset, "train")?, validation(store, &spec, &dataset)?);
    let seen = Seen::of(&crate::models::find(store, spec.recipe.model())?.files, method, &Data { train: &train, validation: &validation })?;
    Ok(AnyRecipe::completed(source, seen)?)
}

/// A recipe with every input by digest, and its dataset.
fn resolved(store: &Store, recipe: AnyRecipe) -> Result<(Spec, Dataset), Failure> {
    recipe.check()?;
    let model = recipe.model().to_string();
    let record = models::find(store.db.as_ref(), &model)?;
    let missing = || {
        Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the local model \"{model}\" is not here"))
            .with_hint(format!("refit model pull {model}"))
    };
    let model_digest = record.ok_or_else(missing)?.digest;
    head::fits(store, &recipe)?;
    let prompt = match recipe.prompt() {
        None => None,
        Some(reference) => {
            let version = Library::new(store).get(reference)?;
            Some(PromptRef { name: version.prompt, digest: version.digest })
        }
    };
    let dataset = open_dataset(store, recipe.dataset())?;
    let Some(splits) = &dataset.splits else { return Err(no_split(&dataset.row.dataset).into()) };
    let split_digest = splits.assignment;
    Ok((Spec { model_digest, dataset_digest: dataset.row.digest, split_digest, prompt, stop_at: None, recipe }, dataset))
}

fn no_split(dataset: &str) -> JobError {
    let problem = "it has no train and validation split".into();
    JobError::Data { dataset: dataset.into(), problem, hint: format!("refit data split {dataset} --seed 7") }
}

/// A dataset by name; a file that was never imported is named with the way out.
fn open_dataset(store: &Store, reference: &str) -> Result<Dataset, Failure> {
    let datasets = Datasets::new(store);
    if !Path::new(reference).is_file() {
        return Ok(datasets.open(reference)?);
    }
    let name = Path::new(reference).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let (row, _) = datasets.import(&name, Path::new(reference), None)?;
    Ok(datasets.open(&format!("{}@{}", row.dataset, row.version))?)
}

/// Conversations of the validation split, which a dataset that came with its splits may lack.
fn validation(store: &Store, spec: &Spec, dataset: &Dataset) -> Result<Vec<Conversation>, Failure> {
    let is_there = dataset.split_names().any(|name| name == VALIDATION);
    if is_there { conversations(store, spec, dataset, VALIDATION) } else { Ok(Vec::new()) }
}

/// Conversations of a split: the prompt rendered with the sample's input, and the sample's target as the answer.
fn conversations(store: &Store, spec: &Spec, dataset: &Dataset, split: &str) -> Result<Vec<Conversation>, Failure> {
    let prompt = match &spec.prompt {
        Some(prompt) => Some(Library::new(store).by_digest(&prompt.name, &prompt.digest)?),
        None => None,
    };
    dataset.part(Some(split))?.into_iter().map(|sample| conversation(sample, prompt.as_deref())).collect()
}

fn conversation(sample: &Sample, prompt: Option<&Prompt>) -> Result<Conversation, Failure> {
    let messages = match prompt {
        Some(prompt) => prompt.render(&Input::of(&sample.input))?.messages,
        None => raw_messages(sample)?,
    };
    let wrong = |problem: String| Failure::from(TuningError::Example { sample: sample.id.clone(), problem });
    if sample.target.is_null() {
        return Err(wrong("it has no target: there is nothing to learn".into()));
    }
    let rejected = sample.metadata.get(REJECTED).map(answer).transpose().map_err(wrong)?;
    let answer = answer(&sample.target).map_err(wrong)?;
    let conversation = Conversation { sample: sample.id.clone(), prompt: messages, answer, rejected, tools: Vec::new() };
    // A prompt has none.
    if prompt.is_some() { Ok(conversation) } else { Ok(conversation.offering(&sample.input)?) }
}

/// A target as the assistant's message: that message where the target is one, else its text.
fn answer(target: &Value) -> Result<Message, String> {
    match target {
        Value::Object(fields) if fields.get("role").is_some_and(Value::is_string) => {
            serde_json::from_value(target.clone()).map_err(|error| format!("its target: {error}"))
        }
        Value::String(text) => Ok(Message::text("assistant", text)),
        other => Ok(Message::text("assistant", other.to_string())),
    }
}

/// Without a prompt: `input.messages` as a conversation; or `input.prompt`, or the only text that the input has, as one user message.
fn raw_messages(sample: &Sample) -> Result<Vec<Message>, Failure> {
    let wrong = |problem: String| Failure::from(TuningError::Example { sample: sample.id.clone(), problem });
    if let Some(messages) = sample.input.get("messages") {
        return serde_json::from_value(messages.clone()).map_err(|error| wrong(format!("input.messages: {error}")));
    }
    let only = |fields: &Map<String, Value>| {
        if fields.len() == 1 { fields.values().next().and_then(Value::as_str).map(String::from) } else { None }
    };
    match sample.input.get("prompt").and_then(Value::as_str).map(String::from).or_else(|| only(&sample.input)) {
        Some(text) => Ok(vec![Message::text("user", text)]),
        None => Err(wrong("the recipe names no prompt, and the input has neither messages nor prompt, nor one text alone".into())),
    }
}

impl Job for Tune {
    const KIND: &'static str = "tune";

    fn run(store: &Store, spec: &Value, handle: &Handle) -> Result<Value, Failure> {
        let spec: Spec =
            serde_json::from_value(spec.clone()).map_err(|error| Failure::new(Code::CORRUPT, format!("the job's spec: {error}")))?;
        let dataset = Datasets::new(store).open_split(&spec.dataset_digest, &spec.split_digest)?;
        if dataset.splits.as_ref().map(|splits| splits.assignment) != Some(spec.split_digest) {
            let problem = "it was split anew since the job was made".into();
            return Err(JobError::Data { dataset: dataset.row.dataset, problem, hint: "run the recipe again".into() }.into());
        }
        let (train, validation) = (conversations(store, &spec, &dataset, "train")?, validation(store, &spec, &dataset)?);
        let lineage = [
            ("dataset", serde_json::to_value(spec.dataset_digest)),
            ("split", serde_json::to_value(spec.split_digest)),
            ("prompt", serde_json::to_value(&spec.prompt)),
        ];
        let lineage = lineage.into_iter().map(|(name, value)| (name.to_string(), value.unwrap_or_default())).collect();
        let data = Data { train: &train, validation: &validation };
        let result = work::train(
            store,
            &Training { recipe: &spec.recipe, model_digest: spec.model_digest, data, lineage, stop_at: spec.stop_at },
            handle,
        )?;
        Ok(serde_json::to_value(result).expect("texts and numbers: serialising cannot fail"))
    }
}
