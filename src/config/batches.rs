//! `[batches]`: how `/v1/batches` is worked on.

use super::raw::{Problems, Section};

/// Settings of batches.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BatchesConfig {
    /// Lines that are asked at once, over all batches.
    pub concurrency: usize,
}

impl Default for BatchesConfig {
    fn default() -> Self {
        BatchesConfig { concurrency: 8 }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> BatchesConfig {
    let default = BatchesConfig::default();
    let concurrency = section.integer("concurrency", 1..=1_024, default.concurrency as u64, problems);
    section.finish(problems);
    BatchesConfig { concurrency: usize::try_from(concurrency).unwrap_or(default.concurrency) }
}
