//! The door to this room: conversations and a model file in, an adapter out.

use super::{Example, Observer, Recipe, Trained, Trainer, TuningError};
use crate::engine::chat_template::ChatMessage;
use crate::engine::{Model, Purpose};
use crate::types::chat::Message;
use std::path::{Path, PathBuf};

/// One thing to learn: a conversation and the answer it should get.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Sample it came from, named in errors.
    pub sample: String,
    /// Messages up to the answer, as serving would send them.
    pub prompt: Vec<Message>,
    /// The answer.
    pub completion: String,
}

/// Conversations of the two splits that training sees.
pub struct Data<'a> {
    /// To learn.
    pub train: &'a [Conversation],
    /// To measure only.
    pub validation: &'a [Conversation],
}

/// Trains an adapter, or goes on with a training that was interrupted and left its checkpoints in `directory`.
///
/// # Errors
/// [`TuningError`]: naming the sample that cannot be learned, the recipe's key, or what stopped the training.
pub fn fit(
    model_file: &Path,
    recipe: &Recipe,
    data: &Data<'_>,
    directory: PathBuf,
    observer: &dyn Observer,
) -> Result<Trained, TuningError> {
    recipe.check()?;
    let model = Model::load(model_file, Purpose::TrainRounded)?;
    let max_length = recipe.max_length.min(model.decoder.config().context);
    let examples = |conversations: &[Conversation]| -> Result<Vec<Example>, TuningError> {
        conversations.iter().map(|conversation| example(&model, conversation, max_length)).collect()
    };
    let (train, validation) = (examples(data.train)?, examples(data.validation)?);
    Trainer { model: &model, recipe, train: &train, validation: &validation, directory }.run(observer)
}

fn example(model: &Model, conversation: &Conversation, max_length: usize) -> Result<Example, TuningError> {
    let prompt = conversation.prompt.iter().map(ChatMessage::of).collect::<Result<Vec<_>, _>>();
    let prompt = prompt.map_err(|error| TuningError::Example { sample: conversation.sample.clone(), problem: error.to_string() })?;
    Example::new(model, &conversation.sample, (&prompt, &conversation.completion), max_length)
}
