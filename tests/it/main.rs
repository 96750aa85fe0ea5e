//! Black-box tests: one binary, one module per topic. They drive the built program and HTTP.

mod audit;
mod batches;
mod budgets;
mod cli;
mod clients;
mod config;
mod datasets;
mod edges;
#[cfg(feature = "local")]
mod engine;
mod evals;
mod faults;
mod forwarding;
mod gateway;
#[cfg(feature = "local")]
mod interop;
mod keys;
mod limits;
#[cfg(feature = "local")]
mod local;
mod log;
mod messages;
mod models;
mod origins;
mod prices;
mod prompts;
mod releases;
mod serving;
mod streams;
mod support;
mod tenancy;
#[cfg(feature = "local")]
mod tuning;
mod upstream;
mod wire;
