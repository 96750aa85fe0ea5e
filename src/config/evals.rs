//! `[evals]`: what evaluations may do.

use super::raw::{Problems, Section};

/// Settings of evaluations.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct EvalsConfig {
    /// Whether scorers may run programs (`command`, `wasm`): whoever writes a suite then runs code here.
    pub allow_commands: bool,
    /// Days that answers are given again for which suites with `cache: true` got; older ones are deleted. 0 keeps them.
    pub replies_retention_days: u64,
}

impl Default for EvalsConfig {
    fn default() -> Self {
        EvalsConfig { allow_commands: false, replies_retention_days: 90 }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> EvalsConfig {
    let allow_commands = section.switch("allow_commands", false, problems);
    let replies_retention_days =
        section.integer("replies_retention_days", 0..=36_500, EvalsConfig::default().replies_retention_days, problems);
    section.finish(problems);
    EvalsConfig { allow_commands, replies_retention_days }
}
