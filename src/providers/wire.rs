//! HTTP/1.1 (RFC 9112) to a server that is spoken to in the clear: one task reads and writes its socket itself, so that a call costs
//! little more than its system calls. Encrypted connections, proxies and everything else are `reqwest`'s, in [`http`](super::http).
//!
//! Connections are kept for the thread that used them last, as a rule of its own event loop. A request is written once: what fails
//! after that is the caller's to try again.

use crate::types::shard::{SHARDS, of_thread};
use crate::types::soon::{Waits, soon};
use bytes::{Buf, Bytes, BytesMut};
use httparse::{EMPTY_HEADER, Status};
use reqwest::header::{HeaderMap, HeaderName};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_TRAILER_BYTES: usize = 16 << 10;
/// What is read at once; whole replies of a known length are read in larger pieces.
const READ_BYTES: usize = 8 << 10;
/// How long a connection may wait for its next request: shorter than servers commonly wait before they close it.
const IDLE: Duration = Duration::from_secs(30);
const MAX_IDLE: usize = 256;
/// How long a reply is waited for where the request could not be written: it is there already, or there is none.
const EARLY_REPLY: Duration = Duration::from_millis(500);

thread_local!(static HEADS: Waits = const { Waits::new() });

/// One server.
pub(super) struct Wire {
    host: String,
    port: u16,
    /// Where its paths begin.
    prefix: String,
    /// Lines that every request has.
    fixed: String,
    connect_timeout: Duration,
    idle: Arc<Idle>,
}

/// Connections that wait for a request, by the thread that used them.
struct Idle([Mutex<VecDeque<Waiting>>; SHARDS]);

struct Waiting {
    connection: Connection,
    /// What is still to come of the reply that was read last: as a rule its last chunk, which says nothing.
    rest: Rest,
    since: Instant,
}

struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

/// What a request could not be sent for.
#[derive(Debug)]
pub(super) enum Failed {
    /// No connection within the time.
    ConnectTimeout,
    /// Anything else.
    Io(Error),
}

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Done,
    Length(u64),
    UntilClose,
    /// A chunk's size is next.
    ChunkSize,
    /// So many bytes of a chunk, and the line end after it.
    Chunk(u64),
    ChunkEnd,
    Trailer,
}

/// A reply whose head was read. Dropping it before its end closes the connection, which is how a server is told to stop.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    connection: Option<Connection>,
    rest: Rest,
    keep: Option<Arc<Idle>>,
}

impl Wire {
    /// A server by the base URL of its API; none where `reqwest` is needed.
    pub(super) fn new(base_url: &str, fixed: &HeaderMap, connect_timeout: Duration) -> Option<Self> {
        let url = reqwest::Url::parse(base_url).ok().filter(|url| url.scheme() == "http")?;
        let host = url.host_str()?;
        let authority = url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        let mut lines = format!("host: {authority}\r\naccept: */*\r\n");
        for (name, value) in fixed {
            lines.push_str(&format!("{name}: {}\r\n", value.to_str().ok()?));
        }
        Some(Wire {
            host: host.trim_matches(['[', ']']).to_string(),
            port: url.port_or_known_default()?,
            prefix: url.path().trim_end_matches('/').to_string(),
            fixed: lines,
            connect_timeout,
            idle: Arc::new(Idle(std::array::from_fn(|_| Mutex::default()))),
        })
    }

