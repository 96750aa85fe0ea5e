//! The recipe: one page that reads like the experiment. Unknown keys are refused.

use super::schedule::Schedule;
use super::{HeadRecipe, TuningError};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

const LOCAL: &str = "local/";

/// Modules that `targets: all` stands for.
pub const ALL_MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is fitted on top of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// A low-rank adapter of a chat model.
    #[default]
    Lora,
    /// A classifier head on an embedding model.
    Head,
}

impl Method {
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_lora(&self) -> bool {
        *self == Method::Lora
    }
}

/// A recipe of either method.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AnyRecipe {
    /// Of a low-rank adapter.
    Lora(Recipe),
    /// Of a classifier head.
    Head(HeadRecipe),
}

/// What says which recipe it is.
#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    method: Method,
}

impl AnyRecipe {
    /// Reads `recipe.yaml` and checks it.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] naming the key, with the line where the parser knows it.
    pub fn parse(source: &str) -> Result<Self, TuningError> {
        let unreadable = |error: serde_norway::Error| wrong("file", error.to_string());
        let recipe = match serde_norway::from_str::<Which>(source).map_err(unreadable)?.method {
            Method::Lora => AnyRecipe::Lora(serde_norway::from_str(source).map_err(unreadable)?),
            Method::Head => AnyRecipe::Head(serde_norway::from_str(source).map_err(unreadable)?),
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] naming the key.
    pub fn check(&self) -> Result<(), TuningError> {
        match self {
            AnyRecipe::Lora(recipe) => recipe.check(),
            AnyRecipe::Head(recipe) => recipe.check(),
        }
    }

    /// Name of what comes out.
    pub fn name(&self) -> &str {
        match self {
            AnyRecipe::Lora(recipe) => &recipe.name,
            AnyRecipe::Head(recipe) => &recipe.name,
        }
    }

    /// The base model's name, without `local/`.
    pub fn model(&self) -> &str {
        let model = match self {
            AnyRecipe::Lora(recipe) => &recipe.model,
            AnyRecipe::Head(recipe) => &recipe.model,
        };
        model.strip_prefix(LOCAL).unwrap_or(model)
    }

    /// Dataset file or name.
    pub fn dataset(&self) -> &str {
        match self {
            AnyRecipe::Lora(recipe) => &recipe.dataset,
            AnyRecipe::Head(recipe) => &recipe.dataset,
        }
    }

    /// Prompt that renders samples.
    pub fn prompt(&self) -> Option<&str> {
        match self {
            AnyRecipe::Lora(recipe) => recipe.prompt.as_deref(),
            AnyRecipe::Head(recipe) => recipe.prompt.as_deref(),
        }
    }
}

impl<'de> Deserialize<'de> for AnyRecipe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let Which { method } = Which::deserialize(&value).map_err(D::Error::custom)?;
        match method {
            Method::Lora => Recipe::deserialize(value).map(AnyRecipe::Lora),
            Method::Head => HeadRecipe::deserialize(value).map(AnyRecipe::Head),
        }
        .map_err(D::Error::custom)
    }
}

