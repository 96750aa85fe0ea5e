//! `POST /v1/moderations`: passed on to the provider that `model` names, and its reply to the caller.

use super::check;
use crate::gateway::body::Json;
use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::{Gateway, answer};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "moderations")?;
    let (gateway, ask, request) = entry.read(|fields, _| check::moderation(fields)).await?;
    let judged = gateway.app.inference.moderate(ask, request).await?;
    Ok(answer::tell(Json(judged.response).into_response(), &judged.told))
}