    /// Posts a JSON body to a path below the base URL; returns when the reply's head has arrived.
    pub(super) async fn post(&self, path: &str, headers: &HeaderMap, body: &[Bytes; 4]) -> Result<Response, Failed> {
        let length: usize = body.iter().map(Bytes::len).sum();
        let mut head = Vec::with_capacity(512);
        for part in ["POST ", &self.prefix, path, " HTTP/1.1\r\n", &self.fixed, "content-type: application/json\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"content-length: ");
        write!(head, "{length}\r\n\r\n").map_err(Failed::Io)?;
        let mut connection = match self.idle.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let written = connection.write(&head, body).await;
        tracing::trace!(host = self.host, port = self.port, path, bytes = length, whole = written.is_ok(), "request written");
        let (status, headers, rest, reusable) = match written {
            Ok(()) => soon(&HEADS, connection.read_head()).await.map_err(Failed::Io)?,
            Err(error) => connection.early_head(error).await.map_err(Failed::Io)?,
        };
        tracing::trace!(host = self.host, port = self.port, status, reusable, "head of the reply read");
        let keep = reusable.then(|| self.idle.clone());
        Ok(Response { status, headers, connection: Some(connection), rest, keep })
    }

    async fn connect(&self) -> Result<Connection, Failed> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(self.connect_timeout, connecting).await.map_err(|_| Failed::ConnectTimeout)?;
        let stream = stream.map_err(Failed::Io)?;
        stream.set_nodelay(true).map_err(Failed::Io)?;
        tracing::trace!(host = self.host, port = self.port, "connected");
        Ok(Connection { stream, buffer: BytesMut::new() })
    }
}

impl Idle {
    /// A connection that still stands.
    fn take(&self) -> Option<Connection> {
        loop {
            let mut waiting = self.0[of_thread()].lock().unwrap_or_else(PoisonError::into_inner).pop_back()?;
            if waiting.since.elapsed() < IDLE && waiting.connection.is_ready(waiting.rest) {
                return Some(waiting.connection);
            }
        }
    }

    fn put(&self, connection: Connection, rest: Rest) {
        let waiting = Waiting { connection, rest, since: Instant::now() };
        let mut shard = self.0[of_thread()].lock().unwrap_or_else(PoisonError::into_inner);
        while shard.len() >= MAX_IDLE || shard.front().is_some_and(|oldest| oldest.since.elapsed() >= IDLE) {
            shard.pop_front();
        }
        shard.push_back(waiting);
    }
}

impl Connection {
    async fn write(&mut self, head: &[u8], body: &[Bytes; 4]) -> Result<(), Error> {
        let mut slices = [head, &body[0], &body[1], &body[2], &body[3]].map(IoSlice::new);
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match self.stream.write_vectored(left).await? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => IoSlice::advance_slices(&mut left, written),
            }
        }
        Ok(())
    }

    async fn read(&mut self, at_least: usize) -> Result<usize, Error> {
        self.buffer.reserve(at_least);
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn read_head(&mut self) -> Result<Head, Error> {
        loop {
            if let Some((length, head)) = parse_head(&self.buffer)? {
                self.buffer.advance(length);
                // What comes before the answer, such as 103 (Early Hints).
                if (100..200).contains(&head.0) && head.0 != 101 {
                    continue;
                }
                return Ok(head);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(invalid("the head of the reply is too large"));
            }
            if self.read(READ_BYTES).await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed before the reply"));
            }
        }
    }

    /// The head of a reply from one who did not read the whole request, as servers do with what they refuse; what went wrong with writing
    /// where there is none.
    async fn early_head(&mut self, error: Error) -> Result<Head, Error> {
        match tokio::time::timeout(EARLY_REPLY, self.read_head()).await {
            Ok(Ok((status, headers, rest, _))) => Ok((status, headers, rest, false)),
            Ok(Err(_)) | Err(_) => Err(error),
        }
    }

    /// Whether a next request may be written: the reply before is over, and nothing else came, no end either.
    fn is_ready(&mut self, mut rest: Rest) -> bool {
        let mut room = [0; 512];
        while rest != Rest::Done || self.buffer.is_empty() {
            if rest != Rest::Done {
                match decode(&mut rest, &mut self.buffer) {
                    // Content that nobody asked for: the reply was cut.
                    Ok(Some(_)) | Err(_) => return false,
                    Ok(None) if rest == Rest::Done => continue,
                    Ok(None) => {}
                }
            }
            match self.stream.try_read(&mut room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return rest == Rest::Done,
                Ok(0) | Err(_) => return false,
                Ok(read) => self.buffer.extend_from_slice(&room[..read]),
            }
        }
        false
    }
}

