//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod cli;
mod models;
mod support;
