//! What a training will take, told before it begins: examples and tokens as its tokenizer counts them, steps, trained values, and memory by the
//! sizes that the model file's header names. No weights are read.

use super::lengths::Lengths;
use super::plan::Plan;
use super::{Conversation, Data, Method, Recipe, TuningError};
use crate::engine::arch;
use crate::engine::gguf::Gguf;
use serde::Serialize;
use std::path::Path;

/// Bytes of f32.
const FLOAT: u64 = 4;
/// Values of a variable, its gradient and AdamW's two moments.
const OPTIMISER: u64 = 4;
/// Bytes of a process before a model is loaded, its tokenizer and buffers.
const BASE_BYTES: u64 = 250 << 20;

/// Counts, and what they come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Examples to learn.
    pub examples: usize,
    /// Examples that are measured.
    pub validation: usize,
    /// Tokens of one pass over the examples.
    pub tokens: u64,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Steps in all.
    pub steps: usize,
    /// Tokens of all steps.
    pub trained_tokens: u64,
    /// Tokens of the largest batch that can come.
    pub batch_tokens: u64,
    /// Values of the model.
    pub parameters: u64,
    /// Values that are trained.
    pub trained_parameters: u64,
    /// Bytes at the peak, about.
    pub memory_bytes: u64,
}

/// Widths of a decoder.
struct Sizes {
    layers: u64,
    hidden: u64,
    inner: u64,
    query: u64,
    key: u64,
    vocabulary: u64,
    /// Tokens that it was made for.
    context: usize,
    has_head: bool,
}

impl Sizes {
    fn of(file: &Gguf, vocabulary: usize) -> Result<Self, TuningError> {
        let architecture = file.text("general.architecture")?;
        let integer = |name: &str| file.integer(&format!("{architecture}.{name}"));
        let (hidden, heads) = (integer("embedding_length")?, integer("attention.head_count")?.max(1));
        let keys = integer("attention.head_count_kv").unwrap_or(heads);
        let width = integer("attention.key_length").unwrap_or(hidden / heads);
        let wide = |count: usize| count as u64;
        Ok(Sizes {
            layers: wide(integer("block_count")?),
            hidden: wide(hidden),
            inner: wide(integer("feed_forward_length")?),
            query: wide(heads * width),
            key: wide(keys * width),
            vocabulary: wide(vocabulary),
            context: integer("context_length").unwrap_or(usize::MAX),
            has_head: file.has_tensor("output.weight"),
        })
    }

    /// (inputs, outputs) of the linear layers of a block, by name.
    fn modules(&self) -> [(&'static str, u64, u64); 7] {
        [
            ("q_proj", self.hidden, self.query),
            ("k_proj", self.hidden, self.key),
            ("v_proj", self.hidden, self.key),
            ("o_proj", self.query, self.hidden),
            ("gate_proj", self.hidden, self.inner),
            ("up_proj", self.hidden, self.inner),
            ("down_proj", self.inner, self.hidden),
        ]
    }

    fn parameters(&self) -> u64 {
        let block: u64 = self.modules().iter().map(|(_, inputs, outputs)| inputs * outputs).sum();
        let embedding = self.vocabulary * self.hidden * if self.has_head { 2 } else { 1 };
        self.layers.saturating_mul(block + 2 * self.hidden).saturating_add(embedding + self.hidden)
    }

    fn trained(&self, recipe: &Recipe) -> u64 {
        let adapted = self.modules().into_iter().filter(|(name, ..)| recipe.targets.iter().any(|target| target == name));
        self.layers * adapted.map(|(_, inputs, outputs)| recipe.rank as u64 * (inputs + outputs)).sum::<u64>()
    }

    /// Values that a token leaves behind in a block for the way back, as the trainer's operations keep them: inputs of the norms and of every
    /// layer, queries, keys and values, and the two halves of the feed-forward part.
    fn kept(&self) -> u64 {
        5 * self.hidden + 2 * self.query + 2 * self.key + 3 * self.inner
    }
}

/// Counts what a training of an adapter will take.
///
/// # Errors
/// [`TuningError::Engine`] naming the key of the model file that is missing.
pub fn estimate(model_file: &Path, recipe: &Recipe, data: &Data<'_>) -> Result<Estimate, TuningError> {
    let file = Gguf::open(model_file)?;
    arch::check_trainable(&file)?;
    let counted = Lengths::new(&file)?;
    let sizes = Sizes::of(&file, counted.vocabulary())?;
    let count = |conversation: &Conversation| counted.count(recipe.method, conversation);
    let most = recipe.max_length.min(sizes.context);
    let fitting = |conversation: &Conversation| match count(conversation)? {
        // Of a preference every answer may be that long.
        tokens if tokens > most && recipe.method != Method::Dpo => {
            Err(conversation.wrong(format!("it has {tokens} tokens, max_length is {most}")))
        }
        tokens => Ok(tokens),
    };
    let lengths = data.train.iter().map(fitting).collect::<Result<Vec<_>, _>>()?;
    data.validation.iter().try_for_each(|conversation| fitting(conversation).map(drop))?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let tokens: u64 = lengths.iter().map(|length| *length as u64).sum();
    let batch_tokens = largest_batch(recipe, &lengths);
    let (steps, per_epoch) = (
        Plan::new(recipe, lengths.clone()).steps(),
        Plan::new(&Recipe { epochs: 1, max_steps: None, ..recipe.clone() }, lengths.clone()).steps(),
    );
    let passes = steps as f64 / per_epoch.max(1) as f64;
    let (parameters, trained_parameters) = (sizes.parameters(), sizes.trained(recipe));
    let kept = batch_tokens.saturating_mul(sizes.layers * sizes.kept() + 4 * sizes.hidden);
    let values = parameters.saturating_add(OPTIMISER * trained_parameters).saturating_add(kept);
    Ok(Estimate {
        examples: lengths.len(),
        validation: data.validation.len(),
        tokens,
        longest,
        steps,
        trained_tokens: (tokens as f64 * passes) as u64,
        batch_tokens,
        parameters,
        trained_parameters,
        memory_bytes: values.saturating_mul(FLOAT).saturating_add(BASE_BYTES),
    })
}

/// Tokens of the largest batch that can come.
fn largest_batch(recipe: &Recipe, lengths: &[usize]) -> u64 {
    let mut longest_first = lengths.to_vec();
    longest_first.sort_unstable_by(|a, b| b.cmp(a));
    let longest = longest_first.first().copied().unwrap_or(0);
    match recipe.batch_tokens {
        Some(tokens) => tokens.max(longest) as u64,
        None => longest_first.iter().take(recipe.batch_size).map(|length| *length as u64).sum(),
    }
}