impl Response {
    /// The next bytes of the body; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(None) };
            if let Some(bytes) = decode(&mut self.rest, &mut connection.buffer)? {
                return Ok(Some(bytes));
            }
            if self.rest == Rest::Done {
                self.release();
                return Ok(None);
            }
            let wanted = match self.rest {
                Rest::Length(left) => usize::try_from(left).unwrap_or(usize::MAX).clamp(READ_BYTES, 1 << 18),
                _ => READ_BYTES,
            };
            if connection.read(wanted).await? == 0 {
                self.connection = None;
                return match std::mem::replace(&mut self.rest, Rest::Done) {
                    Rest::UntilClose => Ok(None),
                    _ => Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed within the reply")),
                };
            }
        }
    }

    /// Bytes of the body, where its length is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self.rest {
            Rest::Length(length) => Some(length),
            Rest::Done => Some(0),
            _ => None,
        }
    }

    /// The reader has what it came for, though the body's end may not have come yet: an event stream says itself when it is over.
    pub(super) fn finish(&mut self) {
        if matches!(self.rest, Rest::ChunkSize | Rest::ChunkEnd | Rest::Trailer | Rest::Done) {
            self.release();
        }
        self.connection = None;
        self.rest = Rest::Done;
    }

    fn release(&mut self) {
        if let (Some(connection), Some(idle)) = (self.connection.take(), self.keep.take()) {
            idle.put(connection, self.rest);
        }
    }
}

/// Takes what is there of the body. None when more must be read, or at the end.
fn decode(rest: &mut Rest, buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    loop {
        match *rest {
            Rest::Done => return Ok(None),
            Rest::Length(0) => *rest = Rest::Done,
            Rest::Length(left) | Rest::Chunk(left) => {
                let there = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if there == 0 {
                    return Ok(None);
                }
                let left = left - there as u64;
                *rest = match rest {
                    Rest::Chunk(_) if left == 0 => Rest::ChunkEnd,
                    Rest::Chunk(_) => Rest::Chunk(left),
                    _ if left == 0 => Rest::Done,
                    _ => Rest::Length(left),
                };
                return Ok(Some(buffer.split_to(there).freeze()));
            }
            Rest::UntilClose => return Ok((!buffer.is_empty()).then(|| buffer.split().freeze())),
            Rest::ChunkEnd => match buffer.get(..2) {
                None => return Ok(None),
                Some(b"\r\n") => {
                    buffer.advance(2);
                    *rest = Rest::ChunkSize;
                }
                Some(_) => return Err(invalid("a chunk is longer than it says")),
            },
            Rest::ChunkSize => match httparse::parse_chunk_size(buffer) {
                Ok(Status::Complete((length, size))) => {
                    buffer.advance(length);
                    *rest = if size == 0 { Rest::Trailer } else { Rest::Chunk(size) };
                }
                Ok(Status::Partial) if buffer.len() > MAX_TRAILER_BYTES => return Err(invalid("the size of a chunk is too long")),
                Ok(Status::Partial) => return Ok(None),
                Err(_) => return Err(invalid("the size of a chunk is not a number")),
            },
            Rest::Trailer => {
                let Some(line) = buffer.iter().position(|byte| *byte == b'\n') else {
                    return if buffer.len() > MAX_TRAILER_BYTES { Err(invalid("the trailer is too long")) } else { Ok(None) };
                };
                let is_empty = matches!(&buffer[..line], b"" | b"\r");
                buffer.advance(line + 1);
                if is_empty {
                    *rest = Rest::Done;
                }
            }
        }
    }
}

type Head = (u16, HeaderMap, Rest, bool);

