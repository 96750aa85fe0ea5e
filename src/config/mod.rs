//! Configuration: `refit.toml` (raw, as the user wrote it) becomes [`Config`] (checked, as the program uses it). One file per TOML
//! section; every environment variable in [`env`]; reload in `live.rs`.

pub mod env;
pub mod local;
pub mod log;
pub mod providers;
pub mod secret;
pub mod server;

pub use local::LocalConfig;
pub use log::LogConfig;
pub use providers::ProviderConfig;
pub use secret::Secret;
pub use server::ServerConfig;

/// The checked configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[providers.<name>]`, by name; `local` and `mock` exist without being listed.
    pub providers: Vec<ProviderConfig>,
    /// `[local]`
    pub local: LocalConfig,
    /// `[log]`
    pub log: LogConfig,
}
