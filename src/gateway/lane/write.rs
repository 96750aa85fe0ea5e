//! Replies, written to the socket: a body of known length in one system call with its head, any other in chunks (RFC 9112, 7.1).

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Response, header};
use futures_util::StreamExt;
use std::cell::RefCell;
use std::io::{Error, ErrorKind, IoSlice, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;

/// How long a client may take to read what is sent to it before its connection is closed.
const STALLED: Duration = Duration::from_secs(120);

/// Writes a reply; `close` says that the connection ends with it.
pub(super) async fn reply(stream: &TcpStream, response: Response<Body>, close: bool) -> Result<(), Error> {
    let (parts, body) = response.into_parts();
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
    let mut pieces = body.into_data_stream();
    if let Some(length) = length {
        write!(head, "content-length: {length}\r\n\r\n")?;
        let first = next(&mut pieces).await?.unwrap_or_default();
        all(stream, [&head, &first, b""]).await?;
        while let Some(bytes) = next(&mut pieces).await? {
            all(stream, [&bytes, b"", b""]).await?;
        }
        return Ok(());
    }
    head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
    // The head leaves with the first piece, which is there as a rule.
    while let Some(bytes) = next(&mut pieces).await? {
        if !bytes.is_empty() {
            write!(head, "{:x}\r\n", bytes.len())?;
            all(stream, [&head, &bytes, b"\r\n"]).await?;
            head.clear();
        }
    }
    head.extend_from_slice(b"0\r\n\r\n");
    all(stream, [&head, b"", b""]).await
}

async fn next(pieces: &mut axum::body::BodyDataStream) -> Result<Option<Bytes>, Error> {
    pieces.next().await.transpose().map_err(Error::other)
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
