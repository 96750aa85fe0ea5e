//! Replies, written to the socket: a body of known length in one system call with its head, any other in chunks (RFC 9112, 7.1).

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Response, header};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{Error, ErrorKind, IoSlice, Write};
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;

/// How long a client may take to read what is sent to it before its connection is closed.
const STALLED: Duration = Duration::from_secs(120);

/// Writes a reply; `close` says that the connection ends with it.
pub(super) async fn reply(stream: &TcpStream, response: Response<Body>, close: bool) -> Result<(), Error> {
    let (parts, mut body) = response.into_parts();
    let length = body.size_hint().exact();
    let mut head = Vec::with_capacity(512);
    let reason = parts.status.canonical_reason().unwrap_or("");
    write!(head, "HTTP/1.1 {} {reason}\r\n", parts.status.as_str())?;
    for (name, value) in &parts.headers {
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            line(&mut head, name.as_str(), value.as_bytes());
        }
    }
    if close {
        line(&mut head, "connection", b"close");
    }
    date(&mut head);
    if let Some(length) = length {
        write!(head, "content-length: {length}\r\n\r\n")?;
        let first = next(&mut body).await?.unwrap_or_default();
        all(stream, [&head, &first, b""]).await?;
        while let Some(bytes) = next(&mut body).await? {
            all(stream, [&bytes, b"", b""]).await?;
        }
        return Ok(());
    }
    head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
    // The head leaves with the first piece, which is there as a rule.
    while let Some(bytes) = next(&mut body).await? {
        if bytes.is_empty() {
            continue;
        }
        write!(head, "{:x}\r\n", bytes.len())?;
        if body.is_end_stream() {
            return all(stream, [&head, &bytes, b"\r\n0\r\n\r\n"]).await;
        }
        all(stream, [&head, &bytes, b"\r\n"]).await?;
        head.clear();
    }
    head.extend_from_slice(b"0\r\n\r\n");
    all(stream, [&head, b"", b""]).await
}

/// The next bytes of a body; trailers, of which we have none, are not sent.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.transpose().map_err(Error::other)?;
    Ok(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

fn line(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// `date:`, written once a second.
fn date(head: &mut Vec<u8>) {
    thread_local!(static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) });
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(written, text)| {
        if *written != second || text.is_empty() {
            *written = second;
            *text = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
        head.extend_from_slice(text.as_bytes());
    });
}

async fn all(stream: &TcpStream, parts: [&[u8]; 3]) -> Result<(), Error> {
    let mut slices = parts.map(IoSlice::new);
    let mut left = &mut slices[..];
    // Empty slices at the front would look like a closed socket.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match stream.try_write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let writable = tokio::time::timeout(STALLED, stream.writable()).await;
                writable.map_err(|_| Error::new(ErrorKind::TimedOut, "the client does not read"))??;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