/// How a low-rank adapter is trained. Every key but `name`, `model` and `dataset` has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `lora`.
    #[serde(default, skip_serializing_if = "Method::is_lora")]
    pub method: Method,
    /// Name of the adapter that comes out: `local/<model>:<name>`.
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
    /// Adapted modules, by the last part of their name.
    #[serde(default = "default_targets")]
    pub targets: Vec<String>,
    /// Peak learning rate of AdamW.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of the steps in which the learning rate rises.
    #[serde(default = "default_warmup")]
    pub warmup: f64,
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
    /// Forward passes of one step.
    #[serde(default = "default_accumulation")]
    pub accumulation: usize,
    /// Longest example in tokens; longer ones are an error, never cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Gradients are scaled down to this global norm.
    #[serde(default = "default_max_gradient_norm")]
    pub max_gradient_norm: f64,
    /// Steps between two validations; 0 validates after each epoch.
    #[serde(default)]
    pub validate_every: usize,
    /// Steps between two checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: usize,
    /// Seed of the initial weights and of the order of the examples.
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
        let within = |key: &str, ok: bool, expected: &str| if ok { Ok(()) } else { Err(wrong(key, format!("must be {expected}"))) };
        check_name(&self.name)?;
        check_model(&self.model)?;
        within("rank", (1..=256).contains(&self.rank), "1 to 256")?;
        within("alpha", self.alpha.is_finite() && self.alpha > 0.0, "a positive number")?;
        within("learning_rate", self.learning_rate > 0.0 && self.learning_rate < 1.0, "between 0 and 1")?;
        within("warmup", (0.0..=0.9).contains(&self.warmup), "0 to 0.9")?;
        within("weight_decay", (0.0..1.0).contains(&self.weight_decay), "0 to 1")?;
        within("epochs", (1..=1000).contains(&self.epochs), "1 to 1000")?;
        within("max_steps", self.max_steps != Some(0), "at least 1")?;
        within("batch_size", (1..=1024).contains(&self.batch_size), "1 to 1024")?;
        within("accumulation", (1..=1024).contains(&self.accumulation), "1 to 1024")?;
        within("max_length", self.max_length >= 8, "at least 8")?;
        within("max_gradient_norm", self.max_gradient_norm > 0.0, "a positive number")?;
        within("checkpoint_every", self.checkpoint_every > 0, "at least 1")?;
        within("targets", !self.targets.is_empty(), "at least one module")?;
        match self.targets.iter().find(|target| !ALL_MODULES.contains(&target.as_str())) {
            Some(target) => Err(wrong("targets", format!("names \"{target}\"; known are {}", ALL_MODULES.join(", ")))),
            None => Ok(()),
        }
    }

    /// Steps of the whole training on that many examples.
    pub fn steps(&self, examples: usize) -> usize {
        let steps = self.epochs * self.steps_per_epoch(examples);
        self.max_steps.map_or(steps, |most| steps.min(most))
    }

    /// Steps of one pass.
    pub fn steps_per_epoch(&self, examples: usize) -> usize {
        examples.div_ceil(self.batch_size * self.accumulation)
    }
}

pub(super) fn check_name(name: &str) -> Result<(), TuningError> {
    let usable = crate::types::ids::is_slug(name);
    if usable { Ok(()) } else { Err(wrong("name", "must be lower-case letters, digits, '-', '_' or '.'")) }
}

pub(super) fn check_model(model: &str) -> Result<(), TuningError> {
    let is_local = model.strip_prefix(LOCAL).is_some_and(|name| !name.is_empty());
    if is_local { Ok(()) } else { Err(wrong("model", "must be a local model, local/<name>")) }
}

pub(super) fn wrong(key: &str, problem: impl Into<String>) -> TuningError {
    TuningError::Recipe { key: key.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name: a\nmodel: local/m\ndataset: d.jsonl\n";

    #[test]
    fn a_short_recipe_has_working_defaults() {
        let AnyRecipe::Lora(recipe) = AnyRecipe::parse(SMALL).expect("parses") else { panic!("lora is the default") };
        assert_eq!((recipe.rank, recipe.targets.len(), recipe.steps(100)), (8, 7, 4 * 13));
    }

    #[test]
    fn recipes_come_back_from_json() {
        for source in [SMALL.to_string(), format!("{SMALL}method: head\nc: 2\n")] {
            let recipe = AnyRecipe::parse(&source).expect("parses");
            let stored = serde_json::to_value(&recipe).expect("JSON");
            assert_eq!(serde_json::from_value::<AnyRecipe>(stored).expect("read"), recipe);
            assert_eq!((recipe.name(), recipe.model(), recipe.dataset(), recipe.prompt()), ("a", "m", "d.jsonl", None));
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        for (line, key) in [
            ("rank: 0", "rank"),
            ("targets: [q_prj]", "q_prj"),
            ("learning_rat: 1", "learning_rat"),
            ("warmup: 2", "warmup"),
            ("method: heat", "heat"),
            ("method: head\nrank: 8", "rank"),
            ("method: head\nc: 0", "recipe: c "),
            ("method: head\nfolds: 1", "folds"),
        ] {
            let error = AnyRecipe::parse(&format!("{SMALL}{line}\n")).expect_err(line).to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
