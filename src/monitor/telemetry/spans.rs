//! A finished log row as spans: one for the request as we served it, below it one for each call of a provider. Of calls that failed the row
//! knows how long they took, not when: they are laid one behind the other, before the call that counts, which ended with the request.

use super::names::{self, Name};
use super::{Place, Settings, Traced, content, mixed, span_of};
use crate::config::telemetry::Conventions;
use crate::store::feedback::FeedbackRow;
use crate::store::requests::RequestRow;
use crate::types::time::now_ms;
use crate::types::trace::bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde::Deserialize;

/// `severity_number` of an event that is no trouble (`SEVERITY_NUMBER_INFO`).
const INFO: i32 = 9;
/// `code` of the status of a span that failed (`STATUS_CODE_ERROR`).
const FAILED: i32 = 2;

/// A list of attributes, being written.
pub(super) struct Attributes {
    conventions: Conventions,
    pub(super) list: Vec<KeyValue>,
}

impl Attributes {
    pub(super) fn new(conventions: Conventions) -> Self {
        Attributes { conventions, list: Vec::new() }
    }

    fn put(&mut self, name: Name, value: Any) {
        self.list.push(pair(name.of(self.conventions), value));
    }

    pub(super) fn text(&mut self, name: Name, value: Option<&str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.put(name, Any::StringValue(value.to_string()));
        }
    }

    pub(super) fn whole(&mut self, name: Name, value: Option<i64>) {
        if let Some(value) = value {
            self.put(name, Any::IntValue(value));
        }
    }

    fn count(&mut self, name: Name, value: Option<u64>) {
        self.whole(name, value.and_then(|value| i64::try_from(value).ok()));
    }

    fn number(&mut self, name: Name, value: Option<f64>) {
        if let Some(value) = value {
            self.put(name, Any::DoubleValue(value));
        }
    }

    fn texts(&mut self, name: Name, values: &[String]) {
        if !values.is_empty() {
            let values = values.iter().map(|text| AnyValue { value: Some(Any::StringValue(text.clone())) }).collect();
            self.put(name, Any::ArrayValue(ArrayValue { values }));
        }
    }
}

pub(super) fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_string(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A call that failed before the one that counts, as the row lists it.
#[derive(Deserialize)]
struct FailedCall {
    target: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    ms: f64,
}

/// Nanoseconds of a time in milliseconds.
fn nanos(ms: f64) -> u64 {
    (ms.max(0.0) * 1e6) as u64
}

/// Nanoseconds of a time of day in milliseconds.
pub(super) fn at_nanos(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000)
}

/// The spans of a row; none when it belongs to no trace.
pub(super) fn of_row(row: &RequestRow, traced: &Traced, settings: &Settings) -> Vec<Span> {
    let Some(trace_id) = row.trace_id.as_deref().and_then(bytes::<16>) else { return Vec::new() };
    let begun = at_nanos(row.at);
    let frame = Frame { row, settings, trace_id, begun, ended: begun + nanos(row.total_ms), own: span_of(&row.id) };
    let mut spans = vec![frame.request(traced)];
    spans.extend(frame.calls(traced));
    spans
}

/// What the spans of one row share.
struct Frame<'r> {
    row: &'r RequestRow,
    settings: &'r Settings,
    trace_id: [u8; 16],
    begun: u64,
    ended: u64,
    /// Span of the request.
    own: [u8; 8],
}

