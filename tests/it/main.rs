//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod audit;
mod cli;
#[cfg(feature = "local")]
mod engine;
mod models;
mod releases;
mod support;
#[cfg(feature = "local")]
mod tuning;
