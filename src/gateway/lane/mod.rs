//! The fast lane: chat requests, read from their socket and answered on it by one task, without a framework in between. It knows one
//! method, one path and one framing ([`head`]); from the first request of a connection that is anything else, hyper has the
//! connection. What a chat request means is the same on both: the lane has the same key check, the same handler, the same envelope.

mod body;
mod head;
mod write;

use super::entry::Entry;
use super::error::ApiError;
use super::middleware::{access, envelope};
use super::openai::{self, azure};
use super::{Gateway, drain};
use crate::access::{Caller, Role};
use crate::providers::Protocol;
use crate::types::Failure;
use crate::types::soon::{Waits, soon};
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
use std::future::poll_fn;
use std::io::{Cursor, Error, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

const READ_BYTES: usize = 8 << 10;
/// What a client may send ahead while its request is answered.
const AHEAD_BYTES: usize = 64 << 10;
/// How often one who sent that much is looked at: has he left?
const LOOK: Duration = Duration::from_secs(1);
/// For so long a connection that is to end waits for a request that is on its way.
const LAST_LOOK: Duration = Duration::from_millis(100);

thread_local!(static CALLERS: Waits = const { Waits::new() });

/// What a connection does now, for the orderly end.
#[derive(Debug, Default)]
pub(super) struct Doing {
    what: AtomicU8,
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const ANSWERING: u8 = 1;
/// To be closed: after the request that is being answered, or that is there already.
const LAST: u8 = 2;

impl Doing {
    /// No request is answered after this one, or after the one that is on its way.
    pub(super) fn stop(&self) {
        self.what.store(LAST, Ordering::Relaxed);
        self.wake();
    }

    /// Remembers how the connection is woken.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Has the connection look around.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// A request has come. A last one stays the last.
    fn begin(&self) {
        let _ = self.what.compare_exchange(WAITING, ANSWERING, Ordering::Relaxed, Ordering::Relaxed);
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
                    if read_on(&mut stream, &mut buffer, due, doing).await? == 0 {
                        return Ok(());
                    }
                }
            }
        };
        doing.begin();
        tracing::trace!(bytes = chat.body, "a chat request in the lane");
        drop(buffer.split_to(chat.length));
        // As a rule it came with its head.
        let given = match buffer.len() >= chat.body {
            true => Given { caller: None, body: Ok(buffer.split_to(chat.body).freeze()) },
            false => Box::pin(body::arrive(&mut stream, &mut buffer, &lane.gateway, &chat)).await,
        };
        let is_left = given.is_left();
        let written = {
            // Pinned where it was made: futures of this size are not moved for nothing.
            let answering = pin!(async {
                let response = {
                    let answering = pin!(answer(&lane.gateway, chat.headers, given));
                    answering.await
                };
                write::reply(&stream, response, is_left || doing.is_last()).await
            });
            until_gone(&stream, &mut buffer, answering).await
        };
        match written {
            Some(written) => written?,
            None => return Ok(()),
        }
        if is_left {
            Box::pin(body::leave(&mut stream, &mut buffer)).await;
            return Ok(());
        }
        if !doing.end() {
            return Ok(());
        }
    }
}

/// Reads more of a head; 0 where nothing more comes, or none is waited for.
async fn read_on(stream: &mut TcpStream, buffer: &mut BytesMut, due: Instant, doing: &Doing) -> Result<usize, Error> {
    buffer.reserve(READ_BYTES);
    let mut reading = pin!(tokio::time::timeout_at(due, stream.read_buf(buffer)));
    let read = poll_fn(|context| match reading.as_mut().poll(context) {
        Poll::Pending if doing.is_last() => Poll::Ready(None),
        polled => polled.map(Some),
    });
    let read = match soon(&CALLERS, read).await {
        Some(read) => read,
        None => match tokio::time::timeout(LAST_LOOK, reading).await {
            Ok(read) => read,
            Err(_) => return Ok(0),
        },
    };
    read.map_err(|_| ErrorKind::TimedOut)?
}

/// What a request brought besides its head.
struct Given {
    /// Who asks, where that was looked up already.
    caller: Option<Box<Result<Caller, Failure>>>,
    body: Result<Bytes, Failure>,
}

impl Given {
    /// Whether something of the request was not read: nothing can follow it.
    fn is_left(&self) -> bool {
        self.body.is_err() || self.caller.as_ref().is_some_and(|caller| caller.is_err())
    }
}

/// A chat request's answer, as the route table gives it.
async fn answer(gateway: &Gateway, headers: HeaderMap, given: Given) -> Response {
    envelope::around(gateway, head::PATH, Protocol::Chat, async |id| {
        let answering = pin!(async {
            let caller = match given.caller {
                Some(known) => *known,
                None => access::caller(gateway, &headers, Role::App).await,
            };
            let caller = match caller {
                Ok(caller) => caller,
                Err(failure) => return ApiError::from(failure).into_response(),
            };
            let limits = access::Left::of(&caller);
            let answered = match given.body {
                Ok(body) => openai::chat::answer(Entry::whole(gateway, (caller, id), headers, body)).await,
                Err(failure) => Err(Entry::whole(gateway, (caller, id), headers, Bytes::new()).refuse(failure).await),
            };
            limits.told(answered.into_response())
        });
        drain::unless_cut(answering, &gateway.app.metrics.serving).await
    })
    .await
}

/// Gives the connection to hyper, with what was read of it.
async fn hand_over(stream: TcpStream, read: BytesMut, lane: Lane, doing: &Doing) -> Result<(), Error> {
    // From now on hyper knows what the connection does.
    doing.begin();
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(read).chain(reader), writer));
    let mut builder = hyper::server::conn::http1::Builder::new();
    let time = Duration::from_secs(lane.gateway.app.config().server.head_timeout_s);
    builder.timer(TokioTimer::new()).header_read_timeout(time);
    let Lane { router, mut stopped, .. } = lane;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let routed = router.clone().oneshot(azure::rewrite(request.map(Body::new)));
        async move { Ok::<_, Infallible>(routed.await.unwrap_or_else(|never| match never {})) }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        // What is there already is read before anything is stopped.
        biased;
        ended = connection.as_mut() => return ended.map_err(Error::other),
        // A server that is gone without a word is stopped, too.
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(Error::other)
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
        // What lies there is not read, but one who leaves is seen: where the system had room for all that he sent.
        while stream.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        done = &mut work => Some(done),
        () = gone => None,
    }
}
