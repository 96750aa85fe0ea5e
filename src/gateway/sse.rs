//! A streamed answer as server-sent events, in whatever protocol an [`Encode`] writes. Events go out as they come; silence is filled
//! with keep-alives, before the first token too; an error in the middle is the protocol's error event, which ends the stream. When
//! the client goes away the body is dropped, and with it the call.

use super::Gateway;
use super::answer::tell;
use super::error::ApiError;
use crate::inference::{AnswerStream, Ask};
use crate::providers::Piece;
use crate::types::chat::ChatRequest;
use crate::types::{Code, Failure};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, unfold};
use futures_util::{FutureExt, StreamExt};
use hyper::body::Frame;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Events that have come are sent together up to about so many bytes.
const GATHERED_BYTES: usize = 16 << 10;

/// Writes the events of one protocol.
pub trait Encode: Send + 'static {
    /// What a piece adds; empty when nothing.
    fn piece(&mut self, piece: Piece) -> String;

    /// The last events of a stream that ended well.
    fn end(&mut self, stream: &AnswerStream) -> String;

    /// The event of an error that ends the stream.
    fn failed(&mut self, failure: &Failure) -> String;

    /// What fills silence; a comment, which every reader skips.
    fn keep_alive(&self) -> &'static str {
        ": keep-alive\n\n"
    }
}

/// A stream on its way.
pub(super) type Opening = BoxFuture<'static, Result<AnswerStream, Failure>>;

enum State {
    /// The provider has not sent anything yet.
    Opening(Opening),
    Open(Box<AnswerStream>),
    Over,
}

struct Events<E> {
    state: State,
    encoder: E,
    cut: watch::Receiver<bool>,
    keep_alive: Duration,
    /// When silence is filled: only what is sent puts it off, not what comes and makes no bytes.
    due: Instant,
    /// Whether an event was sent: the first one leaves alone, because somebody waits for it.
    begun: bool,
}

/// Opens the stream. While nothing has been sent an error has its own status; once silence had to be filled it is an event.
pub(super) async fn open(gateway: &Gateway, ask: Ask, request: ChatRequest, encoder: impl Encode) -> Result<Response, ApiError> {
    let inference = gateway.app.inference.clone();
    open_with(gateway, Box::pin(async move { inference.answer_stream(ask, request).await }), encoder).await
}

/// As [`open`], of a stream that is on its way.
pub(super) async fn open_with(gateway: &Gateway, mut opening: Opening, encoder: impl Encode) -> Result<Response, ApiError> {
    let keep_alive = Duration::from_secs(gateway.app.config().server.keep_alive_s);
    let opened = tokio::time::timeout(keep_alive, &mut opening).await;
    let (state, told) = match opened {
        Ok(stream) => {
            let stream = stream?;
            let told = stream.told.clone();
            (State::Open(Box::new(stream)), Some(told))
        }
        Err(_) => (State::Opening(opening), None),
    };
    let response = reply(Events { state, encoder, cut: gateway.cut.clone(), keep_alive, due: Instant::now() + keep_alive, begun: false });
    Ok(match told {
        Some(told) => tell(response, &told),
        None => response,
    })
}

