//! `[server]`: where the gateway listens and what it accepts.

use super::raw::{Problems, Section};

/// Settings of the gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Address to listen on.
    pub host: String,
    /// Port; 0 picks a free one.
    pub port: u16,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Largest file that may be uploaded, in bytes.
    pub max_file_bytes: u64,
    /// Seconds that running requests get on shutdown.
    pub drain_s: u64,
    /// Seconds of silence in a stream after which a keep-alive is sent, so that no proxy in between thinks it dead.
    pub keep_alive_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            host: "127.0.0.1".into(),
            port: 4747,
            max_body_bytes: 32 << 20,
            max_file_bytes: 512 << 20,
            drain_s: 30,
            keep_alive_s: 15,
        }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> ServerConfig {
    let default = ServerConfig::default();
    let port = section.integer("port", 0..=65_535, default.port.into(), problems);
    let max_body = section.integer("max_body_bytes", 1_024..=1 << 30, default.max_body_bytes as u64, problems);
    let config = ServerConfig {
        host: section.text("host", problems).unwrap_or(default.host),
        port: u16::try_from(port).unwrap_or(default.port),
        max_body_bytes: usize::try_from(max_body).unwrap_or(default.max_body_bytes),
        max_file_bytes: section.integer("max_file_bytes", 1_024..=1 << 40, default.max_file_bytes, problems),
        drain_s: section.integer("drain_s", 0..=3_600, default.drain_s, problems),
        keep_alive_s: section.integer("keep_alive_s", 1..=3_600, default.keep_alive_s, problems),
    };
    section.finish(problems);
    config
}
