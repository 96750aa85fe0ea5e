//! `[local]`: how local models are run.

use super::raw::{Problems, Section};

/// Settings of the local engine.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LocalConfig {
    /// Worker threads of the engine; 0 takes all cores.
    pub threads: usize,
    /// Sequences that share one decoding step.
    pub max_batch: usize,
    /// Tokens a sequence may hold, prompt and reply together; the model's own limit still applies.
    pub max_context: usize,
    /// Requests that may wait before new ones are answered with 429.
    pub max_queue: usize,
    /// Memory for keys and values of one model, MiB: running sequences and kept prompts together.
    pub cache_mib: usize,
    /// Models that are kept loaded, those that chat and those that embed each; the one unused longest makes room.
    pub max_models: usize,
    /// Adapters that are kept loaded.
    pub max_adapters: usize,
    /// Adapters are kept in f32 rather than bfloat16: twice the memory, and more of it to read for every token.
    pub adapters_f32: bool,
}

impl Default for LocalConfig {
    fn default() -> Self {
        LocalConfig {
            threads: 0,
            max_batch: 24,
            max_context: 4096,
            max_queue: 256,
            cache_mib: 2048,
            max_models: 4,
            max_adapters: 32,
            adapters_f32: false,
        }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> LocalConfig {
    let default = LocalConfig::default();
    let mut count = |key, range, default: usize| {
        let value = section.integer(key, range, default as u64, problems);
        usize::try_from(value).unwrap_or(default)
    };
    let config = LocalConfig {
        threads: count("threads", 0..=1_024, default.threads),
        max_batch: count("max_batch", 1..=1_024, default.max_batch),
        max_context: count("max_context", 16..=1 << 24, default.max_context),
        max_queue: count("max_queue", 0..=1 << 20, default.max_queue),
        cache_mib: count("cache_mib", 1..=1 << 20, default.cache_mib),
        max_models: count("max_models", 1..=1_024, default.max_models),
        max_adapters: count("max_adapters", 1..=65_536, default.max_adapters),
        adapters_f32: section.switch("adapters_f32", default.adapters_f32, problems),
    };
    section.finish(problems);
    config
}
