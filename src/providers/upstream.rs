//! Reading what an upstream answers, whatever its protocol: whole replies, event streams, and errors turned into [`ProviderError`]s
//! that keep the upstream's message and field but no secret.

use super::received::Received;
use super::sse::{Event, Parser};
use super::{Passage, Piece, PieceStream, ProviderError};
use crate::config::Secret;
use crate::types::time::now_ms;
use crate::types::{Code, json};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const MAX_REPLY_BYTES: usize = 64 << 20;
const MAX_ERROR_BYTES: usize = 64 << 10;
const MAX_EVENT_BYTES: usize = 16 << 20;
const MAX_MESSAGE_CHARS: usize = 2_000;
/// Values in a whole reply: the vectors of 2,048 inputs at 3,072 numbers each, the most that one call may ask for.
const MAX_REPLY_VALUES: usize = 2_048 * 3_072 + 100_000;

/// The status that an error inside a success counts as, where its `code` does not say better.
pub(super) const IN_SUCCESS: u16 = 502;

/// Who is being read, for messages.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) provider: Arc<str>,
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

pub(super) fn causes(error: &dyn std::error::Error) -> String {
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
pub(super) async fn refusal(response: Received, source: &Source) -> ProviderError {
    let status = response.status();
    let retry_after_s = retry_after(response.headers());
    if (300..400).contains(&status) {
        return source.broken("answered with a redirect, which is not followed");
    }
    let body = read_capped(response, MAX_ERROR_BYTES).await.unwrap_or_default();
    let body = json::read(&body, json::MAX_VALUES).unwrap_or(Value::Null);
    let mut error = from_body(status, &body, source);
    error.retry_after_s = retry_after_s;
    error
}

/// Whether a success is an error: under `error`, or marked as one (`{"object":"error",…}` at vLLM and Mistral, `"type":"error"`).
pub(super) fn is_error(body: &Value) -> bool {
    let body = only(body);
    let marked = |name: &str| body.get(name).is_some_and(|mark| mark == "error");
    body.get("error").is_some_and(|error| !error.is_null()) || marked("object") || marked("type")
}

/// Gemini wraps errors of streams in a list.
fn only(body: &Value) -> &Value {
    match body {
        Value::Array(items) => items.first().unwrap_or(body),
        body => body,
    }
}

/// The error that a status and an error body stand for, in any of the providers' shapes.
pub(super) fn from_body(status: u16, body: &Value, source: &Source) -> ProviderError {
    let body = only(body);
    // `error` is an object at OpenAI, a plain text at some; FastAPI servers say `detail` or `message`.
    let inner = body.get("error").filter(|error| !error.is_null()).unwrap_or(body);
    let field = |name: &str| inner.get(name).and_then(Value::as_str);
    let number = inner.get("code").and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    let status = match number.and_then(|number| u16::try_from(number).ok()).filter(|number| (400..600).contains(number)) {
        Some(number) if status == IN_SUCCESS => number,
        _ => status,
    };
    let told = Told::of(inner);
    // `type` at OpenAI and Anthropic, `status` at Google.
    let words = [field("code"), field("type"), field("status")];
    let said = told.said.as_deref().unwrap_or_default();
    if is_about_key(status, &words, said) || inner.get("details").is_some_and(|list| list.to_string().contains("API_KEY_INVALID")) {
        // The key at fault is ours, not the caller's; upstream messages repeat parts of it.
        let mut error = source.broken(format!("refused the server's API key (status {status})"));
        error.hint = Some(format!("check the key of the provider \"{}\" on the server", source.provider));
        return error;
    }
    let code = code(status, &words, said);
    let mut error = source.error(code, told.said.unwrap_or_else(|| format!("answered with status {status}")));
    error.param = field("param").map(str::to_string).or(told.param).map(|param| source.clean(&param));
    error
}

/// Whether a refusal is about the server's key. A 403 may be about what was asked (moderation): then the caller must read it.
fn is_about_key(status: u16, words: &[Option<&str>], said: &str) -> bool {
    const KEY: [&str; 5] = ["key", "credential", "unauthorized", "authentication", "auth token"];
    let is = |list: &[&str]| words.iter().flatten().any(|word| list.contains(word));
    match status {
        401 => true,
        403 => {
            let said = said.to_lowercase();
            said.is_empty()
                || is(&["permission_error", "authentication_error", "PERMISSION_DENIED", "UNAUTHENTICATED", "invalid_api_key"])
                || KEY.iter().any(|word| said.contains(word))
        }
        IN_SUCCESS => is(&["authentication_error", "UNAUTHENTICATED", "invalid_api_key"]),
        _ => false,
    }
}

/// The row of the table for an error upstream: by its words where they are clear, else by its status.
fn code(status: u16, words: &[Option<&str>], said: &str) -> Code {
    let is = |list: &[&str]| words.iter().flatten().any(|word| list.contains(word));
    match status {
        400 | 413 | 422 | IN_SUCCESS if is(&["context_length_exceeded", "exceed_context_size_error"]) || is_too_long(said) => {
            Code::CONTEXT_LENGTH
        }
        _ if is(&["content_filter", "content_policy_violation"]) => Code::CONTENT_FILTER,
        402 => Code::QUOTA,
        _ if is(&["insufficient_quota"]) => Code::QUOTA,
        529 | 503 => Code::UPSTREAM_OVERLOADED,
        _ if is(&["overloaded_error", "overloaded", "engine_overloaded", "UNAVAILABLE"]) => Code::UPSTREAM_OVERLOADED,
        403 | 404 | IN_SUCCESS if is(&["model_not_found", "not_found_error", "NOT_FOUND"]) => Code::MODEL_NOT_FOUND,
        400 | 403 | 422 => Code::INVALID_REQUEST,
        404 => Code::MODEL_NOT_FOUND,
        408 | 504 => Code::UPSTREAM_TIMEOUT,
        413 => Code::TOO_LARGE,
        429 => Code::RATE_LIMIT,
        IN_SUCCESS if is(&["invalid_request_error", "BadRequestError", "INVALID_ARGUMENT"]) => Code::INVALID_REQUEST,
        IN_SUCCESS if is(&["rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED"]) => Code::RATE_LIMIT,
        _ => Code::UPSTREAM,
    }
}

/// What services without a code of their own for it say of a prompt that does not fit: Anthropic, Gemini, vLLM, llama.cpp.
fn is_too_long(said: &str) -> bool {
    let said = said.to_lowercase();
    said.contains("prompt is too long")
        || (said.contains("input token count") && said.contains("exceeds"))
        || said.contains("maximum context length")
        || said.contains("available context size")
}

/// What an error says, and of which field.
#[derive(Default)]
struct Told {
    said: Option<String>,
    param: Option<String>,
}

impl Told {
    fn of(inner: &Value) -> Told {
        let said = |text: &str| Told { said: Some(text.to_string()), param: None };
        match (inner, inner.get("message"), inner.get("detail")) {
            (Value::String(text), ..) | (_, Some(Value::String(text)), _) | (_, _, Some(Value::String(text))) => said(text),
            // Mistral puts FastAPI's answer into its message.
            (_, Some(message @ Value::Object(_)), _) => Told::of(message),
            (_, _, Some(detail @ Value::Object(_))) => Told::of(detail),
            (_, _, Some(Value::Array(faults))) => Told::of_faults(faults),
            _ => Told::default(),
        }
    }

    /// FastAPI's `[{"loc": ["body", "messages", 0, "content"], "msg": "Field required"}]`.
    fn of_faults(faults: &[Value]) -> Told {
        let place = |fault: &Value| {
            let mut path = String::new();
            for step in fault.get("loc").and_then(Value::as_array).into_iter().flatten().filter(|step| *step != "body") {
                match step {
                    Value::String(name) if path.is_empty() => path.push_str(name),
                    Value::String(name) => path.push_str(&format!(".{name}")),
                    index => path.push_str(&format!("[{index}]")),
                }
            }
            path
        };
        let line = |fault: &Value| Some(format!("{}: {}", place(fault), fault.get("msg")?.as_str()?));
        let lines: Vec<_> = faults.iter().filter_map(line).collect();
        let said = (!lines.is_empty()).then(|| lines.join("; "));
        Told { said, param: faults.first().map(place).filter(|path| !path.is_empty()) }
    }
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
pub(super) async fn read_json(response: Received, source: &Source) -> Result<Value, ProviderError> {
    let body = read_capped(response, MAX_REPLY_BYTES).await.map_err(|what| source.broken(what))?;
    as_json(&body, source)
}

/// A whole reply's bytes.
pub(super) async fn read_bytes(response: Received, source: &Source) -> Result<Bytes, ProviderError> {
    read_capped(response, MAX_REPLY_BYTES).await.map_err(|what| source.broken(what))
}

/// What [`read_json`] makes of bytes.
pub(super) fn as_json(body: &[u8], source: &Source) -> Result<Value, ProviderError> {
    let body = json::read(body, MAX_REPLY_VALUES).map_err(|fault| source.broken(format!("the reply is not JSON: {fault}")))?;
    if is_error(&body) { Err(from_body(IN_SUCCESS, &body, source)) } else { Ok(body) }
}

/// A reply as the type that was asked for.
pub(super) fn fitting<T: DeserializeOwned>(value: Value, source: &Source) -> Result<T, ProviderError> {
    serde_json::from_value(value).map_err(|error| source.broken(format!("the reply is not what was asked for: {error}")))
}

/// The JSON of an event.
pub(super) fn read_event(data: &str, source: &Source) -> Result<Value, ProviderError> {
    json::read(data.as_bytes(), json::MAX_VALUES).map_err(|fault| source.broken(format!("an event of the stream is not readable: {fault}")))
}

async fn read_capped(mut response: Received, limit: usize) -> Result<Bytes, String> {
    let announced = response.length();
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(format!("the reply is larger than {limit} bytes"));
    }
    let broke_off = |what: String| format!("the reply broke off: {what}");
    let first = response.chunk().await.map_err(broke_off)?.unwrap_or_default();
    let mut second = response.chunk().await.map_err(broke_off)?;
    if second.is_none() && first.len() <= limit {
        return Ok(first);
    }
    let mut body = Vec::with_capacity(announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0).min(1 << 20));
    body.extend_from_slice(&first);
    while let Some(bytes) = second {
        if body.len() + bytes.len() > limit {
            return Err(format!("the reply is larger than {limit} bytes"));
        }
        body.extend_from_slice(&bytes);
        second = response.chunk().await.map_err(broke_off)?;
    }
    Ok(body.into())
}

