//! What a training will take, told before it begins: examples and tokens as its tokenizer counts them, steps, trained values, and memory by the
//! sizes that the header of the model's files names. No weights are read.

use super::lengths::Lengths;
use super::plan::Plan;
use super::{Conversation, Data, Method, Recipe, TuningError, base};
use crate::engine::adapter::LoraTarget;
use crate::engine::model::Outline;
use crate::engine::nn::attention::scratch_bytes;
use crate::models::Files;
use serde::Serialize;

/// Bytes of f32.
const FLOAT: u64 = 4;
/// Bytes of bfloat16.
const HALF: u64 = 2;
/// Values of a variable, its gradient and AdamW's two moments.
const OPTIMISER: u64 = 4;
/// Beside a model's own weights: their gradient of a pass, the sum of a step, AdamW's two moments, and the best ones or those of a
/// checkpoint.
const FULL: u64 = 5;
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

/// Counts of a decoder.
struct Sizes<'a> {
    base: &'a Outline,
    modules: Vec<LoraTarget>,
}

impl Sizes<'_> {
    fn parameters(&self) -> u64 {
        let (config, family) = (&self.base.config, self.base.family);
        let wide = |count: usize| count as u64;
        let matrices: u64 = self.modules.iter().map(|target| wide(target.inputs * target.outputs)).sum();
        let norms =
            config.hidden * if family.has_output_norms { 4 } else { 2 } + if family.has_head_norms { 2 * config.heads.width } else { 0 };
        let biases = if family.has_biases { config.heads.query_width() + 2 * config.heads.key_width() } else { 0 };
        let tables = wide(config.vocabulary * config.hidden) * if self.base.is_tied { 1 } else { 2 };
        matrices + wide(config.layers * (norms + biases) + config.hidden) + tables
    }

    /// Values that are dequantised at once: those of a block, or of the output matrix.
    fn largest(&self) -> u64 {
        let block: usize = self.modules.iter().map(|target| target.inputs * target.outputs).sum::<usize>() / self.base.config.layers;
        block.max(self.base.config.vocabulary * self.base.config.hidden) as u64
    }

    fn trained(&self, recipe: &Recipe) -> u64 {
        let adapted = self.modules.iter().filter(|target| recipe.targets.iter().any(|name| name == target.module()));
        adapted.map(|target| (recipe.rank * (target.inputs + target.outputs)) as u64).sum()
    }

    /// Bytes of the attention's own beside them, for sequences of up to so many tokens. Where all blocks are one operation it goes in tiles.
    fn attention(&self, recipe: &Recipe, longest: usize) -> u64 {
        // What an adapter has beside its pairs, and weights that are trained, the stack does not know.
        let is_plain = recipe.method != Method::Full && !recipe.dora && recipe.dropout == 0.0;
        if is_plain { 0 } else { scratch_bytes(longest) }
    }

    /// Values that a token leaves behind in a block for the way back, as the trainer's operations keep them: inputs of the norms and of every
    /// layer, queries, keys and values, and the two halves of the feed-forward part.
    fn kept(&self) -> u64 {
        let (config, family) = (&self.base.config, self.base.family);
        let (query, key) = (config.heads.query_width(), config.heads.key_width());
        let fused = 5 * config.hidden + 2 * query + 2 * key + 3 * config.inner;
        // What goes through those norms is kept as it was before them, too; one operation after the other leaves every result.
        let output_norms = if family.has_output_norms { 3 * config.hidden } else { 0 };
        let head_norms = if family.has_head_norms { query + key } else { 0 };
        (fused + output_norms + head_norms) as u64
    }
}

/// Counts what a training of an adapter will take.
///
/// # Errors
/// [`TuningError::Engine`] naming the key of the model's files that is missing, or what training does not compute.
pub fn estimate(files: &Files, recipe: &Recipe, data: &Data<'_>) -> Result<Estimate, TuningError> {
    let base = base::outline(files)?;
    let counted = Lengths::of(&base);
    let sizes = Sizes { base: &base, modules: base.config.lora_targets() };
    let most = recipe.max_length.min(base.config.trained_positions());
    let mut sequence = 0;
    let mut fitting = |conversation: &Conversation| {
        let sequences = counted.sequences(recipe.method, conversation)?;
        if let Some(tokens) = sequences.iter().find(|tokens| **tokens > most) {
            return Err(conversation.wrong(format!("it has {tokens} tokens, max_length is {most}")));
        }
        sequence = sequences.iter().copied().fold(sequence, usize::max);
        Ok(sequences.iter().sum())
    };
    let lengths = data.train.iter().map(&mut fitting).collect::<Result<Vec<usize>, _>>()?;
    data.validation.iter().try_for_each(|conversation| fitting(conversation).map(drop))?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let tokens: u64 = lengths.iter().map(|length| *length as u64).sum();
    let batch_tokens = largest_batch(recipe, &lengths);
    let (steps, per_epoch) = (
        Plan::new(recipe, lengths.clone()).steps(),
        Plan::new(&Recipe { epochs: 1, max_steps: None, ..recipe.clone() }, lengths.clone()).steps(),
    );
    let passes = steps as f64 / per_epoch.max(1) as f64;
    let parameters = sizes.parameters();
    let is_full = recipe.method == Method::Full;
    let trained_parameters = if is_full { parameters } else { sizes.trained(recipe) };
    let kept = batch_tokens.saturating_mul(base.config.layers as u64 * sizes.kept() + 4 * base.config.hidden as u64);
    let values = (if is_full { FULL } else { OPTIMISER } * trained_parameters).saturating_add(kept);
    let weights =
        if recipe.qlora { base::size_bytes(files).saturating_add(HALF * sizes.largest()) } else { FLOAT.saturating_mul(parameters) };
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
        memory_bytes: values
            .saturating_mul(FLOAT)
            .saturating_add(weights)
            .saturating_add(sizes.attention(recipe, sequence))
            .saturating_add(BASE_BYTES),
    })
}

/// Tokens of the largest batch that can come.
fn largest_batch(recipe: &Recipe, lengths: &[usize]) -> u64 {
    let mut longest_first = lengths.to_vec();
    longest_first.sort_unstable_by(|a, b| b.cmp(a));
    let longest = longest_first.first().copied().unwrap_or(0);
    match recipe.batch_tokens {
        Some(tokens) => (tokens.max(longest) as u64).min(lengths.iter().map(|length| *length as u64).sum()),
        None => longest_first.iter().take(recipe.batch_size).map(|length| *length as u64).sum(),
    }
}
