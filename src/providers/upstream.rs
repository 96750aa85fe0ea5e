//! Reading what an upstream answers, whatever its protocol: whole replies, event streams, and errors turned into [`ProviderError`]s
//! that keep the upstream's message and field but no secret.

use super::sse::{Event, Parser};
use super::{Piece, PieceStream, ProviderError};
use crate::config::Secret;
use crate::types::Code;
use crate::types::time::now_ms;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;

const MAX_REPLY_BYTES: usize = 64 << 20;
const MAX_ERROR_BYTES: usize = 64 << 10;
const MAX_EVENT_BYTES: usize = 16 << 20;
const MAX_MESSAGE_CHARS: usize = 2_000;

/// Who is being read, for messages.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) provider: String,
    pub(super) model: String,
    /// Cut out of every message.
    pub(super) key: Option<Secret>,
}

impl Source {
    pub(super) fn error(&self, code: Code, what: impl std::fmt::Display) -> ProviderError {
        ProviderError::new(code, format!("{}/{}: {}", self.provider, self.model, self.clean(&what.to_string())))
    }

    pub(super) fn timed_out(&self, limit: Duration) -> ProviderError {
        self.error(Code::UPSTREAM_TIMEOUT, format!("no answer within {} s", limit.as_secs()))
    }

    pub(super) fn unreachable(&self, error: reqwest::Error) -> ProviderError {
        let code = if error.is_timeout() { Code::UPSTREAM_TIMEOUT } else { Code::UPSTREAM_UNREACHABLE };
        self.error(code, causes(&error.without_url()))
    }

    pub(super) fn broken(&self, what: impl std::fmt::Display) -> ProviderError {
        self.error(Code::UPSTREAM, what)
    }

    /// A text from upstream without our key, of bounded length.
    fn clean(&self, text: &str) -> String {
        // The key goes first: cut in half it would no longer be found.
        let text = match &self.key {
            Some(key) if !key.expose().is_empty() => text.replace(key.expose(), "***"),
            _ => text.to_string(),
        };
        text.chars().take(MAX_MESSAGE_CHARS).collect()
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A reply that is not a success, as an error.
pub(super) async fn refusal(response: reqwest::Response, source: &Source) -> ProviderError {
    let status = response.status().as_u16();
    let retry_after_s = retry_after(response.headers());
    if (300..400).contains(&status) {
        return source.broken("answered with a redirect, which is not followed");
    }
    let body = read_capped(response, MAX_ERROR_BYTES).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut error = from_body(status, &body, source);
    error.retry_after_s = retry_after_s;
    error
}

/// The error that a status and an error body stand for, in any of the providers' shapes.
pub(super) fn from_body(status: u16, body: &Value, source: &Source) -> ProviderError {
    // `error` is an object at OpenAI, a plain text at some; FastAPI servers say `detail` or `message`.
    let inner = body.get("error").unwrap_or(body);
    // Inside a success only the body knows: Google's and OpenRouter's `code` is a status.
    let told = inner.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let status = told.filter(|code| status == 502 && (400..600).contains(code)).unwrap_or(status);
    let field = |name: &str| inner.get(name).and_then(Value::as_str);
    let said = field("message").or_else(|| inner.as_str()).or_else(|| field("detail"));
    // `type` at OpenAI and Anthropic, `status` at Google.
    let kind = field("type").or_else(|| field("status"));
    let code = match (status, field("code"), kind) {
        (_, Some("context_length_exceeded"), _) => Code::CONTEXT_LENGTH,
        (529 | 503, ..) | (_, _, Some("overloaded_error" | "UNAVAILABLE")) => Code::UPSTREAM_OVERLOADED,
        (400 | 422, ..) | (502, _, Some("invalid_request_error" | "INVALID_ARGUMENT")) => Code::INVALID_REQUEST,
        (404, ..) => Code::MODEL_NOT_FOUND,
        (408 | 504, ..) => Code::UPSTREAM_TIMEOUT,
        (413, ..) => Code::TOO_LARGE,
        (429, ..) | (502, _, Some("rate_limit_error" | "RESOURCE_EXHAUSTED")) => Code::RATE_LIMIT,
        _ => Code::UPSTREAM,
    };
    let is_key =
        matches!(status, 401 | 403) || body.pointer("/error/details").is_some_and(|list| list.to_string().contains("API_KEY_INVALID"));
    if is_key {
        // The key at fault is ours, not the caller's; upstream messages repeat parts of it.
        let mut error = source.broken(format!("refused the server's API key (status {status})"));
        error.hint = Some(format!("check the key of the provider \"{}\" on the server", source.provider));
        return error;
    }
    let said = said.map_or_else(|| format!("answered with status {status}"), str::to_string);
    let mut error = source.error(code, said);
    error.param = field("param").map(|param| source.clean(param));
    error
}

/// `Retry-After` in seconds or as an HTTP date, or `retry-after-ms`.
fn retry_after(headers: &HeaderMap) -> Option<u32> {
    let text = |value: &reqwest::header::HeaderValue| value.to_str().ok().map(|text| text.trim().to_string());
    if let Some(ms) = headers.get("retry-after-ms").and_then(text).and_then(|text| text.parse::<u64>().ok()) {
        return u32::try_from(ms.div_ceil(1_000)).ok();
    }
    let value = headers.get(RETRY_AFTER).and_then(text)?;
    let until = || {
        let then = jiff::fmt::rfc2822::parse(&value).ok()?.timestamp().as_millisecond();
        u32::try_from((then - now_ms()).max(0).unsigned_abs().div_ceil(1_000)).ok()
    };
    value.parse().ok().or_else(until)
}

/// A whole reply's JSON. An error inside a success is an error.
pub(super) async fn read_json(response: reqwest::Response, source: &Source) -> Result<Value, ProviderError> {
    let body = read_capped(response, MAX_REPLY_BYTES).await.map_err(|what| source.broken(what))?;
    let body: Value = serde_json::from_slice(&body).map_err(|error| source.broken(format!("the reply is not JSON: {error}")))?;
    match body.get("error") {
        None | Some(Value::Null) => Ok(body),
        Some(_) => Err(from_body(502, &body, source)),
    }
}

async fn read_capped(response: reqwest::Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| format!("the reply broke off: {}", causes(&error.without_url())))?;
        if body.len() + bytes.len() > limit {
            return Err(format!("the reply is larger than {limit} bytes"));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

/// Turns the events of one protocol into pieces.
pub(super) trait Decode: Send + 'static {
    /// What an event adds, in order.
    ///
    /// # Errors
    /// When the event reports one, or is not readable.
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError>;

    /// Whether the last event of the reply has been seen: nothing is read after it.
    fn is_over(&self) -> bool;

    /// Whether the stream may end now: a reply is whole once every choice has said why it ended.
    fn is_whole(&self) -> bool;
}

struct Reading<D> {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    parser: Parser,
    source: Source,
    idle: Duration,
    decoder: D,
    ready: VecDeque<Piece>,
}

/// The pieces of a streamed reply.
///
/// # Errors
/// When the reply is no event stream: some services put an error into a plain 200.
pub(super) async fn read_stream<D: Decode>(
    response: reqwest::Response,
    source: Source,
    idle: Duration,
    decoder: D,
) -> Result<PieceStream, ProviderError> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if kind.starts_with("application/json") {
        let read = tokio::time::timeout(idle, read_json(response, &source)).await;
        read.map_err(|_| source.timed_out(idle))??;
        return Err(source.broken("a stream was asked for, and a whole reply came"));
    }
    let (bytes, parser) = (response.bytes_stream().boxed(), Parser::new(MAX_EVENT_BYTES));
    let reading = Reading { bytes, parser, source, idle, decoder, ready: VecDeque::new() };
    let step = |reading: Option<Reading<D>>| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    };
    Ok(unfold(Some(reading), step).boxed())
}

