//! The log row of one call, filled as the call goes on and written exactly once: on success, on failure, or, when the caller went
//! away, on drop.

use super::admission::Grant;
use super::plan::Plan;
use super::road::Road;
use super::{Ask, Log};
use crate::monitor::metrics::{Finished, InFlight};
use crate::store::requests::RequestRow;
use crate::types::chat::{ChatRequest, ChatResponse, Usage};
use crate::types::glance::Glance;
use crate::types::ids::is_safe_name;
use crate::types::plain::PlainChat;
use crate::types::time::now_ms;
use crate::types::told::{Cost, Named};
use crate::types::{Code, Failure, Told};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// One call being written down.
pub(super) struct Ticket {
    row: Box<RequestRow>,
    usage: Option<Usage>,
    started: Instant,
    log: Log,
    written: bool,
    grant: Option<Grant>,
    calls: Calls,
    _in_flight: InFlight,
}

/// The calls of targets that were made for this one.
#[derive(Default)]
struct Calls {
    made: u64,
    named: Option<Named>,
    /// Time that targets took: waiting for replies, and for the pieces of streams.
    upstream: Duration,
    /// Since when a target is waited for.
    waiting: Option<Instant>,
}

/// What is asked, as far as the log is concerned.
pub(super) struct Asked<'r, B> {
    model: &'r str,
    streamed: bool,
    /// Conversation that it belongs to, as the caller says.
    conversation: Option<&'r str>,
    body: &'r B,
}

impl<'r> Asked<'r, ChatRequest> {
    pub(super) fn chat(request: &'r ChatRequest) -> Self {
        let streamed = request.stream.unwrap_or(false);
        Asked { model: &request.model, streamed, conversation: conversation(&request.extra), body: request }
    }
}

impl<'r> Asked<'r, PlainChat> {
    pub(super) fn plain(request: &'r PlainChat) -> Self {
        Asked { model: &request.model, streamed: request.streamed, conversation: None, body: request }
    }
}

impl<'r, B: Serialize> Asked<'r, B> {
    pub(super) fn whole(model: &'r str, body: &'r B) -> Self {
        Asked { model, streamed: false, conversation: None, body }
    }
}

/// The conversation that a request names: where OpenAI's clients put it, or in its metadata. What can be no id is none.
fn conversation(fields: &Map<String, Value>) -> Option<&str> {
    let field = fields.get("conversation");
    let named = field.and_then(|field| field.as_str().or_else(|| field.get("id")?.as_str()));
    named.or_else(|| fields.get("metadata")?.get("conversation_id")?.as_str()).filter(|id| is_safe_name(id))
}

impl Ticket {
    pub(super) fn open<B: Serialize>(log: &Log, ask: &mut Ask, asked: &Asked<'_, B>) -> Self {
        let text = ask.text.take();
        let row = Box::new(RequestRow {
            id: ask.request_id.clone(),
            at: now_ms(),
            project: ask.caller.project.clone(),
            api_key: ask.caller.key_id.clone(),
            endpoint: ask.endpoint.to_string(),
            model: asked.model.to_string(),
            streamed: asked.streamed,
            conversation: asked.conversation.map(str::to_string),
            request: log.bodies.then(|| text.and_then(as_sent).unwrap_or_else(|| to_text(asked.body))),
            ..RequestRow::default()
        });
        let in_flight = log.metrics.begin();
        Ticket {
            row,
            usage: None,
            started: Instant::now(),
            log: log.clone(),
            written: false,
            grant: None,
            calls: Calls::default(),
            _in_flight: in_flight,
        }
    }

    pub(super) fn request_id(&self) -> &str {
        &self.row.id
    }

    /// Whether what is asked and answered is kept.
    pub(super) fn keeps_bodies(&self) -> bool {
        self.log.bodies
    }

    /// The name that was called is known.
    pub(super) fn routed(&mut self, road: &Road) {
        self.row.route.clone_from(&road.name);
    }

    /// The call may be made; what was reserved for it is settled when the row is written.
    pub(super) fn granted(&mut self, grant: Grant) {
        self.grant = Some(grant);
    }

    /// Whether the cache had the reply.
    pub(super) fn looked_up(&mut self, hit: bool) {
        self.row.cache = Some(if hit { "hit" } else { "miss" }.to_string());
    }

    /// A target is called; from now on it is waited for.
    pub(super) fn calls(&mut self, plan: &Plan) {
        self.calls.made += 1;
        self.planned(plan);
        self.waits();
    }

    /// A target is waited for.
    pub(super) fn waits(&mut self) {
        self.calls.waiting.get_or_insert_with(Instant::now);
    }

    /// What was waited for came.
    pub(super) fn came(&mut self) {
        if let Some(since) = self.calls.waiting.take() {
            self.calls.upstream += since.elapsed();
        }
    }

    fn planned(&mut self, plan: &Plan) {
        self.calls.named = Some(plan.named.clone());
        if plan.route.is_some() {
            self.row.route.clone_from(&plan.route);
        }
        self.row.release = plan.release.map(|digest| digest.to_string());
        self.row.provider = plan.provider_name.clone();
        self.row.model = plan.model.clone();
        self.row.adapter = plan.adapter.map(|digest| digest.to_string());
    }

    pub(super) fn first_chunk(&mut self) {
        self.row.first_token_ms = Some(self.elapsed_ms());
    }

