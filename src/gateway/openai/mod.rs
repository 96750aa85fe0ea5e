//! The OpenAI-compatible API under `/v1`.

pub mod azure;
pub mod batches;
pub mod chat;
pub mod check;
pub mod completions;
pub mod embeddings;
pub mod evals;
pub mod files;
pub mod fine_tuning;
pub mod models;
pub mod moderations;
pub mod names;
pub mod prompt;
pub mod responses;
pub mod stored;

use crate::types::blocking::blocking;
use crate::types::ids::is_safe_name;
use crate::types::{Code, Failure};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use serde_json::{Value, json};

/// The id of a path; what cannot be one names nothing.
fn id_of(id: Result<Path<String>, PathRejection>, what: &str) -> Result<String, Failure> {
    let id = id.ok().map(|Path(id)| id).filter(|id| is_safe_name(id));
    id.ok_or_else(|| Failure::new(Code::UNKNOWN_NAME, format!("no {what} has such an id")))
}

/// A list as OpenAI's clients page through it.
fn page(data: Vec<Value>, more: bool) -> Value {
    let (first, last) = (data.first().map(|item| item["id"].clone()), data.last().map(|item| item["id"].clone()));
    json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})
}
