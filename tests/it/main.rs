//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod audit;
mod cli;
mod datasets;
#[cfg(feature = "local")]
mod engine;
mod evals;
#[cfg(feature = "local")]
mod interop;
mod models;
mod prompts;
mod releases;
mod support;
#[cfg(feature = "local")]
mod tuning;
