//! `[local]`: how local models are run.

/// Settings of the local engine.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalConfig {
    /// Worker threads of the engine; 0 takes all cores.
    pub threads: usize,
    /// Sequences that share one decoding step.
    pub max_batch: usize,
    /// Tokens a sequence may hold, prompt and reply together; the model's own limit still applies.
    pub max_context: usize,
    /// Requests that may wait before new ones are answered with 429.
    pub max_queue: usize,
}

impl Default for LocalConfig {
    fn default() -> Self {
        LocalConfig { threads: 0, max_batch: 24, max_context: 4096, max_queue: 256 }
    }
}
