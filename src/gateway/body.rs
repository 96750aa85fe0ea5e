//! Request bodies, read whole: bounded in size and in time, and drained when they are refused, so that the client reads the reply
//! instead of a reset.

use crate::types::{Code, Failure};
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use serde_json::Value;
use std::time::Duration;

/// Silence that a client may keep while it sends a body.
const SILENCE: Duration = Duration::from_secs(30);
/// How much of a refused body is still read.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Reads a JSON body of at most `limit` bytes. Whatever the content type says, it is read as JSON: clients forget the header.
///
/// # Errors
/// [`Code::TOO_LARGE`]; [`Code::INVALID_REQUEST`] naming line and column when it is not JSON, or when it breaks off.
pub async fn read_json(headers: &HeaderMap, body: Body, limit: usize) -> Result<Value, Failure> {
    let bytes = read(headers, body, limit).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Failure::new(Code::INVALID_REQUEST, "the body is empty; a JSON object is expected"));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = format!("the body is not valid JSON at line {}, column {}: {error}", error.line(), error.column());
        Failure::new(Code::INVALID_REQUEST, message)
    })
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Failure> {
    let too_large = || {
        let failure = Failure::new(Code::TOO_LARGE, format!("the body is larger than {limit} bytes"));
        failure.with_hint("server.max_body_bytes in refit.toml sets the limit")
    };
    let mut stream = body.into_data_stream();
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        // A client that waits for "100 Continue" has sent nothing yet: there is nothing to drain.
        if !headers.contains_key(header::EXPECT) {
            drain(stream).await;
        }
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20));
    loop {
        let next = tokio::time::timeout(SILENCE, stream.next()).await;
        match next.map_err(|_| Failure::new(Code::INVALID_REQUEST, format!("the body stopped for {} s", SILENCE.as_secs())))? {
            None => return Ok(bytes.into()),
            Some(Err(error)) => return Err(Failure::new(Code::INVALID_REQUEST, format!("the body broke off: {error}"))),
            Some(Ok(piece)) if bytes.len() + piece.len() > limit => {
                drain(stream).await;
                return Err(too_large());
            }
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
        }
    }
}

async fn drain(mut stream: axum::body::BodyDataStream) {
    let rest = async {
        let mut read = 0;
        while let Some(Ok(piece)) = stream.next().await {
            read += piece.len();
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    // Past this time the client gets its reset.
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}
