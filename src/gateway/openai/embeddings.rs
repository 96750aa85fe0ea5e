//! `POST /v1/embeddings`.

use super::check;
use crate::gateway::body::Json;
use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::{Gateway, answer};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "embeddings")?;
    let (gateway, ask, request) = entry.read(|fields, _| check::embeddings(fields)).await?;
    let made = gateway.app.inference.embed(ask, request).await?;
    Ok(answer::tell(Json(made.response).into_response(), &made.told))
}
