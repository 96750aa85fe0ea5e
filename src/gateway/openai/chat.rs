//! `POST /v1/chat/completions`, plain and streamed.

use super::check;
use crate::access::Caller;
use crate::gateway::error::ApiError;
use crate::gateway::middleware::RequestId;
use crate::gateway::{Gateway, body, sse};
use crate::inference::Ask;
use crate::types::chat::ChatRequest;
use crate::types::{Digest, Failure};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

const RELEASE: HeaderName = HeaderName::from_static("x-refit-release");
const PROVIDER: HeaderName = HeaderName::from_static("x-refit-provider");

/// The handler.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let inference = &gateway.app.inference;
    let ask = Ask { caller, request_id, endpoint: "chat.completions" };
    let chat = match read(&gateway, request).await {
        Ok(chat) => chat,
        Err(failure) => return Err(inference.refused(ask, failure).into()),
    };
    if chat.stream.unwrap_or(false) {
        let wants_usage = chat.wants_usage();
        let stream = inference.answer_stream(ask, chat).await?;
        let (provider, release) = (stream.provider.clone(), stream.release);
        return Ok(told(sse::reply(stream, wants_usage, gateway.cut.clone()), &provider, release));
    }
    let answer = inference.answer(ask, chat).await?;
    Ok(told(Json(answer.response).into_response(), &answer.provider, answer.release))
}

async fn read(gateway: &Gateway, request: Request) -> Result<ChatRequest, Failure> {
    let (parts, body) = request.into_parts();
    let body = body::read_json(&parts.headers, body, gateway.app.config.server.max_body_bytes).await?;
    check::chat(body)
}

/// Names in the headers who answered.
fn told(mut response: Response, provider: &str, release: Option<Digest>) -> Response {
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(provider).map(|value| (PROVIDER, value)));
    headers.extend(release.and_then(|digest| HeaderValue::from_str(&digest.to_string()).ok()).map(|value| (RELEASE, value)));
    response
}
