//! Training on uploaded files, for OpenAI's fine-tuning API: every assistant message that has weight is an example of its own, with what stands
//! before it as its prompt. Models that chat get a low-rank adapter, models that make embeddings a head whose labels are the answers.

use super::estimate;
use super::head::{EMBEDDERS, fits};
use super::work::{self, Training};
use crate::datasets::shapes::{Draft, REJECTED};
use crate::datasets::{DatasetError, trainable};
use crate::jobs::fine_tune::{Prepared, RESULTS_PURPOSE, Wanted};
use crate::jobs::worker::{Handle, Job};
use crate::models;
use crate::store::files::{self, FileRow};
use crate::store::fine_tunes::{self, JOB_KIND};
use crate::store::job_events::{self, JobEvent};
use crate::store::{Store, StoreError};
use crate::tuning::{self, AnyRecipe, Conversation, Data, Method, TuningError};
use crate::types::chat::Message;
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
/// The method that learns preferences.
const DPO: &str = "dpo";
/// Longest example in tokens; the model's own limit still applies.
const MAX_LENGTH: usize = 4_096;

/// The work.
pub struct FineTune;

/// A file by its bytes, and what its owner calls it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part {
    name: String,
    digest: Digest,
}

impl Part {
    fn of(row: &FileRow) -> Self {
        Part { name: row.filename.clone(), digest: row.digest }
    }
}

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
    recipe.check()?;
    fits(store, &recipe).map_err(|failure| about("model", failure))?;
    if is_head {
        let told = |error: TuningError| Failure::on(Code::INVALID_FILE, "training_file", error.to_string());
        tuning::head::labels(&Data { train: &train, validation: &measured }).map_err(told)?;
    }
    if let Some(forecast) = estimate::forecast(store, &recipe, found.record.digest, &Data { train: &train, validation: &measured })? {
        forecast.check()?;
    }
    let spec = FileSpec { fine_tune: String::new(), recipe, model_digest: found.record.digest, training, validation };
    let spec = serde_json::to_value(&spec).expect("a spec is texts and numbers: serialising cannot fail");
    Ok(Prepared { spec, hyperparameters })
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

/// The same failure, about a field of the request.
fn about(field: &str, failure: Failure) -> Failure {
    let named = Failure::on(failure.code(), field, failure.to_string());
    match failure.hint() {
        Some(hint) => named.with_hint(hint),
        None => named,
    }
}

/// What is learned from a record.
#[derive(Clone, Copy, PartialEq)]
enum Learned {
    /// Every assistant's message that has weight, in its conversation.
    Talks,
    /// The same messages as labels of the user's message before each.
    Labels,
    /// Which of two answers is preferred.
    Preferences,
}

impl Learned {
    fn by(recipe: &AnyRecipe) -> Self {
        match recipe {
            AnyRecipe::Lora(recipe) if recipe.method == Method::Dpo => Learned::Preferences,
            AnyRecipe::Lora(_) => Learned::Talks,
            AnyRecipe::Head(_) => Learned::Labels,
        }
    }
}

/// The examples of a file. Errors name the field and the line.
fn conversations(store: &Store, (field, part): (&str, &Part), learned: Learned) -> Result<Vec<Conversation>, Failure> {
    let mut found = Vec::new();
    let read = trainable::each(&store.uploads.path(&part.digest), &part.name, &mut |place, shape, draft| {
        match (learned, shape) {
            (Learned::Preferences, DPO) => found.push(preference(&place.to_string(), draft)?),
            (Learned::Preferences, _) => {
                return Err("it holds no preference (input, preferred_output, non_preferred_output), which \"dpo\" learns from".into());
            }
            (_, DPO) => return Err("it holds a preference, which \"supervised\" does not learn from".into()),
            (Learned::Talks, _) => found.extend(talk(&place.to_string(), draft)?),
            (Learned::Labels, _) => found.extend(labelled(&place.to_string(), draft)?),
        }
        Ok(())
    });
    match read {
        Ok(_) if found.is_empty() => {
            Err(Failure::on(Code::INVALID_FILE, field, format!("{}: no message has weight: there is nothing to learn", part.name)))
        }
        Ok(_) => Ok(found),
        Err(error @ DatasetError::Store(_)) => Err(error.into()),
        Err(error) => Err(about(field, error.into()).with_hint("mend the file, upload it again and name the new one")),
    }
}

/// A record's messages, and which of them are learned: those of the assistant that have weight.
fn messages(draft: Draft) -> Result<(Vec<Message>, Vec<usize>), String> {
    let mut messages = asked(&draft)?;
    messages.push(answer(draft.target)?);
    let mut learned = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let has_weight = weight(message).map_err(|problem| format!("messages[{at}].{problem}"))?;
        if message.role != "assistant" || !has_weight {
            continue;
        }
        if let Some(field) = ["tool_calls", "function_call", "refusal"].iter().find(|field| has(message, field)) {
            return Err(format!("messages[{at}].{field}: local models are not trained on it"));
        }
        if message.plain_text().trim().is_empty() {
            return Err(format!("messages[{at}] is empty: there is nothing to learn"));
        }
        learned.push(at);
    }
    Ok((messages, learned))
}

