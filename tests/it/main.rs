//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod cli;
mod models;
#[cfg(feature = "local")]
mod engine;
mod support;