/// A reply's head and its length in bytes; none when more must be read.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, Error> {
    let mut room = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut room);
    let length = match parsed.parse(bytes).map_err(|error| invalid(format!("the reply is not HTTP: {error}")))? {
        Status::Complete(length) => length,
        Status::Partial => return Ok(None),
    };
    let status = parsed.code.unwrap_or_default();
    let mut headers = HeaderMap::with_capacity(4);
    let (mut content_length, mut chunked, mut encoded, mut close) = (None, false, false, parsed.version != Some(1));
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let text = || std::str::from_utf8(header.value).unwrap_or_default().trim();
        if is("content-length") {
            let given = text().bytes().all(|byte| byte.is_ascii_digit()).then(|| text().parse::<u64>().ok()).flatten();
            let given = given.ok_or_else(|| invalid("the length of the reply is not a number"))?;
            if content_length.replace(given).is_some_and(|before| before != given) {
                return Err(invalid("the reply has two lengths"));
            }
        } else if is("transfer-encoding") {
            encoded = true;
            chunked = text().rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        } else if is("connection") {
            close |= text().split(',').any(|option| option.trim().eq_ignore_ascii_case("close"));
        } else if is("content-type") || is("retry-after") || is("retry-after-ms") {
            // All that is read of a head.
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(Error::other)?;
            headers.insert(name, header.value.try_into().map_err(Error::other)?);
        }
    }
    let rest = match content_length {
        _ if matches!(status, 204 | 304) => Rest::Done,
        _ if chunked => Rest::ChunkSize,
        None => Rest::UntilClose,
        _ if encoded => Rest::UntilClose,
        Some(0) => Rest::Done,
        Some(length) => Rest::Length(length),
    };
    let reusable = !close && rest != Rest::UntilClose && !(encoded && content_length.is_some());
    Ok(Some((length, (status, headers, rest, reusable))))
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a decoder makes of bytes that come in pieces of `size`.
    fn decoded(head: &str, body: &[u8], size: usize) -> Result<(Vec<u8>, Rest), Error> {
        let (_, (_, _, mut rest, _)) = parse_head(head.as_bytes())?.expect("a whole head");
        let (mut buffer, mut text) = (BytesMut::new(), Vec::new());
        for piece in body.chunks(size) {
            buffer.extend_from_slice(piece);
            while let Some(bytes) = decode(&mut rest, &mut buffer)? {
                text.extend_from_slice(&bytes);
            }
        }
        Ok((text, rest))
    }

    #[test]
    fn bodies_are_the_same_however_they_come() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n";
        let body = b"5\r\nhello\r\n6;x=\"y\"\r\n world\r\n0\r\nExpires: never\r\n\r\n";
        for size in 1..body.len() {
            assert_eq!(decoded(chunked, body, size).expect("decodes"), (b"hello world".to_vec(), Rest::Done), "{size}");
            let length = decoded("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", b"hello", size.min(5)).expect("decodes");
            assert_eq!(length, (b"hello".to_vec(), Rest::Done));
            let open = decoded("HTTP/1.0 200 OK\r\n\r\n", b"hello", size.min(5)).expect("decodes");
            assert_eq!(open, (b"hello".to_vec(), Rest::UntilClose));
        }
        assert_eq!(decoded(chunked, b"5\r\nhel", 3).expect("so far").1, Rest::Chunk(2));
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for body in ["x\r\n", "5\r\nhelloXX", "fffffffffffffffff\r\n"] {
            assert!(decoded(chunked, body.as_bytes(), 64).is_err(), "{body}");
        }
        for head in [
            "SMTP ready\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        ] {
            assert!(parse_head(head.as_bytes()).is_err(), "{head}");
        }
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-le").expect("so far").is_none());
    }

    #[test]
    fn a_connection_is_kept_only_where_the_next_reply_is_told_apart() {
        let reusable = |lines: &str| parse_head(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()).expect("a head").expect("whole").1.3;
        assert!(reusable("content-length: 1\r\n") && reusable("transfer-encoding: chunked\r\n"));
        for lines in ["", "content-length: 1\r\nconnection: close\r\n", "transfer-encoding: chunked\r\ncontent-length: 1\r\n"] {
            assert!(!reusable(lines), "{lines}");
        }
    }
}
