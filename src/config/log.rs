//! `[log]`: what the request log keeps.

/// Settings of the request log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// Keep request and reply bodies; without them only the figures are kept.
    pub bodies: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { bodies: true }
    }
}
