//! A streamed answer as server-sent events: `data: {chunk}`, the usage chunk when it was asked for, `data: [DONE]`. An error in the
//! middle is one `data: {"error": …}`, which ends the stream. When the client goes away the body is dropped, and with it the call.

use crate::inference::AnswerStream;
use crate::types::{Code, Failure};
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;

/// Silence after which a comment is sent, so that no proxy in between thinks the stream dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Events {
    stream: AnswerStream,
    cut: watch::Receiver<bool>,
    wants_usage: bool,
    over: bool,
}

/// The reply that carries the stream.
pub fn reply(stream: AnswerStream, wants_usage: bool, cut: watch::Receiver<bool>) -> Response {
    let events = Events { stream, cut, wants_usage, over: false };
    let body = unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let cut = *self.cut.borrow();
        let next = tokio::select! {
            biased;
            _ = self.cut.wait_for(|cut| *cut), if !cut => None,
            next = tokio::time::timeout(KEEP_ALIVE, self.stream.next()), if !cut => Some(next),
            else => None,
        };
        match next {
            None => {
                self.over = true;
                let failure = self.stream.fail(Failure::new(Code::UNAVAILABLE, "the server is shutting down"));
                Some(data(&failure.to_json()).into())
            }
            Some(Err(_)) => Some(Bytes::from_static(b": keep-alive\n\n")),
            Some(Ok(Some(Ok(chunk)))) => Some(data(&chunk).into()),
            Some(Ok(Some(Err(failure)))) => {
                self.over = true;
                Some(data(&failure.to_json()).into())
            }
            Some(Ok(None)) => {
                self.over = true;
                let mut last = self.stream.usage_chunk().filter(|_| self.wants_usage).map(|chunk| data(&chunk)).unwrap_or_default();
                last.push_str("data: [DONE]\n\n");
                Some(last.into())
            }
        }
    }
}

fn data(value: &impl Serialize) -> String {
    // JSON has no raw line feeds, so that one line holds it.
    let json = serde_json::to_string(value).expect("wire bodies are strings, maps and finite numbers: serialising cannot fail");
    format!("data: {json}\n\n")
}
