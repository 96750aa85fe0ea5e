//! What is learned from examples: how a forward pass becomes a loss. One file an objective; the [trainer](super::trainer) runs any of them.

mod classify;
mod language;
mod prefer;

pub use classify::{Classify, Labelled, last_hidden};
pub use language::Language;
pub use prefer::{Prefer, Preference};

use super::TuningError;
use super::lora::Trainable;
use crate::engine::{Adapter, Model};
use candle_core::Tensor;
use serde_json::Value;
use std::collections::BTreeMap;

/// Numbers beside a loss, by name.
pub type Metrics = BTreeMap<String, f64>;

/// Which examples are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Those that are learned.
    Train,
    /// Those that are only measured.
    Validation,
}

/// A forward pass of a step.
pub struct Pass {
    /// The loss, divided by the normaliser of the step, nats.
    pub loss: f64,
    /// What the backward pass begins at; its gradient is the loss's.
    pub graph: Tensor,
    /// Sums over the pass's examples of what is told beside the loss.
    pub metrics: Metrics,
    /// Tokens that went through the model, those of a reference included.
    pub tokens: usize,
}

/// Examples that were only measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// Sum of the losses, each with its weight, nats.
    pub loss: f64,
    /// Sum of the weights.
    pub weight: f64,
    /// Sums over the examples.
    pub metrics: Metrics,
}

/// What a training pursues.
pub trait Objective {
    /// Tokens of every example of a split, for batches that are counted in tokens.
    fn lengths(&self, split: Split) -> Vec<usize>;

    /// Sum of the weights of some examples to learn: the losses of a step are divided by it.
    fn weight(&self, chosen: &[usize]) -> f64;

    /// The forward pass of some examples to learn. They go through what is trained, by an adapter that
    /// has the same variables, with dropout where the recipe asks for it.
    ///
    /// # Errors
    /// [`TuningError::Engine`] when the tensor library fails.
    fn pass(&self, model: &Model, through: (&Trainable, &Adapter), chosen: &[usize], normaliser: f64) -> Result<Pass, TuningError>;

    /// Measures some examples of the validation split.
    ///
    /// # Errors
    /// As [`Objective::pass`].
    fn measure(&self, model: &Model, trainable: &Trainable, chosen: &[usize]) -> Result<Measured, TuningError>;

    /// Everything about the examples that decides the curve.
    fn content(&self) -> Value;
}