/// The example of a record: the conversation up to the last message that is learned. None where no message is.
fn talk(place: &str, draft: Draft) -> Result<Option<Conversation>, String> {
    let (mut messages, learned) = messages(draft)?;
    let Some(last) = learned.last() else { return Ok(None) };
    messages.truncate(last + 1);
    let Some(answer) = messages.pop() else { return Ok(None) };
    Ok(Some(Conversation { sample: place.to_string(), prompt: messages, answer, ..Conversation::default() }))
}

/// The examples of a record whose answers are labels.
fn labelled(place: &str, draft: Draft) -> Result<Vec<Conversation>, String> {
    let (messages, learned) = messages(draft)?;
    let example = |at: usize| {
        let question = messages[..at].iter().rfind(|message| message.role == "user").cloned();
        Conversation::new(place, question.into_iter().collect(), messages[at].plain_text())
    };
    Ok(learned.into_iter().map(example).collect())
}

/// The example of a record that holds two answers.
fn preference(place: &str, mut draft: Draft) -> Result<Conversation, String> {
    let prompt = asked(&draft)?;
    let rejected = answer(draft.metadata.remove(REJECTED).unwrap_or_default())?;
    let answer = answer(draft.target)?;
    for (field, message) in [("preferred_output", &answer), ("non_preferred_output", &rejected)] {
        if has(message, "tool_calls") {
            return Err(format!("{field}: local models are not trained on tool calls"));
        }
        if message.plain_text().trim().is_empty() {
            return Err(format!("{field} is empty: there is nothing to learn"));
        }
    }
    Ok(Conversation { sample: place.to_string(), prompt, answer, rejected: Some(rejected), ..Conversation::default() })
}

/// What stands before the answer.
fn asked(draft: &Draft) -> Result<Vec<Message>, String> {
    for field in ["tools", "functions", "response_format"] {
        if draft.input.contains_key(field) {
            return Err(format!("field \"{field}\": local models are not trained on it"));
        }
    }
    match draft.input.get("messages") {
        Some(messages) => serde_json::from_value(messages.clone()).map_err(|error| format!("messages: {error}")),
        None => Ok(vec![Message::text("user", draft.input.get("prompt").and_then(Value::as_str).unwrap_or_default())]),
    }
}

fn answer(target: Value) -> Result<Message, String> {
    match target {
        Value::String(text) => Ok(Message::text("assistant", text)),
        other => serde_json::from_value(other).map_err(|error| format!("messages: the last one: {error}")),
    }
}

fn has(message: &Message, field: &str) -> bool {
    message.extra.get(field).is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()))
}

/// Whether a message has weight.
fn weight(message: &Message) -> Result<bool, String> {
    match message.extra.get("weight") {
        None | Some(Value::Null) => Ok(true),
        Some(weight) => match weight.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            _ => Err(format!("weight is {weight}; 0 and 1 are taken")),
        },
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(record: Value) -> Result<Draft, String> {
        let Value::Object(fields) = record else { panic!("an object") };
        crate::datasets::shapes::of(&fields)?.read(fields)
    }

    fn read(record: Value) -> Result<Vec<(usize, String)>, String> {
        Ok(labelled("line 1", draft(record)?)?.into_iter().map(|example| (example.prompt.len(), example.label())).collect())
    }

    fn said(role: &str, text: &str) -> Value {
        json!({"role": role, "content": text})
    }

    #[test]
    fn every_answer_with_weight_is_learned() {
        let mut unweighted = said("assistant", "a1");
        unweighted["weight"] = json!(0);
        let mut weighted = said("assistant", "a2");
        weighted["weight"] = json!(1);
        let record =
            |first: Value, second: Value| json!({"messages": [said("system", "s"), said("user", "q1"), first, said("user", "q2"), second]});
        let both = [(1, "a1".to_string()), (1, "a2".to_string())];
        assert_eq!(read(record(said("assistant", "a1"), weighted.clone())).expect("read"), both);
        assert_eq!(read(record(unweighted.clone(), weighted.clone())).expect("read"), both[1..]);
        assert_eq!(read(json!({"prompt": "p", "completion": "c"})).expect("read"), [(1, "c".to_string())]);
        // A conversation is one example, up to the last message that is learned.
        let weights = |first: Value, second: Value| {
            let talk = talk("line 1", draft(record(first, second)).expect("a draft")).expect("read").expect("an example");
            talk.weights(tuning::LossOn::Assistant).expect("weights")
        };
        assert_eq!(weights(said("assistant", "a1"), weighted.clone()), [None, None, Some(1.0), None, Some(1.0)]);
        assert_eq!(weights(unweighted.clone(), weighted), [None, None, Some(0.0), None, Some(1.0)]);
        assert_eq!(weights(said("assistant", "a1"), unweighted.clone()), [None, None, Some(1.0)]);
        assert!(talk("line 1", draft(record(unweighted.clone(), unweighted)).expect("a draft")).expect("read").is_none());
    }

    #[test]
    fn what_is_not_learned_is_refused() {
        let mut odd = said("assistant", "a");
        odd["weight"] = json!(0.5);
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
        for (record, part) in [
            (json!({"messages": [said("user", "q"), odd]}), "messages[1].weight is 0.5"),
            (json!({"messages": [said("user", "q"), call]}), "messages[1].tool_calls"),
            (json!({"messages": [said("user", "q"), said("assistant", " ")]}), "messages[1] is empty"),
            (json!({"messages": [said("user", "q"), said("assistant", "a")], "tools": [{"type": "function"}]}), "\"tools\""),
        ] {
            let told = read(record).expect_err(part);
            assert!(told.contains(part), "{told}");
        }
    }
}
