//! `[evals]`: what evaluations may do.

use super::raw::{Problems, Section};

/// Settings of evaluations.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct EvalsConfig {
    /// Whether scorers may run programs (`command`, `wasm`): whoever writes a suite then runs code here.
    pub allow_commands: bool,
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> EvalsConfig {
    let allow_commands = section.switch("allow_commands", false, problems);
    section.finish(problems);
    EvalsConfig { allow_commands }
}
