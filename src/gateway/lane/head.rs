//! The head of a request that the lane answers itself. It is strict: whatever is unusual in a request's framing is left to hyper.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use httparse::{EMPTY_HEADER, Status};

/// The one request that the lane knows.
const METHOD: &str = "POST";
pub(super) const PATH: &str = "/v1/chat/completions";
const MAX_HEADERS: usize = 64;
/// Larger heads are hyper's to refuse.
const MAX_BYTES: usize = 16 << 10;
/// Headers of the caller that handlers read, besides those of the framing.
const READ: [&str; 5] = ["authorization", "x-api-key", "api-key", "traceparent", "tracestate"];
/// And those that begin so.
const READ_PREFIX: &str = "x-refit-";

/// What the first bytes of a connection are.
#[derive(Debug)]
pub(super) enum Head {
    /// The beginning of something.
    Partial,
    /// Something that hyper answers.
    Other,
    /// A chat request.
    Chat(Chat),
}

/// A chat request's head.
#[derive(Debug)]
pub(super) struct Chat {
    /// Its own length in bytes.
    pub(super) length: usize,
    /// The body's.
    pub(super) body: usize,
    /// Headers that handlers read.
    pub(super) headers: HeaderMap,
}

/// Looks at what has been read of a connection.
pub(super) fn look(bytes: &[u8]) -> Head {
    // What cannot become the known request need not be waited for.
    let line = METHOD.len() + 1 + PATH.len();
    let known = |at: usize| {
        if at < METHOD.len() {
            METHOD.as_bytes()[at]
        } else if at == METHOD.len() {
            b' '
        } else {
            PATH.as_bytes()[at - METHOD.len() - 1]
        }
    };
    if bytes.iter().take(line).enumerate().any(|(at, byte)| *byte != known(at)) {
        return Head::Other;
    }
    let mut room = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut room);
    let length = match request.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() <= MAX_BYTES => return Head::Partial,
        _ => return Head::Other,
    };
    if request.path != Some(PATH) || request.version != Some(1) {
        return Head::Other;
    }
    match framing(request.headers) {
        Some((body, headers)) => Head::Chat(Chat { length, body, headers }),
        None => Head::Other,
    }
}

/// The body's length and the headers that are read; none where anything but one plain length frames the body.
fn framing(given: &[httparse::Header<'_>]) -> Option<(usize, HeaderMap)> {
    let (mut body, mut hosts) = (None, 0);
    let mut headers = HeaderMap::new();
    for header in given {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let read = |name: &str| READ.iter().any(|read| name.eq_ignore_ascii_case(read));
        if is("content-length") {
            let text = std::str::from_utf8(header.value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
            if body.replace(text.parse::<usize>().ok()?).is_some() {
                return None;
            }
        } else if is("host") {
            hosts += 1;
        } else if is("connection") {
            if !header.value.eq_ignore_ascii_case(b"keep-alive") {
                return None;
            }
        } else if is("transfer-encoding") || is("expect") || is("upgrade") || is("te") || is("trailer") {
            return None;
        } else if read(header.name) || header.name.get(..READ_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(READ_PREFIX)) {
            headers.append(HeaderName::from_bytes(header.name.as_bytes()).ok()?, HeaderValue::from_bytes(header.value).ok()?);
        }
    }
    if hosts == 1 { Some((body?, headers)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(lines: &str) -> Head {
        look(format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{lines}\r\n{{}}").as_bytes())
    }

    #[test]
    fn only_plainly_framed_chat_requests_are_ours() {
        let Head::Chat(chat) = looked("Content-Length: 2\r\nAuthorization: Bearer k\r\nX-Refit-Cache: no-store\r\nAccept: */*\r\n") else {
            panic!("a chat request")
        };
        assert_eq!((chat.body, chat.headers.len(), &chat.headers["authorization"]), (2, 2, &HeaderValue::from_static("Bearer k")));
        for lines in [
            "",
            "content-length: 2\r\ncontent-length: 2\r\n",
            "content-length: +2\r\n",
            "content-length: 2\r\ntransfer-encoding: chunked\r\n",
            "content-length: 2\r\nexpect: 100-continue\r\n",
            "content-length: 2\r\nconnection: close\r\n",
            "content-length: 2\r\nhost: y\r\n",
            "content-length: 2\r\n folded: x\r\n",
        ] {
            assert!(matches!(looked(lines), Head::Other), "{lines:?}");
        }
        for other in [
            "GET / HTTP/1.1\r\n\r\n",
            "POST /v1/chat/completions?x HTTP/1.1\r\nhost: x\r\n\r\n",
            "P\0",
            "POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ncontent-length: 2\r\n\r\n",
        ] {
            assert!(matches!(look(other.as_bytes()), Head::Other), "{other}");
        }
        assert!(matches!(look(b"POST /v1/chat/comple"), Head::Partial) && matches!(look(b""), Head::Partial));
    }
}
