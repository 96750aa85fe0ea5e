//! The log row of one call, filled as the call goes on and written exactly once: on success, on failure, or, when the caller went
//! away, on drop.

use super::admission::Grant;
use super::plan::Plan;
use super::road::Road;
use super::{Ask, Log};
use crate::guardrails::Finding;
use crate::monitor::metrics::{Finished, InFlight};
use crate::store::requests::RequestRow;
use crate::types::chat::{ChatRequest, ChatResponse, Usage};
use crate::types::glance::Glance;
use crate::types::plain::PlainChat;
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use bytes::Bytes;
use serde::Serialize;
use std::time::Instant;

/// One call being written down.
pub(super) struct Ticket {
    row: Box<RequestRow>,
    usage: Option<Usage>,
    started: Instant,
    log: Log,
    written: bool,
    grant: Option<Grant>,
    /// The reply that is in the row stays there.
    keeps_reply: bool,
    _in_flight: InFlight,
}

/// What is asked, as far as the log is concerned.
pub(super) struct Asked<'r, B> {
    model: &'r str,
    streamed: bool,
    body: &'r B,
}

impl<'r> Asked<'r, ChatRequest> {
    pub(super) fn chat(request: &'r ChatRequest) -> Self {
        Asked { model: &request.model, streamed: request.stream.unwrap_or(false), body: request }
    }
}

impl<'r> Asked<'r, PlainChat> {
    pub(super) fn plain(request: &'r PlainChat) -> Self {
        Asked { model: &request.model, streamed: request.streamed, body: request }
    }
}

impl<'r, B: Serialize> Asked<'r, B> {
    pub(super) fn whole(model: &'r str, body: &'r B) -> Self {
        Asked { model, streamed: false, body }
    }
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
            keeps_reply: false,
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

    pub(super) fn planned(&mut self, plan: &Plan) {
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
        if !self.keeps_reply {
            self.row.reply = self.log.bodies.then(|| to_text(response));
        }
    }

    /// Takes the request's body out of the row, until guardrails have seen it: a call that ends before has none.
    pub(super) fn hold_body(&mut self) -> Option<String> {
        self.row.request.take()
    }

    /// Puts it back as it came.
    pub(super) fn show_body(&mut self, body: Option<String>) {
        self.row.request = body;
    }

    /// Puts the body down as guardrails left it.
    pub(super) fn show(&mut self, request: &impl Serialize) {
        self.row.request = self.log.bodies.then(|| to_text(request));
    }

    /// What guardrails found so far.
    pub(super) fn found(&mut self, findings: &[Finding]) {
        self.row.guardrails = Some(to_text(&findings));
    }

    /// Tokens of a reply that may not be told.
    pub(super) fn spent(&mut self, usage: Option<&Usage>) {
        self.usage = usage.cloned();
        self.row.input_tokens = usage.map(|usage| usage.prompt_tokens);
        self.row.output_tokens = usage.map(|usage| usage.completion_tokens);
    }

    /// The row keeps the reply that it has, whatever the caller is told.
    pub(super) fn keep_reply(&mut self) {
        self.keeps_reply = true;
    }

    /// The reply is whole. Returns the milliseconds it took.
    pub(super) fn succeed(mut self, response: &ChatResponse) -> f64 {
        self.answered(response);
        // 200, as the status of every reply that is not a row of the error table.
        self.row.total_ms = self.elapsed_ms();
        let took = self.row.total_ms;
        self.write(200, None);
        took
    }

    /// The reply goes to the caller as it came.
    pub(super) fn passed(mut self, body: &Bytes, glance: Glance) {
        self.row.finish_reason = glance.finish_reason().map(str::to_string);
        self.row.input_tokens = glance.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.row.output_tokens = glance.usage.as_ref().map(|usage| usage.completion_tokens);
        self.row.reply = if self.log.bodies { as_sent(body.clone()) } else { None };
        self.usage = glance.usage;
        self.write(200, None);
    }

    /// The call is done and has no text to keep: vectors, or a count. `read` are the tokens that a model read for it.
    pub(super) fn done(mut self, read: Option<u64>) {
        self.usage = read.map(|tokens| Usage::new(tokens, 0));
        self.row.input_tokens = read;
        self.row.output_tokens = read.map(|_| 0);
        self.write(200, None);
    }

    /// The call failed; gives the failure back.
    pub(super) fn fail(&mut self, failure: Failure) -> Failure {
        self.write(failure.code().status, Some(failure.code()));
        failure
    }

    fn write(&mut self, status: u16, code: Option<Code>) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        self.row.total_ms = self.elapsed_ms();
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
        self.log.recorder.record(std::mem::take(&mut self.row));
    }

    fn elapsed_ms(&self) -> f64 {
        // Microseconds are enough.
        (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let cut = self.log.metrics.serving.is_cut();
        let code = if cut { Code::UNAVAILABLE } else { Code::CANCELLED };
        let code = if std::thread::panicking() { Code::INTERNAL } else { code };
        self.write(code.status, Some(code));
    }
}

/// A body as it was sent; JSON is UTF-8.
fn as_sent(body: Bytes) -> Option<String> {
    String::from_utf8(body.into()).ok()
}

fn to_text(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("wire bodies are strings, maps and finite numbers: serialising cannot fail")
}