impl<D: Decode> Reading<D> {
    async fn next(&mut self) -> Result<Option<Piece>, ProviderError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.decoder.is_over() {
                return Ok(None);
            }
            if let Some(event) = self.parser.next_event() {
                if !event.data.is_empty() {
                    self.ready.extend(self.decoder.event(event, &self.source)?);
                }
                continue;
            }
            let idle = self.idle;
            let silent = |_| self.source.error(Code::UPSTREAM_TIMEOUT, format!("the stream was silent for {} s", idle.as_secs()));
            match tokio::time::timeout(idle, self.bytes.next()).await.map_err(silent)? {
                Some(Ok(bytes)) => self.parser.push(&bytes).map_err(|error| self.source.broken(error))?,
                Some(Err(error)) => return Err(self.source.broken(format!("the stream broke off: {}", causes(&error.without_url())))),
                None if self.decoder.is_whole() => return Ok(None),
                None => return Err(self.source.broken("the stream ended before the reply did")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upstream_errors_keep_message_and_field_but_no_key() {
        let source = Source { provider: "openai".into(), model: "m".into(), key: Some(Secret::new("sk-canary")) };
        let error = from_body(400, &json!({"error": {"message": "bad sk-canary", "param": "top_p", "code": null}}), &source);
        assert_eq!(
            (error.code, error.message.as_str(), error.param.as_deref()),
            (Code::INVALID_REQUEST, "openai/m: bad ***", Some("top_p"))
        );
        let error = from_body(401, &json!({"error": {"message": "Incorrect API key provided: sk-cana*"}}), &source);
        assert!(error.code == Code::UPSTREAM && !error.message.contains("sk-"));
        assert_eq!(from_body(400, &json!({"error": {"code": "context_length_exceeded"}}), &source).code, Code::CONTEXT_LENGTH);
        assert_eq!(from_body(500, &Value::Null, &source).message, "openai/m: answered with status 500");
    }

    #[test]
    fn retry_after_is_read_in_all_three_forms() {
        let header = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), value.parse().expect("header"))])
        };
        assert_eq!(retry_after(&header("retry-after", "7")), Some(7));
        assert_eq!(retry_after(&header("retry-after-ms", "1200")), Some(2));
        assert_eq!(retry_after(&header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")), Some(0));
        assert_eq!(retry_after(&header("retry-after", "soon")), None);
    }
}
