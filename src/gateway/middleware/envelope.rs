//! The outermost layer: gives the request its id, turns a panic into a reply, counts, and names the id in the reply.

use crate::gateway::Gateway;
use crate::gateway::error::{ApiError, in_messages};
use crate::gateway::openai::models::VERSION_HEADER;
use crate::providers::Protocol;
use crate::types::ids::new_id;
use crate::types::{Code, Failure};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's clients read the id of a request here.
const ANTHROPIC_HEADER: HeaderName = HeaderName::from_static("request-id");
/// Paths that are answered in Anthropic's protocol, and those that both protocols have.
const MESSAGES: &str = "/v1/messages";
const MODELS: &str = "/v1/models";

/// Id of the request: the `x-request-id` of the reply and the id of its log row. Never the client's own.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

impl RequestId {
    /// The header of the reply that names it.
    pub const HEADER: HeaderName = HEADER;
}

/// See the file.
pub async fn wrap(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let path = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    let protocol = if speaks_messages(&request) { Protocol::Messages } else { Protocol::Chat };
    around(&gateway, path, protocol, async |id: String| {
        request.extensions_mut().insert(RequestId(id));
        next.run(request).await
    })
    .await
}

/// A request's answer in its envelope; `path` is the route's pattern.
pub async fn around(gateway: &Gateway, path: &str, protocol: Protocol, answer: impl AsyncFnOnce(String) -> Response) -> Response {
    let id = new_id("req");
    // Nothing that a handler shares can be left half-changed: it lives in the store or behind poison-tolerant locks.
    let answering = pin!(answer(id.clone()));
    let answered = AssertUnwindSafe(answering).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!(request = id, path, "a handler panicked");
        ApiError(Failure::new(Code::INTERNAL, "something inside Refit failed; the server's log has more")).into_response()
    });
    if protocol == Protocol::Messages {
        response = in_messages(response, &id);
    }
    gateway.app.metrics.http(path, response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&id) {
        if protocol == Protocol::Messages {
            response.headers_mut().insert(ANTHROPIC_HEADER, value.clone());
        }
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// Whether the caller speaks Anthropic's protocol.
fn speaks_messages(request: &Request) -> bool {
    let path = request.uri().path();
    path.starts_with(MESSAGES) || (path.starts_with(MODELS) && request.headers().contains_key(VERSION_HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::config::Config;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    async fn panics() -> &'static str {
        panic!("a secret in a panic")
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_that_tells_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let app = App::open(Config::default(), directory.path()).expect("an app").into();
        let gateway = Gateway { app, cut: tokio::sync::watch::channel(false).1 };
        let router = Router::new().route("/x", get(panics)).layer(from_fn_with_state(gateway.clone(), wrap)).with_state(gateway);
        let request = Request::builder().uri("/x").body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), Code::INTERNAL.status);
        assert!(response.headers().contains_key(HEADER));
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.expect("a body");
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("internal_error") && !text.contains("secret"), "{text}");
    }
}
