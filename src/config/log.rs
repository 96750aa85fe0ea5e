//! `[log]`: what the request log keeps.

use super::raw::{Problems, Section};

/// Settings of the request log.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LogConfig {
    /// Keep request and reply bodies; without them only the figures are kept.
    pub bodies: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { bodies: true }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> LogConfig {
    let config = LogConfig { bodies: section.switch("bodies", LogConfig::default().bodies, problems) };
    section.finish(problems);
    config
}