impl Frame<'_> {
    fn attributes(&self) -> Attributes {
        Attributes::new(self.settings.export.conventions)
    }

    fn request(&self, traced: &Traced) -> Span {
        let row = self.row;
        let endpoint = names::endpoint(&row.endpoint);
        let mut attributes = self.attributes();
        if let Some(path) = endpoint.path {
            attributes.text(names::HTTP_METHOD, Some("POST"));
            attributes.text(names::HTTP_ROUTE, Some(path));
            attributes.whole(names::HTTP_STATUS, Some(row.status.into()));
        }
        attributes.text(names::REQUEST_ID, Some(&row.id));
        attributes.text(names::PROJECT, Some(&row.project));
        attributes.text(names::ROUTE, row.route.as_deref());
        attributes.text(names::RELEASE, row.release.as_deref());
        attributes.text(names::CACHE, row.cache.as_deref());
        attributes.count(names::ATTEMPTS, row.attempts);
        attributes.whole(names::COST, row.cost_micro_usd);
        attributes.number(names::QUEUE_MS, row.queue_ms);
        attributes.number(names::OVERHEAD_MS, row.overhead_ms);
        attributes.text(names::ERROR_TYPE, row.error_code.as_deref());
        let (name, kind) = match endpoint.path {
            Some(path) => (format!("POST {path}"), SpanKind::Server),
            None => (row.endpoint.clone(), SpanKind::Internal),
        };
        // A request that is the caller's own mistake is no error of this service (HTTP conventions, "Status").
        let failed = row.error_code.as_deref().filter(|_| row.status >= 500);
        let parent_span_id = traced.parent.map(|parent| parent.to_vec()).unwrap_or_default();
        let span = self.span(name, kind, (self.begun, self.ended), self.own);
        self.ended_with(Span { parent_span_id, attributes: attributes.list, ..span }, row.error_code.as_deref(), failed.is_some())
    }

    /// The calls of providers; none where none was reached or the cache answered.
    fn calls(&self, traced: &Traced) -> Vec<Span> {
        let row = self.row;
        if row.provider.is_empty() || matches!(row.cache.as_deref(), Some("hit" | "semantic")) {
            return Vec::new();
        }
        let failed: Vec<FailedCall> = row.attempted.as_deref().and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default();
        let mut at = self.begun + nanos(row.queue_ms.unwrap_or(0.0));
        let mut spans = Vec::new();
        for (place, call) in failed.iter().enumerate() {
            let ended = (at + nanos(call.ms)).min(self.ended);
            let (provider, model) = call.target.split_once('/').unwrap_or(("", &call.target));
            let span = self.call(place, (provider, model), (at, ended));
            spans.push(self.ended_with(span, Some(&call.code).filter(|code| !code.is_empty()).map(String::as_str), true));
            at = ended;
        }
        let listed: f64 = failed.iter().map(|call| call.ms).sum();
        // Where every call failed, the last of them is the one that counts.
        let all_failed = row.error_code.is_some() && row.attempts.is_some_and(|attempts| attempts == failed.len() as u64 && attempts > 0);
        if !all_failed {
            let took = row.upstream_ms.map(|upstream| nanos(upstream - listed));
            let begun = took.map_or(at, |took| self.ended.saturating_sub(took).max(self.begun));
            let mut span = self.call(failed.len(), (&row.provider, &row.model), (begun, self.ended));
            span.attributes.extend(self.answer(traced));
            spans.push(self.ended_with(span, row.error_code.as_deref(), row.error_code.is_some()));
        }
        spans
    }

    /// A call of a provider, as far as it is known before its answer.
    fn call(&self, place: usize, (provider, model): (&str, &str), times: (u64, u64)) -> Span {
        let operation = names::endpoint(&self.row.endpoint).operation;
        let known = self.settings.providers.get(provider);
        let Place { name, address } =
            known.cloned().unwrap_or_else(|| Place { name: names::provider(provider).to_string(), address: None });
        let mut attributes = self.attributes();
        attributes.text(names::OPERATION, Some(operation));
        attributes.text(names::PROVIDER, Some(&name));
        attributes.text(names::REQUEST_MODEL, Some(model));
        attributes.text(names::SERVER_ADDRESS, address.as_ref().map(|(host, _)| host.as_str()));
        attributes.whole(names::SERVER_PORT, address.map(|(_, port)| port.into()));
        let id = mixed(u64::from_be_bytes(self.own).wrapping_add(place as u64)).max(1).to_be_bytes();
        let span = self.span(format!("{operation} {model}"), SpanKind::Client, times, id);
        Span { parent_span_id: self.own.to_vec(), attributes: attributes.list, ..span }
    }

    /// What was asked for, and what came.
    fn answer(&self, traced: &Traced) -> Vec<KeyValue> {
        let (row, params) = (self.row, &traced.params);
        let mut attributes = self.attributes();
        attributes.number(names::TEMPERATURE, params.temperature);
        attributes.number(names::TOP_P, params.top_p);
        attributes.number(names::TOP_K, params.top_k);
        attributes.number(names::FREQUENCY_PENALTY, params.frequency_penalty);
        attributes.number(names::PRESENCE_PENALTY, params.presence_penalty);
        attributes.whole(names::MAX_TOKENS, params.max_tokens);
        attributes.whole(names::SEED, params.seed);
        attributes.whole(names::CHOICE_COUNT, params.choices);
        attributes.texts(names::STOP_SEQUENCES, &params.stop);
        attributes.text(names::OUTPUT_TYPE, params.output);
        if row.streamed {
            attributes.put(names::STREAM, Any::BoolValue(true));
        }
        attributes.text(names::CONVERSATION, row.conversation.as_deref());
        attributes.text(names::PROMPT, row.prompt.as_deref());
        attributes.whole(names::PROMPT_VERSION, row.prompt_version);
        attributes.text(names::RESPONSE_ID, row.reply_id.as_deref());
        attributes.texts(names::FINISH_REASONS, &row.finish_reason.iter().cloned().collect::<Vec<_>>());
        attributes.count(names::INPUT_TOKENS, row.input_tokens);
        attributes.count(names::OUTPUT_TOKENS, row.output_tokens);
        attributes.count(names::CACHE_READ_TOKENS, row.cached_tokens);
        attributes.count(names::CACHE_WRITE_TOKENS, row.cache_write_tokens);
        attributes.count(names::REASONING_TOKENS, row.reasoning_tokens);
        if self.settings.export.content {
            let (system, input) =
                row.request.as_deref().and_then(content::input).map_or((None, None), |(system, input)| (system, Some(input)));
            attributes.text(names::SYSTEM_INSTRUCTIONS, system.as_deref());
            attributes.text(names::INPUT_MESSAGES, input.as_deref());
            attributes.text(names::OUTPUT_MESSAGES, row.reply.as_deref().and_then(content::output).as_deref());
        }
        attributes.list
    }

    fn span(&self, name: String, kind: SpanKind, (begun, ended): (u64, u64), id: [u8; 8]) -> Span {
        Span {
            trace_id: self.trace_id.to_vec(),
            span_id: id.to_vec(),
            name,
            kind: kind.into(),
            start_time_unix_nano: begun,
            end_time_unix_nano: ended,
            // The trace is recorded (bits 0–7 are the W3C flags).
            flags: 1,
            ..Span::default()
        }
    }

    /// A span with the event of its error, when there was one.
    fn ended_with(&self, mut span: Span, code: Option<&str>, is_error: bool) -> Span {
        let Some(code) = code else { return span };
        let conventions = self.settings.export.conventions;
        let mut of_event = self.attributes();
        of_event.text(names::EXCEPTION_TYPE, Some(code));
        let name = names::EXCEPTION.of(conventions).to_string();
        span.events.push(Event { time_unix_nano: span.end_time_unix_nano, name, attributes: of_event.list, ..Event::default() });
        let type_key = names::ERROR_TYPE.of(conventions);
        if !span.attributes.iter().any(|attribute| attribute.key == type_key) {
            span.attributes.push(pair(type_key, Any::StringValue(code.to_string())));
        }
        if is_error {
            span.status = Some(Status { code: FAILED, message: code.to_string() });
        }
        span
    }
}

