//! The recipe of what trains a low-rank adapter: `lora`, `dpo` and `classifier`.

use super::{ALL_MODULES, Method, check_model, check_name, wrong};
use crate::tuning::TuningError;
use crate::tuning::schedule::Schedule;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Which messages of a conversation carry loss. A message's own `weight` (0, 1 or any number from 0) decides wherever it is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The answer, the last message, alone.
    #[default]
    Completion,
    /// Every message of the assistant.
    Assistant,
    /// Every token, also those of the prompt.
    All,
}

/// When a training ends before its last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Validations in a row without an improvement.
    pub patience: usize,
    /// By how much the loss must fall to count as one, nats.
    #[serde(default)]
    pub min_improvement: f32,
}

impl EarlyStopping {
    fn check(&self) -> Result<(), TuningError> {
        within("early_stopping.patience", self.patience > 0, "at least 1")?;
        within("early_stopping.min_improvement", self.min_improvement.is_finite() && self.min_improvement >= 0.0, "a number from 0")
    }

    /// Whether the validation losses so far, oldest first, say that it is time.
    pub fn is_due(&self, losses: impl IntoIterator<Item = f32>) -> bool {
        let (mut best, mut since) = (f32::INFINITY, 0);
        for loss in losses {
            if loss < best - self.min_improvement {
                (best, since) = (loss, 0);
            } else {
                since += 1;
            }
        }
        since >= self.patience
    }
}

/// How much faster a classifier's head learns, which begins with nothing, than the adapter.
const HEAD_FACTOR: f64 = 3.0;

fn within(key: &str, ok: bool, expected: &str) -> Result<(), TuningError> {
    if ok { Ok(()) } else { Err(wrong(key, format!("must be {expected}"))) }
}

/// How a low-rank adapter is trained. Every key but `name`, `model` and `dataset` has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `lora`, `dpo`, `classifier` or `full`.
    #[serde(default, skip_serializing_if = "Method::is_lora")]
    pub method: Method,
    /// Name of the adapter that comes out: `local/<model>:<name>`; of `full`, of the model: `local/<name>`.
    pub name: String,
    /// Base model: `local/<model>`.
    pub model: String,
    /// Dataset file, or name in the store; its splits `train` and `validation` are used.
    pub dataset: String,
    /// Prompt that renders a sample's input; the adapter learns to answer it. Without one, `input.messages` or `input.prompt` is used.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Rank r of the update.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// Scale numerator alpha: the update is multiplied with alpha / r.
    #[serde(default = "default_alpha")]
    pub alpha: f32,
    /// Multiply with alpha / √r instead, so that the update keeps its size at high ranks (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
    #[serde(default)]
    pub rslora: bool,
    /// Train the length of every output's weights apart from their direction (DoRA, Liu et al. 2024, arXiv 2402.09353).
    #[serde(default)]
    pub dora: bool,
    /// Keep the base quantised in memory as its file has it, and dequantise it layer by layer on the way back (QLoRA, Dettmers et al.
    /// 2023, arXiv 2305.14314).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qlora: bool,
    /// Share of the adapter's inputs that are zero in a step, the others scaled up; never in validation.
    #[serde(default)]
    pub dropout: f32,
    /// Adapted modules, by the last part of their name. A classifier may have none: then only its head is fitted.
    #[serde(default = "default_targets", deserialize_with = "targets")]
    pub targets: Vec<String>,
    /// Peak learning rate of AdamW.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Peak learning rate of a classifier's head; without one, three times that of the adapter below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// How the learning rate falls after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of the steps in which the learning rate rises.
    #[serde(default = "default_warmup")]
    pub warmup: f64,
    /// Steps in which it rises, whatever `warmup` says.
    #[serde(default)]
    pub warmup_steps: Option<usize>,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Passes over the train split.
    #[serde(default = "default_epochs")]
    pub epochs: usize,
    /// Stop after this many steps, whatever `epochs` says.
    #[serde(default)]
    pub max_steps: Option<usize>,
    /// Examples of one forward pass.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Tokens of one forward pass at most, instead of `batch_size` examples: short examples share a pass, long ones have one to
    /// themselves. Examples lie behind one another and never see each other, so no token is padding.
    #[serde(default)]
    pub batch_tokens: Option<usize>,
    /// Forward passes of one step.
    #[serde(default = "default_accumulation")]
    pub accumulation: usize,
    /// Longest example in tokens; longer ones are an error, never cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Which messages carry loss.
    #[serde(default)]
    pub loss_on: LossOn,
    /// Strength of the preference, with `method: dpo`: how far the adapter may move away from the base model.
    #[serde(default = "default_beta", skip_serializing_if = "is_default_beta")]
    pub beta: f64,
    /// Gradients are scaled down to this global norm.
    #[serde(default = "default_max_gradient_norm")]
    pub max_gradient_norm: f64,
    /// Steps between two validations; 0 validates after each epoch.
    #[serde(default)]
    pub validate_every: usize,
    /// End when the validation loss falls no more. What is kept is the adapter at the lowest validation loss in any case.
    #[serde(default)]
    pub early_stopping: Option<EarlyStopping>,
    /// Steps between two checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: usize,
    /// Seed of the initial weights, of the order of the examples and of dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