    /// Puts down what has been answered so far.
    pub(super) fn answered(&mut self, response: &ChatResponse) {
        self.usage.clone_from(&response.usage);
        self.row.input_tokens = response.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.row.output_tokens = response.usage.as_ref().map(|usage| usage.completion_tokens);
        self.row.finish_reason = response.choices.first().and_then(|choice| choice.finish_reason.clone());
        self.row.reply_id = Some(response.id.clone()).filter(|id| !id.is_empty());
        self.row.reply = self.log.bodies.then(|| to_text(response));
    }

    /// The reply is whole. Returns the milliseconds it took, and what the caller is told.
    pub(super) fn succeed(mut self, response: &ChatResponse) -> (f64, Box<Told>) {
        self.answered(response);
        // 200, as the status of every reply that is not a row of the error table.
        let told = self.close(200, None);
        (told.total_ms, told.told)
    }

    /// The reply goes to the caller as it came. Returns what the caller is told.
    pub(super) fn passed(mut self, body: &Bytes, glance: Glance) -> Box<Told> {
        self.row.finish_reason = glance.finish_reason().map(str::to_string);
        self.row.input_tokens = glance.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.row.output_tokens = glance.usage.as_ref().map(|usage| usage.completion_tokens);
        self.row.reply = if self.log.bodies { as_sent(body.clone()) } else { None };
        self.row.reply_id = Some(glance.id);
        self.usage = glance.usage;
        self.close(200, None).told
    }

    /// The call is done and has no text to keep: vectors, or a count. `read` are the tokens that a model read for it. Returns what the
    /// caller is told.
    pub(super) fn done(mut self, read: Option<u64>) -> Box<Told> {
        self.usage = read.map(|tokens| Usage::new(tokens, 0));
        self.row.input_tokens = read;
        self.row.output_tokens = read.map(|_| 0);
        self.close(200, None).told
    }

    /// The call failed; gives the failure back, with what is known about the call.
    pub(super) fn fail(&mut self, failure: Failure) -> Failure {
        if self.written {
            return failure;
        }
        let code = failure.code();
        failure.of_call(*self.close(code.status, Some(code)).told)
    }

    /// What can be told now, before the end: of a stream that has begun.
    pub(super) fn told_so_far(&self) -> Told {
        let waited = self.calls.upstream + self.calls.waiting.map_or(Duration::ZERO, |since| since.elapsed());
        let ours = self.started.elapsed().saturating_sub(waited);
        Told { attempts: Some(self.calls.made), overhead_ms: Some(millis(ours)), ..self.told() }
    }

    /// What the row tells the caller.
    fn told(&self) -> Told {
        let row = &self.row;
        let cost = row.cost_micro_usd.map(Cost::MicroUsd);
        Told {
            named: self.calls.named.clone(),
            route: row.route.clone(),
            release: row.release.clone(),
            attempts: row.attempts,
            cache: row.cache.clone(),
            cost: cost.unwrap_or_default(),
            overhead_ms: row.overhead_ms,
            queue_ms: row.queue_ms,
        }
    }

    /// Writes the row, if it is not written yet.
    fn write(&mut self, status: u16, code: Option<Code>) {
        if !self.written {
            self.close(status, code);
        }
    }

    /// Puts down the calls that were made, and how the time was spent. What neither a queue nor a target took is ours.
    fn count_calls(&mut self) {
        self.came();
        if self.calls.made == 0 {
            return;
        }
        let upstream = millis(self.calls.upstream);
        self.row.attempts = Some(self.calls.made);
        self.row.upstream_ms = Some(upstream);
        let ours = self.row.total_ms - upstream - self.row.queue_ms.unwrap_or(0.0);
        self.row.overhead_ms = Some((ours.max(0.0) * 1e3).round() / 1e3);
    }

    /// Writes the row.
    fn close(&mut self, status: u16, code: Option<Code>) -> Closed {
        self.written = true;
        self.row.total_ms = self.elapsed_ms();
        self.count_calls();
        self.row.status = status;
        self.row.error_code = code.map(|code| code.name.to_string());
        if let Some(grant) = self.grant.take() {
            grant.settle(self.usage.as_ref(), self.row.cost_micro_usd);
        }
        self.log.metrics.finish(Finished {
            endpoint: &self.row.endpoint,
            provider: &self.row.provider,
            status,
            total_ms: self.row.total_ms,
            first_token_ms: self.row.first_token_ms,
            usage: self.usage.as_ref(),
        });
        let asked = self.calls.named.is_some();
        let mut told = Box::new(self.told());
        if asked && told.cost == Cost::Open {
            told.cost = Cost::Unknown;
        }
        let total_ms = self.row.total_ms;
        if let Some(redactor) = &self.log.redactor {
            redactor.row(&mut self.row);
        }
        self.log.recorder.record(std::mem::take(&mut self.row));
        Closed { total_ms, told }
    }

    fn elapsed_ms(&self) -> f64 {
        millis(self.started.elapsed())
    }
}

/// A row that is written.
struct Closed {
    total_ms: f64,
    told: Box<Told>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let cut = self.log.metrics.serving.is_cut();
        let code = if cut { Code::UNAVAILABLE } else { Code::CANCELLED };
        let code = if std::thread::panicking() { Code::INTERNAL } else { code };
        self.write(code.status, Some(code));
    }
}

/// Milliseconds; microseconds are enough.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A body as it was sent; JSON is UTF-8.
fn as_sent(body: Bytes) -> Option<String> {
    String::from_utf8(body.into()).ok()
}

fn to_text(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("wire bodies are strings, maps and finite numbers: serialising cannot fail")
}
