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
    /// Adapters are kept in f32 rather than bfloat16: twice the memory, and more of it to read for every token.
    pub adapters_f32: bool,
}

impl Default for LocalConfig {
    fn default() -> Self {
        LocalConfig { threads: 0, max_batch: 24, max_context: 4096, max_queue: 256, adapters_f32: false }
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
        adapters_f32: section.switch("adapters_f32", default.adapters_f32, problems),
    };
    section.finish(problems);
    config
}
