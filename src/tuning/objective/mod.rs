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
use crate::types::digest::Hashing;
use candle_core::Tensor;
use serde::Serialize;
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
    /// Sums of what is told beside them, each with what it is divided by.
    pub metrics: BTreeMap<String, (f64, f64)>,
}

impl Measured {
    /// Some examples, and sums over them of what is told beside their losses.
    pub fn of(loss: f64, weight: f64, metrics: Metrics, examples: usize) -> Self {
        let metrics = metrics.into_iter().map(|(name, sum)| (name, (sum, examples as f64))).collect();
        Measured { loss, weight, metrics }
    }

    /// Takes other examples in.
    pub fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.weight += other.weight;
        for (name, (sum, of)) in other.metrics {
            let all = self.metrics.entry(name).or_default();
            *all = (all.0 + sum, all.1 + of);
        }
    }

    /// Mean loss, nats.
    pub fn loss(&self) -> f64 {
        self.loss / self.weight
    }

    /// Means of what is told beside it.
    pub fn means(&self) -> Metrics {
        self.metrics.iter().map(|(name, (sum, of))| (name.clone(), sum / of.max(1.0))).collect()
    }
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

    /// Adds everything about the examples that decides the curve.
    fn content(&self, digest: &mut Hashing);
}

/// Adds a value as JSON, without a copy of it: all examples together may be gigabytes.
pub(super) fn add(digest: &mut Hashing, value: &impl Serialize) {
    serde_json::to_writer(digest, value).expect("numbers and texts: serialising cannot fail, and nor can hashing");
}
