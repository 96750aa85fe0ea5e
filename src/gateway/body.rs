//! Request bodies, read whole: bounded in size, in values and in time, and drained when they are refused, so that the client reads
//! the reply instead of a reset. And JSON as the body of a reply.

use crate::types::blocking::{LARGE_BYTES, blocking};
use crate::types::{Code, Failure, json};
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a client may take.
#[derive(Clone, Copy)]
pub struct Times {
    /// Silence between two pieces.
    pub silence: Duration,
    /// All of it: the largest body over a line of one megabit a second takes less.
    pub whole: Duration,
}

impl Times {
    /// What one is told who stopped sending.
    pub fn too_silent(self) -> Failure {
        Failure::new(Code::INVALID_REQUEST, format!("the body stopped for {} s", self.silence.as_secs()))
    }

    /// What one is told who took too long.
    pub fn too_long(self) -> Failure {
        Failure::new(Code::INVALID_REQUEST, format!("the body did not arrive within {} s", self.whole.as_secs()))
    }
}

/// What one is told whose body has no end.
pub fn broke_off(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::INVALID_REQUEST, format!("the body broke off: {error}"))
}

/// How long clients may take.
pub const TIMES: Times = Times { silence: Duration::from_secs(30), whole: Duration::from_secs(300) };
/// How much of a refused body is still read.
pub const DRAIN_BYTES: usize = 64 << 20;
/// For how long.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Reads a JSON body of at most `limit` bytes. Whatever the content type says, it is read as JSON: clients forget the header.
///
/// # Errors
/// [`Code::TOO_LARGE`]; [`Code::INVALID_REQUEST`] naming field, line and column when it is not JSON, or when it breaks off.
pub async fn read_json(headers: &HeaderMap, body: Body, limit: usize) -> Result<Value, Failure> {
    Ok(read_text(headers, body, limit).await?.0)
}

/// As [`read_json`], with the text that was read.
///
/// # Errors
/// As [`read_json`].
pub async fn read_text(headers: &HeaderMap, body: Body, limit: usize) -> Result<(Value, Bytes), Failure> {
    in_json(read(headers, body, limit, TIMES).await?).await
}

/// What [`read_text`] makes of a body that was read already. A large one is read on a thread where it holds nobody up.
///
/// # Errors
/// As [`read_json`], but for the size.
pub async fn in_json(bytes: Bytes) -> Result<(Value, Bytes), Failure> {
    if bytes.len() < LARGE_BYTES { as_json(bytes) } else { blocking(move || as_json(bytes)).await }
}

fn as_json(bytes: Bytes) -> Result<(Value, Bytes), Failure> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Failure::new(Code::INVALID_REQUEST, "the body is empty; a JSON object is expected"));
    }
    Ok((json::read(&bytes, json::MAX_VALUES).map_err(refused)?, bytes))
}

/// Reads a body of at most `limit` bytes as it is.
///
/// # Errors
/// As [`read_json`], but for what the body says.
pub async fn read_whole(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Failure> {
    read(headers, body, limit, TIMES).await
}

fn refused(fault: json::Fault) -> Failure {
    let json::Fault { what, line, column, path, too_many } = fault;
    let (code, message) = match too_many {
        true => (Code::TOO_LARGE, format!("the body holds more than {} values at line {line}, column {column}", json::MAX_VALUES)),
        false => (Code::INVALID_REQUEST, format!("the body is not valid JSON at line {line}, column {column}: {what}")),
    };
    match path {
        Some(path) => Failure::on(code, path.clone(), format!("{message} (in {path})")),
        None => Failure::new(code, message),
    }
}

async fn read(headers: &HeaderMap, body: Body, limit: usize, times: Times) -> Result<Bytes, Failure> {
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
    let begun = Instant::now();
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20));
    loop {
        let left = times.whole.saturating_sub(begun.elapsed());
        let next = tokio::time::timeout(times.silence.min(left), stream.next()).await;
        // Bytes that are there already are taken without a look at the clock.
        if begun.elapsed() >= times.whole {
            return Err(times.too_long());
        }
        match next.map_err(|_| times.too_silent())? {
            None => return Ok(bytes.into()),
            Some(Err(error)) => return Err(broke_off(error)),
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

/// JSON as the body of a reply.
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let text = serde_json::to_vec(&self.0).expect("wire bodies are strings, maps and finite numbers: serialising cannot fail");
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, stream};
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_large_body_is_read_by_another_thread() {
        let body = |bytes: usize| Bytes::from(format!("[{}1]", "1,".repeat(bytes / 2)));
        assert!(in_json(body(100)).now_or_never().is_some_and(|read| read.is_ok()));
        let large = body(LARGE_BYTES);
        let mut reading = Box::pin(in_json(large.clone()));
        assert!(reading.as_mut().now_or_never().is_none(), "others had to wait for it");
        assert_eq!(reading.await.expect("it is read").1, large);
    }

    #[tokio::test]
    async fn a_body_that_drips_has_an_end() {
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        let times = Times { silence: Duration::from_secs(5), whole: Duration::from_millis(100) };
        let read = tokio::time::timeout(Duration::from_secs(20), read(&HeaderMap::new(), Body::from_stream(drops), 1 << 20, times)).await;
        let failure = read.expect("it ends").expect_err("it is refused");
        assert!(failure.code() == Code::INVALID_REQUEST && failure.to_string().contains("did not arrive"), "{failure}");
    }
}
