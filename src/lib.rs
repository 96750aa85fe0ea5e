//! Refit: one binary that takes a team from a prebuilt model to something that serves its application well, and keeps doing so.
//!
//! One room per noun, ranked; a room imports only from lower ranks (`tests/architecture.rs`):
//!
//! ```text
//!  10 cli         9 gateway       8 ui         7 app
//!   6 jobs        5 evals         4 inference  3 providers  tuning
//!   2 access models guardrails prompts datasets releases monitor engine
//!   1 stats config store          0 types
//! ```
//!
//! Long prose: [the wire](docs::api), [keys, limits, budgets, prices](docs::control), [architecture](docs::architecture),
//! [decisions](docs::decisions).

pub mod access;
pub mod app;
pub mod cli;
pub mod config;
pub mod datasets;
pub mod docs;
#[cfg(feature = "local")]
pub mod engine;
pub mod evals;
pub mod gateway;
pub mod guardrails;
pub mod inference;
pub mod jobs;
pub mod models;
pub mod monitor;
pub mod prompts;
pub mod providers;
pub mod releases;
pub mod stats;
pub mod store;
#[cfg(feature = "local")]
pub mod tuning;
pub mod types;
