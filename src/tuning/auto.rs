//! Recipes that choose their own values from the data: what the recipe leaves out is chosen, and every choice says why, so that the whole
//! recipe can be read, kept and changed.

use super::conversation::{Conversation, Data};
use super::lengths::Lengths;
use super::{AnyRecipe, Method, Recipe, TuningError, base};
use crate::models::Files;
use serde_json::{Value, json};

/// Tokens of one forward pass, so that a training fits into a few gigabytes.
const PASS_TOKENS: usize = 2_048;
/// Steps that a small adapter needs to settle: on 770 short messages with 77 labels more bring nothing (`./bench tuning-quality`).
const STEPS: usize = 200;
/// Tokens of a step. Fewer make its gradient noisy, and with more there are too few steps in the same time.
const STEP_TOKENS: usize = 700;
/// Below so many a validation loss is mostly noise.
const MEASURABLE: usize = 10;

/// A value and the reason for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The recipe's key.
    pub key: &'static str,
    /// Its value.
    pub value: Value,
    /// Why this one.
    pub why: String,
}

/// What the data is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Examples to learn.
    pub examples: usize,
    /// Examples to measure.
    pub validation: usize,
    /// Tokens of the longest one.
    pub longest: usize,
    /// Tokens of all that are learned.
    pub tokens: usize,
}

impl Seen {
    /// Counts the tokens of the data as a training by that method sees them.
    ///
    /// # Errors
    /// When the model's files cannot be read, or its template refuses a sample, which is named.
    pub fn of(files: &Files, method: Method, data: &Data<'_>) -> Result<Self, TuningError> {
        let base = base::outline(files)?;
        let counted = Lengths::of(&base);
        let count = |conversation: &Conversation| counted.count(method, conversation);
        let lengths = data.train.iter().map(count).collect::<Result<Vec<_>, _>>()?;
        let measured = data.validation.iter().map(count).collect::<Result<Vec<_>, _>>()?;
        let longest = lengths.iter().chain(&measured).copied().max().unwrap_or_default();
        Ok(Seen { examples: data.train.len(), validation: data.validation.len(), longest, tokens: lengths.iter().sum() })
    }
}

/// Values for a method and data like that, in the order of a recipe.
pub fn choices(method: Method, seen: Seen) -> Vec<Choice> {
    let Seen { examples, validation, longest, tokens } = seen;
    let mut choices = Vec::new();
    let mut choose = |key, value: Value, why: String| choices.push(Choice { key, value, why });
    let rank = if examples < 1_000 { 8 } else { 16 };
    choose("rank", json!(rank), format!("{examples} examples"));
    choose("alpha", json!(2 * rank), "twice the rank".into());
    let dropout = if examples < 500 { 0.05 } else { 0.0 };
    choose(
        "dropout",
        json!(dropout),
        if examples < 500 { "few examples are soon learned by heart" } else { "there are many examples" }.into(),
    );
    let max_length = (longest + longest / 8).next_multiple_of(64);
    choose("max_length", json!(max_length), format!("the longest example has about {longest} tokens"));
    let mean = tokens.div_ceil(examples.max(1)).max(1);
    let most = match examples {
        ..64 => 4,
        64..500 => 8,
        _ => 16,
    };
    let step = [16, 8].into_iter().find(|step| *step <= most && step * mean <= STEP_TOKENS).unwrap_or(4);
    let batch = step.min((PASS_TOKENS / mean).max(1));
    choose("batch_size", json!(batch), format!("an example has {mean} tokens in the mean; a pass holds {PASS_TOKENS}"));
    choose("accumulation", json!(step.div_ceil(batch)), format!("{step} examples a step"));
    let per_epoch = examples.div_ceil(step).max(1);
    let epochs = (STEPS / per_epoch).clamp(2, if method == Method::Dpo { 3 } else { 8 });
    choose("epochs", json!(epochs), format!("{per_epoch} steps each; about {STEPS} settle an adapter"));
    let rate = if method == Method::Dpo { 1e-4 } else { 1e-3 };
    let why =
        if method == Method::Dpo { "preferences take small steps" } else { "low-rank adapters take ten times that of full fine-tuning" };
    choose("learning_rate", json!(rate), why.into());
    if validation >= MEASURABLE {
        choose("early_stopping", json!({"patience": 2}), format!("{validation} examples to measure on"));
    }
    choices
}

