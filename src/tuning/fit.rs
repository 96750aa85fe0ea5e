//! The door to this room: conversations and the files of a model in, an adapter out.

use super::conversation::{Conversation, Data};
use super::example::Example;
use super::objective::{Language, Prefer, Preference};
use super::recipe::{LossOn, Method};
use super::{Observer, Recipe, Trained, Trainer, TuningError, base, classify};
use crate::engine::{Model, Purpose};
use crate::models::Files;
use std::path::PathBuf;

/// Trains an adapter, or goes on with a training that was interrupted and left its checkpoints in `directory`.
///
/// # Errors
/// [`TuningError`]: naming the sample that cannot be learned, the recipe's key, or what stopped the training.
pub fn fit(files: &Files, recipe: &Recipe, data: &Data<'_>, directory: PathBuf, observer: &dyn Observer) -> Result<Trained, TuningError> {
    recipe.check()?;
    data.check(recipe)?;
    let model = base::load(files, purpose(recipe))?;
    match recipe.method {
        Method::Lora | Method::Full | Method::Head => speak(&model, recipe, data, directory, observer),
        Method::Dpo => prefer(&model, recipe, data, directory, observer),
        Method::Classifier => classify::fit(&model, recipe, data, directory, observer),
    }
}

/// What a model is loaded for.
pub(super) fn purpose(recipe: &Recipe) -> Purpose {
    match (recipe.dora, recipe.qlora) {
        _ if recipe.method == Method::Full => Purpose::TrainWeights,
        // Magnitudes are relative to the lengths of the weights as they are.
        (true, _) => Purpose::Train,
        (_, true) => Purpose::TrainQuantised,
        _ => Purpose::TrainRounded,
    }
}

impl Data<'_> {
    /// Says what cannot be learned, before a model is loaded.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample.
    pub fn check(&self, recipe: &Recipe) -> Result<(), TuningError> {
        if recipe.early_stopping.is_some() && self.validation.is_empty() {
            return Err(super::recipe::wrong("early_stopping", "needs a validation split; the dataset has none"));
        }
        for conversation in self.train.iter().chain(self.validation) {
            conversation.check()?;
            if recipe.method == Method::Dpo && conversation.rejected.is_none() {
                let problem = "it has no answer that is not preferred (\"rejected\" in its metadata)";
                return Err(conversation.wrong(problem.into()));
            }
        }
        if recipe.method == Method::Classifier { super::head::labels(self).map(drop) } else { Ok(()) }
    }
}

/// Tokens that an example may have.
pub(super) fn longest(model: &Model, recipe: &Recipe) -> usize {
    recipe.max_length.min(model.decoder.config().context)
}

fn speak(model: &Model, recipe: &Recipe, data: &Data<'_>, directory: PathBuf, observer: &dyn Observer) -> Result<Trained, TuningError> {
    let most = longest(model, recipe);
    let examples = |conversations: &[Conversation]| -> Result<Vec<Example>, TuningError> {
        conversations.iter().map(|conversation| Example::new(model, conversation, recipe.loss_on, most)).collect()
    };
    let (train, validation) = (examples(data.train)?, examples(data.validation)?);
    let objective = Language { train: &train, validation: &validation };
    Trainer { model, recipe, objective: &objective, head: None, directory }.run(observer)
}

fn prefer(model: &Model, recipe: &Recipe, data: &Data<'_>, directory: PathBuf, observer: &dyn Observer) -> Result<Trained, TuningError> {
    let most = longest(model, recipe);
    let pairs = |conversations: &[Conversation]| -> Result<Vec<Preference>, TuningError> {
        conversations.iter().map(|conversation| pair(model, conversation, most)).collect()
    };
    let (train, validation) = (pairs(data.train)?, pairs(data.validation)?);
    let objective = Prefer::new(&train, &validation, recipe.beta);
    Trainer { model, recipe, objective: &objective, head: None, directory }.run(observer)
}

/// Both answers of a preference as examples, all of whose answer counts once.
pub(super) fn pair(model: &Model, conversation: &Conversation, most: usize) -> Result<Preference, TuningError> {
    let mut plain = conversation.clone();
    plain.prompt.iter_mut().chain([&mut plain.answer]).chain(&mut plain.rejected).for_each(|message| {
        message.extra.shift_remove("weight");
    });
    let chosen = Example::new(model, &plain, LossOn::Completion, most)?;
    if let Some(rejected) = plain.rejected.take() {
        plain.answer = rejected;
    }
    Ok(Preference { chosen, rejected: Example::new(model, &plain, LossOn::Completion, most)? })
}
