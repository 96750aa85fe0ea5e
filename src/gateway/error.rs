//! Failures as HTTP replies: status and type from the error table, the OpenAI error body, `Retry-After` and `Allow`'s kin.

use super::anthropic;
use super::body::Json;
use super::headers;
use crate::types::{Code, Coded, Failure};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What a reply refuses, kept beside it so that the envelope can say it in the caller's protocol.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Row of the error table.
    pub code: Code,
    /// What failed and what to do.
    pub message: String,
}

/// The same refusal in Anthropic's protocol.
pub fn in_messages(mut response: Response, request_id: &str) -> Response {
    let Some(Refused { code, message }) = response.extensions_mut().remove::<Refused>() else { return response };
    let body = Json(anthropic::error_body(code, &message, Some(request_id))).into_response();
    let (mut parts, _) = response.into_parts();
    if code == Code::UPSTREAM_OVERLOADED {
        parts.status = StatusCode::from_u16(anthropic::OVERLOADED).unwrap_or(parts.status);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body.into_body())
}

/// A failure on its way out over HTTP.
#[derive(Debug)]
pub struct ApiError(pub Failure);

impl<E: Coded> From<E> for ApiError {
    fn from(error: E) -> Self {
        ApiError(error.into())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        ApiError(failure)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ApiError(failure) = self;
        let code = failure.code();
        let status = StatusCode::from_u16(code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            // As a quoted text: names that callers and providers choose could otherwise write lines of their own.
            tracing::warn!(code = code.name, failure = ?failure.to_string(), "request failed");
        }
        let mut response = (status, Json(failure.to_json())).into_response();
        response.extensions_mut().insert(Refused { code, message: failure.told() });
        if let Some(seconds) = failure.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(told) = failure.about() {
            headers::tell(response.headers_mut(), told);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failure_is_one_line_of_the_log() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let failure = Failure::new(Code::UPSTREAM, "m: oops\n2026-01-01T00:00:00Z  WARN forged \u{1b}[31m");
        tracing::subscriber::with_default(subscriber, || ApiError(failure).into_response());
        let text = String::from_utf8(lines.0.lock().expect("nobody panicked").clone()).expect("UTF-8");
        assert!(text.lines().count() == 1 && text.contains("oops") && !text.contains('\u{1b}'), "{text}");
    }
}
