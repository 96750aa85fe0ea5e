//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod audit;
mod cli;
mod datasets;
#[cfg(feature = "local")]
mod engine;
#[cfg(feature = "local")]
mod interop;
mod evals;
mod models;
mod prompts;
mod releases;
mod support;
#[cfg(feature = "local")]
mod tuning;