/// Turns the events of one protocol into pieces.
pub(super) trait Decode: Send + 'static {
    /// What an event adds, in order.
    ///
    /// # Errors
    /// When the event reports one, or is not readable.
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError>;

    /// Adds an event to a passage, where it may go on without being read as a whole; false where not.
    fn pass(&mut self, _event: &Event, _passage: &mut Passage) -> bool {
        false
    }

    /// Whether the last event of the reply has been seen: nothing is read after it.
    fn is_over(&self) -> bool;

    /// Whether the stream may end now: a reply is whole once every choice has said why it ended.
    fn is_whole(&self) -> bool;
}

struct Reading<D> {
    response: Received,
    parser: Parser,
    source: Source,
    idle: Duration,
    decoder: D,
    /// An event that was taken from the parser, and is to be read.
    taken: Option<Event>,
    ready: VecDeque<Piece>,
    /// What came before the first event: where none comes, it may be an error in plain JSON.
    unread: Option<Vec<u8>>,
    /// Why nothing more is read, once what was read before has been told.
    broken: Option<ProviderError>,
}

/// The pieces of a streamed reply.
///
/// # Errors
/// When the reply is no event stream: some services put an error into a plain 200.
pub(super) async fn read_stream<D: Decode>(
    response: Received,
    source: Source,
    idle: Duration,
    decoder: D,
) -> Result<PieceStream, ProviderError> {
    if response.content_type().starts_with("application/json") {
        let read = tokio::time::timeout(idle, read_json(response, &source)).await;
        read.map_err(|_| source.timed_out(idle))??;
        return Err(source.broken("a stream was asked for, and a whole reply came"));
    }
    let parser = Parser::new(MAX_EVENT_BYTES);
    let (ready, unread) = (VecDeque::new(), Some(Vec::new()));
    let reading = Reading { response, parser, source, idle, decoder, taken: None, ready, unread, broken: None };
    let step = |reading: Option<Box<Reading<D>>>| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    };
    Ok(unfold(Some(Box::new(reading)), step).boxed())
}