fn reply<E: Encode>(events: Events<E>) -> Response {
    let late = matches!(events.state, State::Opening(_));
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let frames = unfold((Box::new(events), late, ended), |(mut events, late, ended)| async move {
        // What was waited for so far is filled at once.
        let bytes = if late { Bytes::from_static(events.encoder.keep_alive().as_bytes()) } else { events.next().await? };
        ended.store(matches!(events.state, State::Over), Ordering::Relaxed);
        Some((Ok::<_, Infallible>(Frame::data(bytes)), (events, false, ended)))
    });
    let body = Body::new(Frames { frames: frames.boxed(), over });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

/// A body that knows, once its last bytes are taken, that they were: they leave together with the mark of its end.
struct Frames {
    frames: BoxStream<'static, Result<Frame<Bytes>, Infallible>>,
    over: Arc<AtomicBool>,
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_next_unpin(context)
    }

    fn is_end_stream(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// What happened next in a stream.
enum Next {
    Opened(Result<Box<AnswerStream>, Failure>),
    Came(Option<Result<Box<Piece>, Failure>>),
    Silent,
    Cut,
}

impl<E: Encode> Events<E> {
    /// The next bytes that are not empty.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if matches!(self.state, State::Over) {
                return None;
            }
            let text = match self.wait().await {
                Next::Silent => self.encoder.keep_alive().to_string(),
                Next::Opened(Ok(stream)) => {
                    self.state = State::Open(stream);
                    continue;
                }
                Next::Came(Some(Ok(piece))) => self.encoder.piece(*piece),
                Next::Opened(Err(failure)) | Next::Came(Some(Err(failure))) => self.fail(failure),
                Next::Cut => {
                    let failure = Failure::new(Code::UNAVAILABLE, "the server is shutting down");
                    let failure = if let State::Open(stream) = &mut self.state { stream.fail(failure) } else { failure };
                    self.fail(failure)
                }
                Next::Came(None) => self.ended(),
            };
            let text = if self.begun { self.gather(text) } else { text };
            let silent = text.is_empty() && !matches!(self.state, State::Over) && Instant::now() >= self.due;
            let text = if silent { self.encoder.keep_alive().to_string() } else { text };
            if !text.is_empty() {
                self.begun = true;
                self.due = Instant::now() + self.keep_alive;
                return Some(text.into());
            }
        }
    }

    /// Adds what has come already, without waiting for more: events that came together leave together.
    fn gather(&mut self, mut text: String) -> String {
        while !text.is_empty() && text.len() < GATHERED_BYTES {
            let State::Open(stream) = &mut self.state else { break };
            let Some(came) = stream.next().now_or_never() else { break };
            let more = match came {
                Some(Ok(piece)) => self.encoder.piece(piece),
                Some(Err(failure)) => self.fail(failure),
                None => self.ended(),
            };
            text.push_str(&more);
        }
        text
    }

    fn ended(&mut self) -> String {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Open(stream) => self.encoder.end(&stream),
            _ => String::new(),
        }
    }

    async fn wait(&mut self) -> Next {
        if *self.cut.borrow() {
            return Next::Cut;
        }
        let state = &mut self.state;
        let came = async {
            match state {
                State::Opening(opening) => Next::Opened(opening.await.map(Box::new)),
                State::Open(stream) => Next::Came(stream.next().await.map(|piece| piece.map(Box::new))),
                State::Over => Next::Came(None),
            }
        };
        tokio::select! {
            biased;
            cut = self.cut.wait_for(|cut| *cut) => match cut {
                Ok(_) => Next::Cut,
                // The server is gone without a word: nobody waits for this stream.
                Err(_) => Next::Cut,
            },
            came = tokio::time::timeout_at(self.due, came) => came.unwrap_or(Next::Silent),
        }
    }

    fn fail(&mut self, failure: Failure) -> String {
        self.state = State::Over;
        self.encoder.failed(&failure)
    }
}

/// `data: {value}`.
pub fn data(value: &impl Serialize) -> String {
    // JSON has no raw line feeds, so that one line holds it.
    format!("data: {}\n\n", json(value))
}

/// `event: {kind}` and `data: {value}`.
pub fn event(kind: &str, value: &impl Serialize) -> String {
    format!("event: {kind}\ndata: {}\n\n", json(value))
}

/// `event:` and `data:` of a text that is JSON already; none when it does not fit on one line.
pub fn forwarded(kind: Option<&str>, text: &str) -> Option<String> {
    let fits = memchr::memchr2(b'\n', b'\r', text.as_bytes()).is_none() && kind.is_none_or(|kind| !kind.contains(['\n', '\r']));
    fits.then(|| match kind {
        Some(kind) => format!("event: {kind}\ndata: {text}\n\n"),
        None => format!("data: {text}\n\n"),
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("wire bodies are strings, maps and finite numbers: serialising cannot fail")
}
