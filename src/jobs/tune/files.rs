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
    let train = conversations(store, ("training_file", &training), wanted.method)?;
    let measured = validation.as_ref().map_or(Ok(Vec::new()), |part| conversations(store, ("validation_file", part), wanted.method))?;
    let is_head = found.record.architecture == EMBEDDERS;
    if is_head && wanted.method == DPO {
        let message = "method.type: the model makes embeddings: it says nothing that could be preferred";
        return Err(Failure::on(Code::INVALID_VALUE, "method.type", message));
    }
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
        "max_length": MAX_LENGTH, "seed": wanted.seed});
    let mut told = json!({"n_epochs": epochs as u64, "batch_size": batch as u64, "learning_rate_multiplier": multiplier});
    if wanted.method == DPO {
        let beta = asked.beta.or(BETA);
        (recipe["method"], recipe["beta"], told["beta"]) = (DPO.into(), beta.into(), beta.into());
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

/// The examples of a file, for a method. Errors name the field and the line.
fn conversations(store: &Store, (field, part): (&str, &Part), method: &str) -> Result<Vec<Conversation>, Failure> {
    let mut found = Vec::new();
    let read = trainable::each(&store.uploads.path(&part.digest), &part.name, &mut |place, shape, draft| {
        match (method, shape) {
            (DPO, DPO) => found.push(preference(&place.to_string(), draft)?),
            (DPO, _) => {
                return Err("it holds no preference (input, preferred_output, non_preferred_output), which \"dpo\" learns from".into());
            }
            _ => found.extend(examples(&place.to_string(), shape, draft)?),
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

/// The examples of a record: one for each message of the assistant that has weight.
fn examples(place: &str, shape: &str, draft: Draft) -> Result<Vec<Conversation>, String> {
    if shape == DPO {
        return Err("it holds a preference, which \"supervised\" does not learn from".into());
    }
    let mut messages = asked(&draft)?;
    messages.push(answer(draft.target)?);
    let mut found = Vec::new();
    for at in 0..messages.len() {
        let weight = weight(&mut messages[at]).map_err(|problem| format!("messages[{at}].{problem}"))?;
        let message = &messages[at];
        if message.role != "assistant" || !weight {
            continue;
        }
        if let Some(field) = ["tool_calls", "function_call", "refusal"].iter().find(|field| has(message, field)) {
            return Err(format!("messages[{at}].{field}: local models are not trained on it"));
        }
        let completion = message.plain_text();
        if completion.trim().is_empty() {
            return Err(format!("messages[{at}] is empty: there is nothing to learn"));
        }
        found.push(Conversation::new(place, messages[..at].to_vec(), completion));
    }
    Ok(found)
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

/// Whether a message has weight, which is taken out of it: a template might not know it.
fn weight(message: &mut Message) -> Result<bool, String> {
    match message.extra.shift_remove("weight") {
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
    let method = match &spec.recipe {
        AnyRecipe::Lora(recipe) if recipe.method == Method::Dpo => DPO,
        _ => "supervised",
    };
    let train = conversations(store, ("training_file", &spec.training), method)?;
    let validation = spec.validation.as_ref().map_or(Ok(Vec::new()), |part| conversations(store, ("validation_file", part), method))?;
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

    fn read(record: Value) -> Result<Vec<(usize, String)>, String> {
        let Value::Object(fields) = record else { panic!("an object") };
        let shape = crate::datasets::shapes::of(&fields)?;
        let found = examples("line 1", shape.name(), shape.read(fields)?)?;
        Ok(found.into_iter().map(|example| (example.prompt.len(), example.label())).collect())
    }

    fn said(role: &str, text: &str) -> Value {
        json!({"role": role, "content": text})
    }

    #[test]
    fn every_answer_with_weight_is_an_example() {
        let mut unweighted = said("assistant", "a1");
        unweighted["weight"] = json!(0);
        let mut weighted = said("assistant", "a2");
        weighted["weight"] = json!(1);
        let talk =
            |first: Value, second: Value| json!({"messages": [said("system", "s"), said("user", "q1"), first, said("user", "q2"), second]});
        let both = [(2, "a1".to_string()), (4, "a2".to_string())];
        assert_eq!(read(talk(said("assistant", "a1"), weighted.clone())).expect("read"), both);
        assert_eq!(read(talk(unweighted, weighted)).expect("read"), both[1..]);
        assert_eq!(read(json!({"prompt": "p", "completion": "c"})).expect("read"), [(1, "c".to_string())]);
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
            (json!({"prompt": "p", "chosen": "a", "rejected": "b"}), "a preference"),
        ] {
            let told = read(record).expect_err(part);
            assert!(told.contains(part), "{told}");
        }
    }
}