/// A piece of feedback as the event that the conventions have for judgements, in the trace of its request.
pub(super) fn of_feedback(row: &RequestRow, given: &FeedbackRow, settings: &Settings) -> LogRecord {
    let mut attributes = Attributes::new(settings.export.conventions);
    let label = serde_json::from_str::<serde_json::Value>(&given.value).ok();
    let label = label.as_ref().and_then(serde_json::Value::as_str).filter(|_| given.number.is_none());
    attributes.text(names::EVALUATION_NAME, Some(&given.name));
    attributes.number(names::EVALUATION_SCORE, given.number);
    attributes.text(names::EVALUATION_LABEL, label);
    attributes.text(names::EVALUATION_EXPLANATION, given.comment.as_deref().filter(|_| settings.export.content));
    attributes.text(names::RESPONSE_ID, row.reply_id.as_deref());
    attributes.text(names::REQUEST_ID, Some(&row.id));
    attributes.text(names::PROJECT, Some(&row.project));
    attributes.text(names::ROUTE, row.route.as_deref());
    attributes.text(names::RELEASE, row.release.as_deref());
    attributes.text(names::SOURCE, given.source.as_deref());
    let trace_id = row.trace_id.as_deref().and_then(bytes::<16>);
    let now = at_nanos(now_ms());
    LogRecord {
        time_unix_nano: now,
        observed_time_unix_nano: now,
        severity_number: INFO,
        event_name: names::EVALUATION_RESULT.of(settings.export.conventions).to_string(),
        attributes: attributes.list,
        span_id: trace_id.map(|_| span_of(&row.id).to_vec()).unwrap_or_default(),
        trace_id: trace_id.map(|id| id.to_vec()).unwrap_or_default(),
        ..LogRecord::default()
    }
}
