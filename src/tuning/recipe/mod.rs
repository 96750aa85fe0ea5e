//! The recipe: one page that reads like the experiment. Unknown keys are refused. [`lora`] has the keys of everything that trains a
//! low-rank adapter, [`head`](super::head) those of a head on an embedding model.

mod lora;

pub use lora::{EarlyStopping, LossOn, Recipe};

use super::{HeadRecipe, TuningError};
use crate::types::error::did_you_mean;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

const LOCAL: &str = "local/";

/// Modules that `targets: all` stands for.
pub const ALL_MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is fitted on top of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// A low-rank adapter of a chat model that learns to say what the examples say.
    #[default]
    Lora,
    /// A low-rank adapter of a chat model that learns which of two answers is preferred (direct preference optimisation).
    Dpo,
    /// A classifier on the last hidden state of a chat model, with a low-rank adapter below it.
    Classifier,
    /// A classifier head on an embedding model.
    Head,
    /// All weights of a chat model: a model of its own.
    Full,
}

/// Learning rate of [`Method::Full`] where the recipe names none: a model's own weights take smaller steps than an adapter's.
const FULL_LEARNING_RATE: f64 = 5e-5;

/// Keys that say what an adapter is.
const KEYS_OF_ADAPTERS: [&str; 7] = ["rank", "alpha", "targets", "dropout", "rslora", "dora", "qlora"];

impl Method {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_lora(&self) -> bool {
        *self == Method::Lora
    }
}

/// A recipe of any method.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AnyRecipe {
    /// Of a low-rank adapter, whatever it learns from, or of a whole model.
    Lora(Recipe),
    /// Of a classifier head.
    Head(HeadRecipe),
}

/// What says which recipe it is.
#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    method: Method,
    #[serde(default)]
    learning_rate: Option<f64>,
}

impl Which {
    /// Refuses keys of other methods, even where what they say is the default: whoever writes one expects it to do something.
    fn check_keys(&self, written: &serde_norway::Mapping) -> Result<(), TuningError> {
        let refused = |keys: &[&str], problem| match keys.iter().find(|key| written.contains_key(**key)) {
            Some(key) => Err(wrong(key, problem)),
            None => Ok(()),
        };
        match self.method {
            Method::Full => {
                refused(&KEYS_OF_ADAPTERS, "must be left out: it belongs to adapters, and method: full trains the model itself")?
            }
            Method::Lora | Method::Classifier | Method::Dpo | Method::Head => (),
        }
        if matches!(self.method, Method::Dpo | Method::Head) {
            Ok(())
        } else {
            refused(&["beta"], "must be left out: it belongs to method: dpo")
        }
    }

    /// The recipe with what its method has for a default.
    fn completed(&self, mut recipe: Recipe) -> Recipe {
        if self.method == Method::Full && self.learning_rate.is_none() {
            recipe.learning_rate = FULL_LEARNING_RATE;
        }
        recipe
    }
}

impl AnyRecipe {
    /// Reads `recipe.yaml` and checks it.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] naming the key, with the line where the parser knows it.
    pub fn parse(source: &str) -> Result<Self, TuningError> {
        let unreadable = |error: serde_norway::Error| wrong("file", readable(&error.to_string()));
        let which: Which = serde_norway::from_str(source).map_err(unreadable)?;
        which.check_keys(&serde_norway::from_str(source).map_err(unreadable)?)?;
        let recipe = match which.method {
            Method::Lora | Method::Dpo | Method::Classifier | Method::Full => {
                AnyRecipe::Lora(which.completed(serde_norway::from_str(source).map_err(unreadable)?))
            }
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
        let which = Which::deserialize(&value).map_err(D::Error::custom)?;
        match which.method {
            Method::Lora | Method::Dpo | Method::Classifier | Method::Full => {
                Recipe::deserialize(value).map(|recipe| AnyRecipe::Lora(which.completed(recipe)))
            }
            Method::Head => HeadRecipe::deserialize(value).map(AnyRecipe::Head),
        }
        .map_err(D::Error::custom)
    }
}

/// Words of Rust in a parser's messages, and what they ask for.
const WORDS: [(&str, &str); 7] = [
    ("usize", "a whole number from 0"),
    ("u64", "a whole number from 0"),
    ("f64", "a number"),
    ("f32", "a number"),
    ("struct Which", "keys and their values"),
    ("struct Recipe", "keys and their values"),
    ("struct HeadRecipe", "keys and their values"),
];

/// A parser's message in words that say what to write.
fn readable(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    if let Some((given, known)) = names.next().filter(|_| message.contains("unknown field `")).zip(message.split_once("expected one of")) {
        let near = did_you_mean(given, known.1.split('`').skip(1).step_by(2));
        if !near.is_empty() {
            return format!("unknown field `{given}`{near}");
        }
    }
    WORDS.iter().fold(message.to_string(), |told, (word, plain)| told.replace(&format!("expected {word}"), &format!("expected {plain}")))
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
        assert_eq!((recipe.rank, recipe.targets.len(), recipe.epochs, recipe.batch_size), (8, 7, 4, 8));
    }

