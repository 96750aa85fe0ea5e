//! `[server]`: where the gateway listens and what it accepts.

use super::raw::{Problems, Section};

/// Settings of the gateway.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
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
    /// Seconds after the signal to stop in which requests are still taken while `/ready` says 503.
    pub notice_s: u64,
    /// Seconds of silence in a stream after which a keep-alive is sent, so that no proxy in between thinks it dead.
    pub keep_alive_s: u64,
    /// Connections that may be open; more are answered with 503.
    pub max_connections: usize,
    /// Seconds for a request's head; also how long a connection may wait for its next request.
    pub head_timeout_s: u64,
    /// Seconds after which a caller that takes nothing of its reply is cut off.
    pub send_timeout_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            host: "127.0.0.1".into(),
            port: 4747,
            max_body_bytes: 32 << 20,
            max_file_bytes: 512 << 20,
            drain_s: 30,
            notice_s: 0,
            keep_alive_s: 15,
            max_connections: 10_000,
            head_timeout_s: 60,
            send_timeout_s: 60,
        }
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> ServerConfig {
    let default = ServerConfig::default();
    let port = section.integer("port", 0..=65_535, default.port.into(), problems);
    let max_body = section.integer("max_body_bytes", 1_024..=1 << 30, default.max_body_bytes as u64, problems);
    let max_connections = section.integer("max_connections", 1..=1_000_000, default.max_connections as u64, problems);
    let config = ServerConfig {
        host: section.text("host", problems).unwrap_or(default.host),
        port: u16::try_from(port).unwrap_or(default.port),
        max_body_bytes: usize::try_from(max_body).unwrap_or(default.max_body_bytes),
        max_file_bytes: section.integer("max_file_bytes", 1_024..=1 << 40, default.max_file_bytes, problems),
        drain_s: section.integer("drain_s", 0..=3_600, default.drain_s, problems),
        notice_s: section.integer("notice_s", 0..=600, default.notice_s, problems),
        max_connections: usize::try_from(max_connections).unwrap_or(default.max_connections),
        head_timeout_s: section.integer("head_timeout_s", 1..=3_600, default.head_timeout_s, problems),
        send_timeout_s: section.integer("send_timeout_s", 1..=3_600, default.send_timeout_s, problems),
        keep_alive_s: section.integer("keep_alive_s", 1..=3_600, default.keep_alive_s, problems),
    };
    section.finish(problems);
    config
}
