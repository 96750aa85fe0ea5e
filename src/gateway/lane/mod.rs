//! The fast lane: chat requests, read from their socket and answered on it by one task, without a framework in between. It knows one
//! method, one path and one framing ([`head`]); from the first request of a connection that is anything else, hyper has the
//! connection. What a chat request means is the same on both: the lane has the same key check, the same handler, the same envelope.

mod head;
mod write;

use super::entry::Entry;
use super::error::ApiError;
use super::middleware::{access, envelope};
use super::openai::{self, azure};
use super::{Gateway, drain};
use crate::access::Role;
use crate::providers::Protocol;
use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use head::Head;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io::{Cursor, Error, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

const READ_BYTES: usize = 8 << 10;
/// What a client may send ahead while its request is answered.
const AHEAD_BYTES: usize = 64 << 10;
/// How long a body may be silent, and take in all.
const BODY_SILENCE: Duration = Duration::from_secs(30);
const BODY_TIME: Duration = Duration::from_secs(300);

/// What a connection does now, for the orderly end.
#[derive(Debug, Default)]
pub(super) struct Doing {
    what: AtomicU8,
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const ANSWERING: u8 = 1;
/// Answering, and to be closed after it.
const LAST: u8 = 2;

impl Doing {
    /// Whether the connection may be closed now; otherwise it closes after its reply.
    pub(super) fn stop(&self) -> bool {
        self.what.swap(LAST, Ordering::Relaxed) == WAITING
    }

    /// Remembers how the connection is woken.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Has the connection look around.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// A request has come. False when the connection was told to stop.
    fn begin(&self) -> bool {
        self.what.compare_exchange(WAITING, ANSWERING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn is_last(&self) -> bool {
        self.what.load(Ordering::Relaxed) == LAST
    }

    /// The reply is written. False when the connection is to be closed.
    fn end(&self) -> bool {
        self.what.compare_exchange(ANSWERING, WAITING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// What connections share.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) gateway: Gateway,
    /// Everything that is not the lane's.
    pub(super) router: Router,
    /// Becomes true when no further request is taken.
    pub(super) stopped: watch::Receiver<bool>,
}

/// Serves a connection to its end.
pub(super) async fn serve(mut stream: TcpStream, lane: Lane, doing: &Doing) -> Result<(), Error> {
    let mut buffer = BytesMut::new();
    loop {
        // For the whole head: a byte now and then keeps no connection alive.
        let due = Instant::now() + Duration::from_secs(lane.gateway.app.config().server.head_timeout_s);
        let chat = loop {
            match head::look(&buffer) {
                Head::Chat(chat) if chat.body <= lane.gateway.app.config().server.max_body_bytes => break chat,
                Head::Chat(_) | Head::Other => return Box::pin(hand_over(stream, buffer, lane, doing)).await,
                Head::Partial => {
                    buffer.reserve(READ_BYTES);
                    let read = tokio::time::timeout_at(due, stream.read_buf(&mut buffer)).await;
                    if read.map_err(|_| ErrorKind::TimedOut)?? == 0 {
                        return Ok(());
                    }
                }
            }
        };
        if !doing.begin() {
            return Ok(());
        }
        tracing::trace!(bytes = chat.body, "a chat request in the lane");
        drop(buffer.split_to(chat.length));
        read_body(&mut stream, &mut buffer, chat.body).await?;
        let body = buffer.split_to(chat.body).freeze();
        // Pinned where it was made: futures of this size are not moved for nothing.
        let answering = pin!(async {
            let answering = pin!(answer(&lane.gateway, chat.headers, body));
            let response = drain::unless_cut(answering, &lane.gateway.app.metrics.serving).await;
            write::reply(&stream, response, doing.is_last()).await
        });
        match until_gone(&stream, &mut buffer, answering).await {
            Some(written) => written?,
            None => return Ok(()),
        }
        if !doing.end() {
            return Ok(());
        }
    }
}

/// A chat request's answer, as the route table gives it.
async fn answer(gateway: &Gateway, headers: HeaderMap, body: Bytes) -> Response {
    envelope::around(gateway, head::PATH, Protocol::Chat, async |id| {
        let caller = match access::caller(gateway, &headers, Role::App).await {
            Ok(caller) => caller,
            Err(failure) => return ApiError::from(failure).into_response(),
        };
        let limits = access::Left::of(&caller);
        let entry = Entry::whole(gateway, (caller, id), headers, body);
        limits.told(openai::chat::answer(entry).await.into_response())
    })
    .await
}

/// Gives the connection to hyper, with what was read of it.
async fn hand_over(stream: TcpStream, read: BytesMut, lane: Lane, doing: &Doing) -> Result<(), Error> {
    // From now on hyper knows what the connection does.
    if !doing.begin() {
        return Ok(());
    }
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(read).chain(reader), writer));
    let mut builder = hyper::server::conn::http1::Builder::new();
    let time = Duration::from_secs(lane.gateway.app.config().server.head_timeout_s);
    builder.timer(TokioTimer::new()).header_read_timeout(time);
    let Lane { gateway, router, mut stopped } = lane;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (router, serving) = (router.clone(), &gateway.app.metrics.serving);
        async move {
            let routed = router.oneshot(azure::rewrite(request.map(Body::new)));
            let answering = pin!(async { routed.await.unwrap_or_else(|never| match never {}) });
            Ok::<_, Infallible>(drain::unless_cut(answering, serving).await)
        }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(Error::other),
        // A server that is gone without a word is stopped, too.
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(Error::other)
}

async fn read_body(stream: &mut TcpStream, buffer: &mut BytesMut, length: usize) -> Result<(), Error> {
    if buffer.len() >= length {
        return Ok(());
    }
    let reading = async {
        while buffer.len() < length {
            buffer.reserve(length - buffer.len());
            let read = tokio::time::timeout(BODY_SILENCE, stream.read_buf(buffer)).await;
            if read.map_err(|_| ErrorKind::TimedOut)?? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    };
    tokio::time::timeout(BODY_TIME, reading).await.map_err(|_| ErrorKind::TimedOut)?
}

/// The work's result; none when the client went away first, which drops the work.
async fn until_gone<T>(stream: &TcpStream, buffer: &mut BytesMut, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let gone = async {
        while buffer.len() < AHEAD_BYTES {
            if stream.readable().await.is_err() {
                return;
            }
            // Not before: as a rule nothing comes, and the room that the request took is used for the next one.
            buffer.reserve(READ_BYTES);
            match stream.try_read_buf(buffer) {
                Ok(0) => return,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        done = &mut work => Some(done),
        () = gone => None,
    }
}
