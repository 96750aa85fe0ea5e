//! Anthropic's Messages API under `/v1/messages`, against any provider: [`request`] reads a message request as a chat request,
//! [`reply`] and [`stream`] write the answer back. Where the provider speaks the protocol itself, request and answer pass as they
//! are. (Messages API reference, versions 2023-06-01 and 2026-10-21.)

mod error;
mod origins;
mod reply;
mod request;
mod stream;

pub use error::OVERLOADED;
pub use error::body as error_body;

use super::entry::Entry;
use super::error::ApiError;
use super::{Gateway, answer};
use crate::gateway::body::Json;
use crate::inference::{Answer, Ask};
use crate::providers::{Native, Protocol};
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use origins::Origins;
use serde_json::{Map, Value, json};

/// `POST /v1/messages`, plain and streamed.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "messages")?;
    let (gateway, ask, (native, chat, origins)) = entry.read(|fields, headers| read(fields, headers, true)).await?;
    let ask = Ask { native: Some(native), ..ask };
    let (id, model) = (ask.request_id.clone(), chat.model.clone());
    let whole = |answer: Answer| answer.native.unwrap_or_else(|| reply::of_chat(&answer.response));
    let events = stream::Events::new(id, model, origins.clone());
    let answered = answer::chat(&gateway, ask, chat, whole, events).await;
    answered.map_err(|ApiError(failure)| ApiError(origins.told(failure)))
}

/// `POST /v1/messages/count_tokens`.
pub async fn count_tokens(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "messages.count_tokens")?;
    let (gateway, ask, (native, chat, origins)) = entry.read(|fields, headers| read(fields, headers, false)).await?;
    let counted = gateway.app.inference.count_tokens(Ask { native: Some(native), ..ask }, chat).await;
    let (count, told) = counted.map_err(|failure| origins.told(failure))?;
    Ok(answer::tell(Json(json!({"input_tokens": count})).into_response(), &told))
}

fn read(fields: Map<String, Value>, headers: &HeaderMap, needs_limit: bool) -> Result<(Native, ChatRequest, Origins), Failure> {
    let version = request::version(headers)?;
    let (chat, origins) = request::to_chat(&fields, version, needs_limit)?;
    Ok((Native { protocol: Protocol::Messages, version, body: fields }, chat, origins))
}