fn default_rank() -> usize {
    8
}
fn default_alpha() -> f32 {
    16.0
}
fn default_targets() -> Vec<String> {
    ALL_MODULES.map(String::from).to_vec()
}
/// A list of modules, or the word `all`.
fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "targets must be a list of modules, or all")]
    enum Targets {
        List(Vec<String>),
        Word(String),
    }
    match Targets::deserialize(deserializer)? {
        Targets::List(targets) => Ok(targets),
        Targets::Word(word) if word == "all" => Ok(default_targets()),
        Targets::Word(word) => Err(D::Error::custom(format!("targets: \"{word}\" is neither a list of modules nor all"))),
    }
}
fn default_learning_rate() -> f64 {
    1e-3
}
fn default_warmup() -> f64 {
    0.1
}
fn default_epochs() -> usize {
    4
}
fn default_batch_size() -> usize {
    8
}
fn default_accumulation() -> usize {
    1
}
fn default_max_length() -> usize {
    1024
}
fn default_max_gradient_norm() -> f64 {
    1.0
}
fn default_beta() -> f64 {
    0.1
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_beta(beta: &f64) -> bool {
    *beta == default_beta()
}
fn default_checkpoint_every() -> usize {
    20
}
fn default_seed() -> u64 {
    7
}

impl Recipe {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] naming the key.
    pub fn check(&self) -> Result<(), TuningError> {
        check_name(&self.name)?;
        check_model(&self.model)?;
        self.check_adapter()?;
        self.check_batches()?;
        within("learning_rate", self.learning_rate > 0.0 && self.learning_rate < 1.0, "between 0 and 1")?;
        within("head_learning_rate", self.head_learning_rate.is_none_or(|rate| rate > 0.0 && rate < 1.0), "between 0 and 1")?;
        let is_classifier = self.method == Method::Classifier;
        within("head_learning_rate", is_classifier || self.head_learning_rate.is_none(), "left out: it belongs to method: classifier")?;
        within("warmup", (0.0..=0.9).contains(&self.warmup), "0 to 0.9")?;
        within("weight_decay", (0.0..1.0).contains(&self.weight_decay), "0 to 1")?;
        within("epochs", (1..=1000).contains(&self.epochs), "1 to 1000")?;
        within("max_steps", self.max_steps != Some(0), "at least 1")?;
        within("max_gradient_norm", self.max_gradient_norm.is_finite() && self.max_gradient_norm > 0.0, "a positive number")?;
        within("checkpoint_every", self.checkpoint_every > 0, "at least 1")?;
        within("beta", self.beta.is_finite() && self.beta > 0.0, "a positive number")?;
        within("beta", self.method == Method::Dpo || is_default_beta(&self.beta), "left out: it belongs to method: dpo")?;
        match &self.early_stopping {
            Some(stop) => stop.check(),
            None => Ok(()),
        }
    }

    /// Refuses what only an adapter has.
    fn check_full(&self) -> Result<(), TuningError> {
        let left_out = "left out: it belongs to adapters, and method: full trains the model itself";
        within("rank", self.rank == default_rank(), left_out)?;
        within("alpha", self.alpha == default_alpha(), left_out)?;
        within("targets", self.targets == default_targets(), left_out)?;
        within("dropout", self.dropout == 0.0, left_out)?;
        within("rslora", !self.rslora, left_out)?;
        within("dora", !self.dora, left_out)?;
        within("qlora", !self.qlora, left_out)
    }

    fn check_adapter(&self) -> Result<(), TuningError> {
        if self.method == Method::Full {
            return self.check_full();
        }
        within("rank", (1..=256).contains(&self.rank), "1 to 256")?;
        within("alpha", self.alpha.is_finite() && self.alpha > 0.0, "a positive number")?;
        within("qlora", !(self.qlora && self.dora), "false beside dora, whose magnitudes need the weights as they are")?;
        within("dropout", (0.0..=0.9).contains(&self.dropout), "0 to 0.9")?;
        within("dora", !(self.dora && self.targets.is_empty()), "left out where there are no targets")?;
        within("targets", !self.targets.is_empty() || self.method == Method::Classifier, "at least one module")?;
        match self.targets.iter().find(|target| !ALL_MODULES.contains(&target.as_str())) {
            Some(target) => Err(wrong("targets", format!("names \"{target}\"; known are {}", ALL_MODULES.join(", ")))),
            None => Ok(()),
        }
    }

    fn check_batches(&self) -> Result<(), TuningError> {
        within("batch_size", (1..=1024).contains(&self.batch_size), "1 to 1024")?;
        within("accumulation", (1..=1024).contains(&self.accumulation), "1 to 1024")?;
        within("max_length", self.max_length >= 8, "at least 8")?;
        within("batch_tokens", self.batch_tokens != Some(0), "at least 1")
    }

    /// Peak learning rate of a classifier's head.
    pub fn head_rate(&self) -> f64 {
        self.head_learning_rate.unwrap_or(HEAD_FACTOR * self.learning_rate)
    }

    /// Steps in which the learning rate rises, of `steps` in all.
    pub fn warmup_of(&self, steps: usize) -> usize {
        self.warmup_steps.unwrap_or_else(|| (steps as f64 * self.warmup).ceil() as usize).min(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_validations_without_a_real_improvement() {
        let stop = EarlyStopping { patience: 2, min_improvement: 0.1 };
        assert!(!stop.is_due([2.0, 1.0, 0.95]));
        assert!(stop.is_due([2.0, 1.0, 0.95, 0.91]));
        assert!(!stop.is_due([2.0, 1.0, 0.95, 0.89]), "0.89 is 0.1 below the last one that counted");
        assert!(!stop.is_due([]));
        assert!(stop.is_due([f32::NAN, f32::NAN]));
    }
}
