//! Jobs that fit a classifier head on an embedding model.

use super::work::{Training, keep, name_of};
use super::{TuneProgress, TuneResult, estimate};
use crate::jobs::worker::Handle;
use crate::models::{self, Files, ModelError, open};
use crate::store::Store;
use crate::tuning::{self, AnyRecipe, FittedHead, HeadObserver, HeadRecipe, Method};
use crate::types::{Code, Failure};
use serde_json::json;
use std::collections::BTreeMap;

/// The architecture of models that make embeddings.
pub const EMBEDDERS: &str = "bert";

/// Refuses a recipe whose method is not for its model: heads are for folders of embedding models, low-rank adapters for chat models.
pub(super) fn fits(store: &Store, recipe: &AnyRecipe) -> Result<(), Failure> {
    let model_name = recipe.model();
    let found = models::find(store, model_name)?;
    let makes_vectors = found.record.architecture == EMBEDDERS;
    match (recipe, found.files) {
        (AnyRecipe::Head(_), _) if !makes_vectors => {
            let message = format!("the local model \"{model_name}\" chats; a head is fitted on a model that makes embeddings");
            Err(Failure::on(Code::INVALID_VALUE, "model", message)
                .with_hint("refit model pull all-minilm-l6-v2, or write \"method: classifier\" into the recipe"))
        }
        (AnyRecipe::Lora(_), Files::Folder(_)) if makes_vectors => {
            let message = format!("the local model \"{model_name}\" makes embeddings: only a head can be fitted on it");
            Err(Failure::on(Code::INVALID_VALUE, "method", message).with_hint("write \"method: head\" into the recipe"))
        }
        (AnyRecipe::Lora(recipe), files) if recipe.method == Method::Full => whole(store, &recipe.name, &files),
        _ => Ok(()),
    }
}

/// Refuses a model of its own under a name that is taken, and one of a base that no folder can be made of.
fn whole(store: &Store, name: &str, base: &Files) -> Result<(), Failure> {
    if !matches!(models::find(store, name), Err(ModelError::Unknown { .. })) {
        let message = format!("there is a model \"{name}\" already, here or in the catalogue; method: full makes a model of that name");
        return Err(Failure::on(Code::CONFLICT, "name", message).with_hint("choose another name in the recipe"));
    }
    Ok(tuning::whole::check_model(base)?)
}

/// Fits the head and stores it.
pub(super) fn run(store: &Store, training: &Training<'_>, recipe: &HeadRecipe, handle: &Handle) -> Result<TuneResult, Failure> {
    let Files::Folder(files) = open(store, &training.model_digest)? else {
        return Err(Failure::new(Code::CORRUPT, "the job's model is no folder of an embedding model"));
    };
    let fitted = tuning::fit_head(&files, recipe, &training.data, &Watch(handle))?;
    let FittedHead { head, c, tried, iterations, converged, first_and_last_loss, validation, tokens, seconds } = &fitted;
    let how = json!({"samples": training.data.train.len(), "steps": iterations, "converged": converged, "c": c, "tried": tried,
        "loss": first_and_last_loss, "validation": validation, "seconds": seconds});
    let adapter = keep(store, training, handle, (&head.to_config_json(), &head.to_safetensors()?), how)?;
    Ok(TuneResult {
        adapter: name_of(&adapter),
        digest: adapter.digest,
        parameters: head.parameters(),
        steps: *iterations,
        trained_tokens: *tokens,
        seconds: seconds.iter().sum(),
        tokens_per_second: *tokens as f64 / seconds[0].max(1e-9),
        first_and_last_loss: first_and_last_loss.map(|loss| loss as f32),
        validation_loss: validation.map(|validation| validation.loss as f32),
        metrics: BTreeMap::new(),
        stopped_early: false,
        peak_memory_bytes: estimate::peak(),
        accuracy: *validation,
    })
}

/// Reports to the job's row.
struct Watch<'a>(&'a Handle);

impl HeadObserver for Watch<'_> {
    fn embedded(&self, done: usize, total: usize) {
        let progress = TuneProgress { step: done, steps: total, embedded: Some([done, total]), ..TuneProgress::default() };
        self.0.progress(serde_json::to_value(progress).expect("numbers: serialising cannot fail"));
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
