//! `[server]`: where the gateway listens and what it accepts.

/// Settings of the gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Address to listen on.
    pub host: String,
    /// Port; 0 picks a free one.
    pub port: u16,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Seconds that running requests get on shutdown.
    pub drain_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig { host: "127.0.0.1".into(), port: 4747, max_body_bytes: 32 << 20, drain_s: 30 }
    }
}
