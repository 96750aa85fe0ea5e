//! The end of a model call: a whole reply or a stream, written in the caller's protocol, with the headers that tell what answered.

use super::Gateway;
use super::body::Json;
use super::error::ApiError;
use super::headers;
use super::sse::{self, Encode};
use crate::inference::{Answer, Ask};
use crate::types::Told;
use crate::types::chat::ChatRequest;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// Answers a chat request: `whole` writes a whole reply, `encoder` a streamed one.
pub async fn chat(
    gateway: &Gateway,
    ask: Ask,
    request: ChatRequest,
    whole: impl FnOnce(Answer) -> Value,
    encoder: impl Encode,
) -> Result<Response, ApiError> {
    if request.stream.unwrap_or(false) {
        return sse::open(gateway, ask, request, encoder).await;
    }
    let mut answer = gateway.app.inference.answer(ask, request).await?;
    let told = std::mem::take(&mut answer.told);
    Ok(tell(Json(whole(answer)).into_response(), &told))
}

/// Writes what is told about a call into its reply's headers.
pub fn tell(mut response: Response, told: &Told) -> Response {
    headers::tell(response.headers_mut(), told);
    response
}
