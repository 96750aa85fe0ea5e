//! The recipe of a classifier head. Unknown keys are refused.

use crate::tuning::TuningError;
use crate::tuning::recipe::{Method, check_model, check_name, wrong};
use serde::{Deserialize, Serialize};

/// Penalties that are tried where the recipe names none: inverse strengths, as scikit-learn's C.
pub(super) const STRENGTHS: [f64; 5] = [0.3, 3.0, 30.0, 300.0, 3_000.0];

/// How a head is fitted on the vectors of an embedding model, whose weights stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRecipe {
    /// `head`.
    pub method: Method,
    /// Name of the head that comes out: `local/<model>:<name>`.
    pub name: String,
    /// Embedding model: `local/<model>`.
    pub model: String,
    /// Dataset file, or name in the store. Targets are the labels.
    pub dataset: String,
    /// Prompt that renders a sample's input; the last user message is what is classified. Without one, that of `input.messages`, or
    /// `input.prompt`, `input.text` or `input.message`.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Inverse strength of the L2 penalty; without one, the strength with the lowest loss on the validation split, or where that is
    /// empty by cross-validation.
    #[serde(default)]
    pub c: Option<f64>,
    /// Parts of the cross-validation.
    #[serde(default = "default_folds")]
    pub folds: usize,
    /// Seed of the parts.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

fn default_folds() -> usize {
    5
}
fn default_seed() -> u64 {
    7
}

impl HeadRecipe {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] naming the key.
    pub fn check(&self) -> Result<(), TuningError> {
        check_name(&self.name)?;
        check_model(&self.model)?;
        if self.c.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            return Err(wrong("c", "must be a positive number"));
        }
        if !(2..=20).contains(&self.folds) {
            return Err(wrong("folds", "must be 2 to 20"));
        }
        Ok(())
    }
}
