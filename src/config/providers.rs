//! `[providers.<name>]`: places that answer model calls.

use super::Secret;

/// One configured provider.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Name that callers put before the slash: `<name>/<model>`.
    pub name: String,
    /// Registry word: `openai`, `compatible`, or a row of `providers/compatible.rs` such as `groq`.
    pub kind: String,
    /// Base URL; rows bring their own.
    pub base_url: Option<String>,
    /// API key, read from the environment.
    pub api_key: Option<Secret>,
    /// Seconds to connect.
    pub connect_timeout_s: u64,
    /// Seconds for a whole reply.
    pub timeout_s: u64,
}
