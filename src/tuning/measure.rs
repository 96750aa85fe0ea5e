//! How well what was trained does on samples that it did not learn from: by the loss that its recipe pursues.

use super::classify::labelled;
use super::fit::{longest, pair, purpose};
use super::lora::Trainable;
use super::objective::{self, Classify, Labelled, Language, Objective, Prefer, Preference, Split};
use super::plan::Plan;
use super::{Conversation, Example, Method, Recipe, TuningError, base};
use crate::engine::Model;
use crate::models::Files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Numbers of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Examples.
    pub examples: usize,
    /// Mean loss, nats: of the tokens that carry one, of preferences, or of labels.
    pub loss: f64,
    /// Shares and means beside it: `token_accuracy` of texts, `accuracy` of labels, `reward_accuracy` of preferences, and more.
    pub metrics: BTreeMap<String, f64>,
}

/// Measures what a recipe made (`adapter_config.json` and `adapter_model.safetensors`, or a classifier's two files) on conversations.
///
/// # Errors
/// [`TuningError::Example`] naming the sample that is too long or empty, or whose label is unknown; what the engine says.
pub fn measure(files: &Files, recipe: &Recipe, stored: (&[u8], &[u8]), conversations: &[Conversation]) -> Result<Measured, TuningError> {
    let model = base::load(files, purpose(recipe))?;
    let trained = Trainable::read(recipe, &model, stored)?;
    let of = Of { model: &model, recipe, trained: &trained };
    let most = longest(&model, recipe);
    match (recipe.method, &trained.head) {
        (Method::Dpo, _) => {
            let pairs = conversations.iter().map(|talk| pair(&model, talk, most)).collect::<Result<Vec<Preference>, _>>()?;
            of.measure(&Prefer::new(&[], &pairs, recipe.beta))
        }
        (Method::Classifier, Some(head)) => {
            let labelled = |talk| labelled(&model, recipe, talk, &head.labels);
            let texts = conversations.iter().map(labelled).collect::<Result<Vec<Labelled>, _>>()?;
            of.measure(&Classify { train: &[], validation: &texts })
        }
        _ => {
            let example = |talk| Example::new(&model, talk, recipe.loss_on, most);
            let examples = conversations.iter().map(example).collect::<Result<Vec<_>, _>>()?;
            of.measure(&Language { train: &[], validation: &examples })
        }
    }
}

/// What is measured.
struct Of<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    trained: &'a Trainable,
}

impl Of<'_> {
    fn measure(&self, objective: &dyn Objective) -> Result<Measured, TuningError> {
        let lengths = objective.lengths(Split::Validation);
        let mut all = objective::Measured::default();
        for chosen in Plan::measured(self.recipe, &lengths) {
            all.add(objective.measure(self.model, self.trained, &chosen)?);
        }
        Ok(Measured { examples: lengths.len(), loss: all.loss(), metrics: all.means() })
    }
}
