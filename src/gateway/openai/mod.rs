//! The OpenAI-compatible API under `/v1`.

pub mod chat;
mod check;
pub mod models;
