//! The gateway as an endpoint for batches: a line is a request to the same table, with the caller known already.

use super::middleware::RequestId;
use super::{Gateway, routes};
use crate::jobs::batch::{Endpoint, LineReply, LineRequest};
use crate::types::{Code, Failure};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use axum::response::Response;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tower::ServiceExt;

/// Largest reply that is kept.
const MAX_REPLY_BYTES: usize = 64 << 20;

/// The table without the key check.
pub struct InProcess {
    router: Router,
}

impl InProcess {
    /// Over the same parts as the server.
    pub fn new(gateway: Gateway) -> Self {
        InProcess { router: routes::trusted(gateway) }
    }
}

impl Endpoint for InProcess {
    fn answer(&self, request: LineRequest) -> BoxFuture<'static, LineReply> {
        let router = self.router.clone();
        Box::pin(async move {
            let mut asked = Request::post(request.path)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(request.body))
                .expect("a path of the table and a header are a request");
            asked.extensions_mut().insert(request.caller);
            let Ok(response) = router.oneshot(asked).await;
            read(response).await
        })
    }
}

async fn read(response: Response) -> LineReply {
    let (parts, body) = response.into_parts();
    let header = |name: &header::HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let request_id = header(&RequestId::HEADER).unwrap_or_default().to_string();
    let retry_after_s = header(&header::RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
    let read = axum::body::to_bytes(body, MAX_REPLY_BYTES).await;
    let value =
        read.map_err(|error| error.to_string()).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string()));
    match value {
        Ok(body) => LineReply { status: parts.status.as_u16(), request_id, retry_after_s, body },
        Err(error) => {
            let failure = Failure::new(Code::INTERNAL, format!("the reply could not be read: {error}"));
            LineReply { status: failure.code().status, request_id, retry_after_s: None, body: failure.to_json() }
        }
    }
}