    #[test]
    fn a_whole_model_takes_smaller_steps_unless_the_recipe_says_so() {
        for (line, rate) in [("", FULL_LEARNING_RATE), ("learning_rate: 0.001\n", 0.001)] {
            let AnyRecipe::Lora(recipe) = AnyRecipe::parse(&format!("{SMALL}method: full\n{line}")).expect("parses") else {
                panic!("it trains on text")
            };
            assert_eq!(recipe.learning_rate, rate);
        }
    }

    #[test]
    fn recipes_come_back_from_json() {
        let others = [
            "method: head\nc: 2\n",
            "early_stopping: {patience: 2}\nloss_on: assistant\n",
            "method: dpo\nbeta: 0.2\n",
            "qlora: true\n",
            "method: full\n",
            "method: classifier\ntargets: []\n",
            "targets: all\n",
        ];
        for source in others.map(|other| format!("{SMALL}{other}")).into_iter().chain([SMALL.to_string()]) {
            let recipe = AnyRecipe::parse(&source).expect("parses");
            let stored = serde_json::to_value(&recipe).expect("JSON");
            assert_eq!(serde_json::from_value::<AnyRecipe>(stored).expect("read"), recipe);
            assert_eq!((recipe.name(), recipe.model(), recipe.dataset(), recipe.prompt()), ("a", "m", "d.jsonl", None));
        }
    }

    #[test]
    fn what_the_parser_says_is_put_into_plain_words() {
        let told = |line: &str| AnyRecipe::parse(&format!("{SMALL}{line}\n")).expect_err(line).to_string();
        assert!(told("rnk: 4").ends_with("unknown field `rnk`; did you mean \"rank\"?"), "{}", told("rnk: 4"));
        assert!(told("zzz: 4").contains("expected one of `method`"), "{}", told("zzz: 4"));
        assert!(told("epochs: many").contains("expected a whole number from 0 at line 4"), "{}", told("epochs: many"));
        let told = AnyRecipe::parse("[1]").expect_err("no recipe").to_string();
        assert!(told.contains("expected keys and their values"), "{told}");
    }

    #[test]
    fn mistakes_name_the_key() {
        for (line, key) in [
            ("rank: 0", "rank"),
            ("targets: [q_prj]", "q_prj"),
            ("learning_rat: 1", "learning_rat"),
            ("rank: 1000000", "rank"),
            ("rank: 64\nmax_length: 4", "max_length"),
            ("warmup: 2", "warmup"),
            ("dropout: 1", "dropout"),
            ("qlora: true\ndora: true", "qlora"),
            ("loss_on: prompt", "loss_on"),
            ("batch_tokens: 0", "batch_tokens"),
            ("early_stopping: {patience: 0}", "early_stopping"),
            ("early_stopping: {patience: 2, patient: 2}", "patient"),
            ("method: dpo\nbeta: 0", "beta"),
            ("beta: 0.2", "beta"),
            ("targets: []", "targets"),
            ("targets: most", "most"),
            ("learning_rate: .nan", "learning_rate"),
            ("alpha: .inf", "alpha"),
            ("max_gradient_norm: .inf", "max_gradient_norm"),
            ("method: classifier\ntargets: []\ndora: true", "dora"),
            ("head_learning_rate: 0.01", "head_learning_rate"),
            ("method: classifier\nhead_learning_rate: 0", "head_learning_rate"),
            ("method: heat", "heat"),
            ("method: head\nrank: 8", "rank"),
            ("method: head\nc: 0", "recipe: c "),
            ("method: full\nrank: 4", "rank"),
            ("method: full\nrank: 8", "recipe: rank must be left out"),
            ("beta: 0.1", "recipe: beta must be left out"),
            ("method: full\nqlora: true", "qlora"),
            ("method: full\ntargets: [q_proj]", "targets"),
            ("method: head\nfolds: 1", "folds"),
        ] {
            let error = AnyRecipe::parse(&format!("{SMALL}{line}\n")).expect_err(line).to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