impl AnyRecipe {
    /// The recipe with every key chosen that its source leaves out, and what was chosen.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] when the source is no recipe.
    pub fn completed(source: &str, seen: Seen) -> Result<(Self, Vec<Choice>), TuningError> {
        let AnyRecipe::Lora(recipe) = Self::parse(source)? else { return Ok((Self::parse(source)?, Vec::new())) };
        let given: serde_json::Map<String, Value> =
            serde_norway::from_str(source).map_err(|error| super::recipe::wrong("file", error.to_string()))?;
        let mut chosen = choices(recipe.method, seen);
        // One of two keys that mean the same in different units decides over both.
        let beside = |key: &str| match key {
            "batch_size" | "accumulation" => given.contains_key("batch_tokens") || given.contains_key("batch_size"),
            "epochs" => given.contains_key("max_steps"),
            "alpha" => given.contains_key("rank"),
            "rank" => given.contains_key("alpha"),
            _ => false,
        };
        if recipe.method == Method::Full {
            // An adapter's, and a rate that its method has already.
            chosen.retain(|choice| !["rank", "alpha", "dropout", "learning_rate"].contains(&choice.key));
        }
        chosen.retain(|choice| !given.contains_key(choice.key) && !beside(choice.key));
        let mut whole = serde_json::to_value(&recipe).map_err(|error| super::recipe::wrong("file", error.to_string()))?;
        for Choice { key, value, .. } in &chosen {
            whole[*key] = value.clone();
        }
        let recipe: Recipe = serde_json::from_value(whole).map_err(|error| super::recipe::wrong("file", error.to_string()))?;
        recipe.check()?;
        Ok((AnyRecipe::Lora(recipe), chosen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen = Seen { examples: 770, validation: 40, longest: 180, tokens: 770 * 36 };

    fn of<'a>(choices: &'a [Choice], key: &str) -> Option<&'a Value> {
        choices.iter().find(|choice| choice.key == key).map(|choice| &choice.value)
    }

    #[test]
    fn what_the_recipe_says_stays_and_the_rest_is_chosen_with_a_reason() {
        let source = "name: a\nmodel: local/m\ndataset: d\nrank: 4\nmax_steps: 20\n";
        let (recipe, chosen) = AnyRecipe::completed(source, SEEN).expect("a recipe");
        let AnyRecipe::Lora(recipe) = recipe else { panic!("a low-rank adapter") };
        assert_eq!((recipe.rank, recipe.alpha, recipe.max_steps, recipe.batch_size, recipe.max_length), (4, 16.0, Some(20), 16, 256));
        assert_eq!(recipe.early_stopping.map(|stop| stop.patience), Some(2));
        assert!(of(&chosen, "rank").is_none() && of(&chosen, "epochs").is_none() && chosen.iter().all(|choice| !choice.why.is_empty()));
        assert!(AnyRecipe::completed("name: a\nmodel: local/m\ndataset: d\nrnk: 4\n", SEEN).is_err());
    }

    /// What `./bench tuning-quality` trains with, which reaches its bars.
    #[test]
    fn the_benchmarks_recipes_are_found_from_the_data() {
        for (examples, mean, step, epochs) in [(770, 36, 16, 4), (600, 70, 8, 2)] {
            let chosen = choices(Method::Lora, Seen { examples, validation: 0, longest: 2 * mean, tokens: examples * mean });
            let number = |key: &str| of(&chosen, key).and_then(Value::as_u64);
            assert_eq!((number("batch_size"), number("accumulation"), number("epochs")), (Some(step), Some(1), Some(epochs)));
            assert_eq!((number("rank"), of(&chosen, "learning_rate")), (Some(8), Some(&json!(1e-3))));
        }
    }

    #[test]
    fn whatever_the_data_is_like_the_recipe_can_be_run() {
        for examples in [1, 63, 64, 499, 500, 5_000, 1_000_000] {
            for (longest, mean) in [(1, 1), (300, 90), (40_000, 9_000)] {
                let seen = Seen { examples, validation: examples / 10, longest, tokens: examples * mean };
                for method in ["lora", "dpo", "classifier", "full"] {
                    let source = format!("name: a\nmodel: local/m\ndataset: d\nmethod: {method}\n");
                    let (recipe, chosen) = AnyRecipe::completed(&source, seen).expect("a recipe that passes its own check");
                    let AnyRecipe::Lora(recipe) = recipe else { panic!("a low-rank adapter") };
                    assert!(
                        recipe.max_length >= longest && recipe.batch_size * mean.min(PASS_TOKENS) <= PASS_TOKENS,
                        "{seen:?}: {chosen:?}"
                    );
                }
            }
        }
    }
}