impl<D: Decode> Reading<D> {
    async fn next(&mut self) -> Result<Option<Piece>, ProviderError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.decoder.is_over() {
                self.response.finish();
                return Ok(None);
            }
            if let Some(event) = self.taken.take().or_else(|| self.parser.next_event()) {
                self.unread = None;
                if let Some(passage) = self.pass(event) {
                    return Ok(Some(Piece { passage: Some(Box::new(passage)), ..Piece::default() }));
                }
                if let Some(event) = self.taken.take().filter(|event| !event.data.is_empty()) {
                    self.ready.extend(self.decoder.event(event, &self.source)?);
                }
                continue;
            }
            if let Some(error) = self.broken.take() {
                return Err(error);
            }
            let idle = self.idle;
            let silent = |_| self.source.error(Code::UPSTREAM_TIMEOUT, format!("the stream was silent for {} s", idle.as_secs()));
            match tokio::time::timeout(idle, self.response.chunk()).await.map_err(silent)? {
                Ok(Some(bytes)) => self.push(&bytes),
                Err(error) => return Err(self.source.broken(format!("the stream broke off: {error}"))),
                Ok(None) if self.decoder.is_whole() => return Ok(None),
                Ok(None) => return Err(self.ended_early()),
            }
        }
    }

    /// Passes on what has come, up to an event that is to be read, which is taken then. None where that is the first.
    fn pass(&mut self, first: Event) -> Option<Passage> {
        let mut passage = Passage::default();
        let mut next = Some(first);
        while let Some(event) = next {
            if !self.decoder.pass(&event, &mut passage) {
                self.taken = Some(event);
                break;
            }
            next = self.parser.next_event();
        }
        (!passage.events.is_empty()).then_some(passage)
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(unread) = &mut self.unread {
            let room = MAX_ERROR_BYTES.saturating_sub(unread.len());
            unread.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        self.broken = self.parser.push(bytes).err().map(|error| self.source.broken(error));
    }

    fn ended_early(&mut self) -> ProviderError {
        let unread = self.unread.take().unwrap_or_default();
        match json::read(&unread, json::MAX_VALUES) {
            Ok(body) if is_error(&body) => from_body(IN_SUCCESS, &body, &self.source),
            Ok(_) => self.source.broken("a stream was asked for, and a whole reply came"),
            Err(_) => self.source.broken("the stream ended before the reply did"),
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

    #[test]
    fn errors_of_every_shape_find_their_row() {
        let source = Source { provider: "up".into(), model: "m".into(), key: None };
        let of = |status, body: Value| from_body(status, &body, &source);
        let cases = [
            (IN_SUCCESS, json!({"error": {"code": 429, "message": "slow"}}), Code::RATE_LIMIT),
            (IN_SUCCESS, json!({"error": {"code": "503", "message": "busy"}}), Code::UPSTREAM_OVERLOADED),
            (IN_SUCCESS, json!({"object": "error", "message": "busy", "code": 503}), Code::UPSTREAM_OVERLOADED),
            (IN_SUCCESS, json!({"message": "busy", "type": "overloaded_error"}), Code::UPSTREAM_OVERLOADED),
            (500, json!({"error": {"code": "overloaded", "message": "busy"}}), Code::UPSTREAM_OVERLOADED),
            (503, json!([{"error": {"message": "busy", "status": "UNAVAILABLE"}}]), Code::UPSTREAM_OVERLOADED),
            (
                400,
                json!({"error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
                Code::CONTEXT_LENGTH,
            ),
            (
                400,
                json!({"error": {"message": "The input token count (12) exceeds the maximum number of tokens allowed (9)."}}),
                Code::CONTEXT_LENGTH,
            ),
            (400, json!({"error": {"code": "content_filter", "message": "filtered"}}), Code::CONTENT_FILTER),
            (429, json!({"error": {"code": "insufficient_quota", "message": "no credit"}}), Code::QUOTA),
            (402, json!({"error": {"message": "Insufficient Balance"}}), Code::QUOTA),
            (403, json!({"error": {"code": 403, "message": "Your input was flagged: violence"}}), Code::INVALID_REQUEST),
            (
                403,
                json!({"error": {"code": "model_not_found", "message": "the project has no access to the model"}}),
                Code::MODEL_NOT_FOUND,
            ),
            (403, json!({"error": {"message": "Incorrect API key"}}), Code::UPSTREAM),
            (403, Value::Null, Code::UPSTREAM),
        ];
        for (status, body, code) in cases {
            assert_eq!(of(status, body.clone()).code, code, "{status} {body}");
        }
        assert_eq!(of(403, json!({"error": {"message": "Your input was flagged"}})).message, "up/m: Your input was flagged");
        let fault = json!({"loc": ["body", "messages", 0, "content"], "msg": "Field required", "type": "missing"});
        for body in [json!({"detail": [fault]}), json!({"object": "error", "message": {"detail": [fault]}})] {
            let error = of(422, body);
            assert_eq!(error.message, "up/m: messages[0].content: Field required");
            assert_eq!((error.code, error.param.as_deref()), (Code::INVALID_REQUEST, Some("messages[0].content")));
        }
    }

    /// A piece an event.
    struct Each;

    impl Decode for Each {
        fn event(&mut self, _: Event, _: &Source) -> Result<Vec<Piece>, ProviderError> {
            Ok(vec![Piece::default()])
        }

        fn is_over(&self) -> bool {
            false
        }

        fn is_whole(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn events_before_a_line_that_is_too_long_are_told_first() {
        let source = Source { provider: "up".into(), model: "m".into(), key: None };
        let mut bytes = b"data: 1\n\ndata: 2\n\ndata: ".to_vec();
        bytes.resize(MAX_EVENT_BYTES + 100, b'x');
        let response = Received::Client(reqwest::Response::from(axum::http::Response::new(bytes)));
        let stream = read_stream(response, source, Duration::from_secs(5), Each).await.expect("a stream");
        let told: Vec<_> = stream.map(|piece| piece.is_ok()).collect().await;
        assert_eq!(told, [true, true, false]);
    }
}
