//! The OpenAI-compatible API under `/v1`.

pub mod azure;
pub mod chat;
pub mod check;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod names;
pub mod responses;
