//! The end of a model call: a whole reply or a stream, written in the caller's protocol, with the headers that tell what answered.

use super::Gateway;
use super::body::Json;
use super::error::ApiError;
use super::sse::{self, Encode};
use crate::inference::{Answer, Ask};
use crate::types::Digest;
use crate::types::chat::ChatRequest;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

const RELEASE: HeaderName = HeaderName::from_static("x-refit-release");
const PROVIDER: HeaderName = HeaderName::from_static("x-refit-provider");
/// What the cache had; of a request, what is wanted of it.
pub const CACHE: HeaderName = HeaderName::from_static("x-refit-cache");
const CASCADE: HeaderName = HeaderName::from_static("x-refit-cascade");

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
    let answer = gateway.app.inference.answer(ask, request).await?;
    let (provider, release, cascade, cache) = (answer.provider.clone(), answer.release, answer.cascade, answer.cache);
    Ok(cached(cascaded(told(Json(whole(answer)).into_response(), &provider, release), cascade), cache))
}

/// Says whether the cache had the reply, where it was asked.
pub fn cached(mut response: Response, cache: Option<&'static str>) -> Response {
    if let Some(how) = cache {
        response.headers_mut().insert(CACHE, HeaderValue::from_static(how));
    }
    response
}

/// Says whether a cascade's first model answered, where there was one.
pub fn cascaded(mut response: Response, how: Option<&'static str>) -> Response {
    if let Some(how) = how {
        response.headers_mut().insert(CASCADE, HeaderValue::from_static(how));
    }
    response
}

/// Names the provider and the release in the reply's headers.
pub fn told(mut response: Response, provider: &str, release: Option<Digest>) -> Response {
    let release = release.map(|release| release.to_string());
    for (name, value) in [(PROVIDER, Some(provider)), (RELEASE, release.as_deref())] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
