//! The log row of one call, filled as the call goes on and written exactly once: on success, on failure, or, when the caller went
//! away, on drop.

use super::admission::Grant;
use super::plan::Plan;
use super::pool::Trial;
use super::road::{Permits, Road};
use super::said::{Said, may_choose};
use super::verdict;
use super::{Ask, Log, Setup, size};
use crate::guardrails::Finding;
use crate::monitor::Written;
use crate::monitor::cost::{self, Prices};
use crate::monitor::metrics::InFlight;
use crate::monitor::snapshots::Named;
use crate::monitor::telemetry::{Params, Traced};
use crate::providers::Body;
use crate::store::requests::RequestRow;
use crate::types::blocking::LARGE_BYTES;
use crate::types::chat::{ChatRequest, ChatResponse, Usage};
use crate::types::glance::Glance;
use crate::types::ids::is_safe_name;
use crate::types::plain::PlainChat;
use crate::types::time::now_ms;
use crate::types::told::Cost;
use crate::types::trace::hex;
use crate::types::{Code, Failure, Told};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinHandle};

/// What the log calls an answer of a cascade's first model that was not good enough.
const NOT_TAKEN: &str = "not_accepted";
/// The endpoint whose replies can be stored for the caller.
const STORABLE: &str = "chat.completions";

/// One call being written down.
pub(super) struct Ticket {
    row: Box<RequestRow>,
    /// The request as it was sent, where nobody reads it: it becomes the row's at the end, when nobody else has it any more. A long one
    /// is not copied then; one that came with its head is, because its connection reads the next request into the same room.
    sent: Option<Bytes>,
    usage: Option<Usage>,
    started: Instant,
    log: Log,
    written: bool,
    grant: Option<Grant>,
    calls: Calls,
    prices: Option<Arc<Prices>>,
    /// Bytes of text that the provider has answered.
    heard_bytes: u64,
    /// Nobody sends a bill for this.
    free: bool,
    /// What replies say of what answered is not listened to.
    unheard: bool,
    /// What spans are made of, where the call is recorded.
    traced: Option<Traced>,
    /// The reply that is in the row stays there.
    keeps_reply: bool,
    /// Whether request and reply are in the row as they are to be logged.
    redacted: [bool; 2],
    _in_flight: InFlight,
}

/// The calls of targets that were made for this one.
#[derive(Default)]
struct Calls {
    made: u64,
    /// The target that the row names.
    planned: Option<Arc<Plan>>,
    /// What came of those that do not count, in order.
    failed: Vec<FailedCall>,
    /// Time that targets took: waiting for replies, and for the pieces of streams.
    upstream: Duration,
    /// Since when a target is waited for.
    waiting: Option<Instant>,
    /// Time in queues, and since when in one.
    queued: Duration,
    queueing: Option<Instant>,
    /// When the request must be done.
    due: Option<tokio::time::Instant>,
    /// What the request stays with.
    stays_with: Option<u64>,
    /// The call of a stream under way, with its places at the gates.
    held: Option<(Trial, Permits)>,
    cascade: Option<Cascaded>,
    mended: Option<Box<Mended>>,
}

/// A reply that had to be mended. Each of the two is paid for where it was asked.
struct Mended {
    first: (Arc<Plan>, Usage),
    /// What the second one used, once it is there.
    second: Option<Usage>,
}

/// A call that does not count.
#[derive(Serialize)]
struct FailedCall {
    target: String,
    code: &'static str,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
}

/// How a cascade went.
pub(super) struct Cascaded {
    /// Whether the first model's answer was taken.
    pub(super) accepted: bool,
    /// The target that answers, or would have answered, in its place.
    pub(super) alternative: Arc<Plan>,
    /// What was used beside the reply that counts: by the first model where its answer was not taken, and by the judge.
    pub(super) beside: Vec<(Arc<Plan>, Usage)>,
}

/// Request and reply on their way to being logged.
pub(super) type Redacting = JoinHandle<[Option<String>; 2]>;

/// What was used beside the reply that counts: tokens, what those with a known price cost, and whether that is all of them.
struct Beside {
    tokens: u64,
    cost: i64,
    known: bool,
}

/// What is asked, as far as the log is concerned.
pub(super) struct Asked<'r, B> {
    model: &'r str,
    streamed: bool,
    /// Conversation that it belongs to, as the caller says.
    conversation: Option<&'r str>,
    /// The metadata of a completion that the caller wants to be stored, as JSON.
    stored: Option<String>,
    /// The request, where it was read.
    chat: Option<&'r ChatRequest>,
    /// The request, where it was only looked at.
    plain: Option<&'r PlainChat>,
    /// Whether it is an evaluation's, as its release says.
    is_measured: bool,
    body: &'r B,
}

impl<'r> Asked<'r, ChatRequest> {
    pub(super) fn chat(request: &'r ChatRequest) -> Self {
        let streamed = request.stream.unwrap_or(false);
        Asked {
            model: &request.model,
            streamed,
            conversation: conversation(&request.extra),
            stored: stored(&request.extra),
            chat: Some(request),
            plain: None,
            is_measured: false,
            body: request,
        }
    }

    pub(super) fn measured(request: &'r ChatRequest) -> Self {
        Asked { is_measured: true, ..Asked::chat(request) }
    }
}

impl<'r> Asked<'r, PlainChat> {
    pub(super) fn plain(request: &'r PlainChat) -> Self {
        Asked {
            model: &request.model,
            streamed: request.streamed,
            conversation: None,
            stored: None,
            chat: None,
            plain: Some(request),
            is_measured: false,
            body: request,
        }
    }
}

impl<'r, B: Serialize> Asked<'r, B> {
    pub(super) fn whole(model: &'r str, body: &'r B) -> Self {
        Asked { model, streamed: false, conversation: None, stored: None, chat: None, plain: None, is_measured: false, body }
    }
}

/// The conversation that a request names: where OpenAI's clients put it, or in its metadata. What can be no id is none.
fn conversation(fields: &Map<String, Value>) -> Option<&str> {
    let field = fields.get("conversation");
    let named = field.and_then(|field| field.as_str().or_else(|| field.get("id")?.as_str()));
    named.or_else(|| fields.get("metadata")?.get("conversation_id")?.as_str()).filter(|id| is_safe_name(id))
}

/// The metadata of a request whose completion is to be stored (`store: true`).
fn stored(fields: &Map<String, Value>) -> Option<String> {
    let is_wanted = fields.get("store").and_then(Value::as_bool) == Some(true);
    let metadata = fields.get("metadata").filter(|metadata| metadata.is_object());
    is_wanted.then(|| metadata.map_or_else(|| "{}".to_string(), Value::to_string))
}

impl Ticket {
    pub(super) fn open<B: Serialize>(log: &Log, ask: &mut Ask, asked: &Asked<'_, B>) -> Self {
        let log = Log { bodies: log.bodies && !ask.is_private, ..log.clone() };
        let text = ask.text.take().filter(|_| log.bodies);
        let is_left = asked.plain.is_some() && log.redactor.is_none();
        let (sent, text) = if is_left { (text, None) } else { (None, text) };
        let mut row = Box::new(RequestRow {
            id: ask.request_id.clone(),
            at: now_ms(),
            project: ask.caller.project.clone(),
            api_key: ask.caller.key_id.clone(),
            endpoint: ask.endpoint.to_string(),
            model: asked.model.to_string(),
            streamed: asked.streamed,
            conversation: asked.conversation.map(str::to_string),
            stored: asked.stored.as_ref().filter(|_| log.bodies && ask.endpoint == STORABLE).cloned(),
            request: (log.bodies && sent.is_none()).then(|| text.and_then(as_sent).unwrap_or_else(|| to_text(asked.body))),
            ..RequestRow::default()
        });
        let traced = traced(&log, ask, asked, &mut row);
        let in_flight = log.metrics.begin();
        Ticket {
            row,
            sent,
            usage: None,
            started: Instant::now(),
            log,
            written: false,
            grant: None,
            calls: Calls::default(),
            prices: None,
            heard_bytes: 0,
            free: false,
            unheard: !asked.is_measured && asked.chat.is_some_and(|chat| may_choose(ask, chat)),
            traced,
            keeps_reply: false,
            redacted: [false; 2],
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
        self.calls.due = road.rules.total_timeout.map(|limit| tokio::time::Instant::from_std(self.started) + limit);
    }

    /// What the request stays with, where its road is sticky.
    pub(super) fn sticks(&mut self, key: Option<u64>) {
        self.calls.stays_with = key;
    }

    pub(super) fn stays_with(&self) -> Option<u64> {
        self.calls.stays_with
    }

    /// When the request must be done.
    pub(super) fn due(&self) -> Option<tokio::time::Instant> {
        self.calls.due
    }

    /// A target is called, `times` times more than before; from now on it is waited for.
    pub(super) fn calls(&mut self, plan: &Arc<Plan>, times: u64) {
        self.calls.made += times;
        self.planned(plan);
        self.waits();
    }

    /// A call failed, or its answer was not taken.
    pub(super) fn failed(&mut self, target: &str, code: Code, took: Duration) {
        self.came();
        let (target, ms) = (target.to_string(), millis(took));
        self.calls.failed.push(FailedCall { target, code: code.name, ms, input_tokens: None, output_tokens: None });
    }

    /// A target answered: its reply is the one that counts.
    pub(super) fn answers(&mut self, plan: &Arc<Plan>) {
        self.came();
        self.planned(plan);
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

    pub(super) fn queues(&mut self) {
        self.calls.queueing = Some(Instant::now());
    }

    pub(super) fn leaves_queue(&mut self) {
        if let Some(since) = self.calls.queueing.take() {
            self.calls.queued += since.elapsed();
        }
    }

    /// A stream has begun: its call is over when this ticket is, and must be by then.
    pub(super) fn holds(&mut self, trial: Trial, permits: Permits, due: Option<tokio::time::Instant>) {
        self.calls.held = Some((trial, permits));
        self.calls.due = [self.calls.due, due].into_iter().flatten().min();
    }

    /// A stream that had begun broke.
    pub(super) fn broke(&mut self, failure: &Failure) {
        if let Some((trial, _)) = &mut self.calls.held
            && verdict::of(failure).blames_target
        {
            trial.failed(failure.code().name);
        }
    }

    /// The first model of a cascade answered, but not well enough: its tokens were used for nothing.
    pub(super) fn not_taken(&mut self, target: &str, usage: Option<&Usage>, took: Duration) {
        let [input_tokens, output_tokens] = [usage.map(|usage| usage.prompt_tokens), usage.map(|usage| usage.completion_tokens)];
        self.calls.failed.push(FailedCall { target: target.to_string(), code: NOT_TAKEN, ms: millis(took), input_tokens, output_tokens });
    }

    /// How a cascade went. The one place that knows everything the saving is made of; what it was is put down with the row.
    pub(super) fn cascade(&mut self, cascaded: Cascaded) {
        self.calls.cascade = Some(cascaded);
    }

    /// `accepted` or `escalated`, where there was a cascade.
    fn cascaded(&self) -> Option<&'static str> {
        self.calls.cascade.as_ref().map(|cascaded| if cascaded.accepted { "accepted" } else { "escalated" })
    }

    /// The call may be made; what was reserved for it is settled when the row is written.
    pub(super) fn granted(&mut self, grant: Grant) {
        self.grant = Some(grant);
    }

    /// The prices that the call goes by.
    pub(super) fn priced(&mut self, setup: &Setup) {
        self.prices = Some(setup.prices.clone());
    }

    /// So many bytes of text have come from the provider.
    pub(super) fn heard(&mut self, bytes: u64) {
        self.heard_bytes = bytes;
    }

    /// What a provider counted for a reply that nobody has read yet; it is owed, whatever becomes of the reply.
    pub(super) fn owes(&mut self, response: &ChatResponse) {
        self.usage.clone_from(&response.usage);
        self.heard_bytes = response.text().len() as u64;
    }

    /// What the cache had: `hit`, `semantic` or `miss`.
    pub(super) fn looked_up(&mut self, how: &'static str) {
        self.row.cache = Some(how.to_string());
    }

    /// Whether the reply was given before, and nobody counted tokens for it now.
    fn is_kept(&self) -> bool {
        matches!(self.row.cache.as_deref(), Some("hit" | "semantic"))
    }

    /// The target that the row names.
    pub(super) fn planned(&mut self, plan: &Arc<Plan>) {
        if self.calls.planned.as_ref().is_some_and(|planned| Arc::ptr_eq(planned, plan)) {
            return;
        }
        self.calls.planned = Some(plan.clone());
        // A gated route that is the target of a configured one does not take its name.
        if plan.route.is_some() && self.row.route.is_none() {
            self.row.route.clone_from(&plan.route);
        }
        self.row.release = plan.release.map(|digest| digest.to_string());
        self.row.provider = plan.provider_name.clone();
        self.row.model = plan.model.clone();
        self.row.adapter = plan.adapter.map(|digest| digest.to_string());
        self.row.prompt = plan.prompt.as_ref().map(|prompt| prompt.name.clone());
        self.row.prompt_version = plan.prompt.as_ref().map(|prompt| prompt.version);
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
        self.redacted[0] = false;
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

    /// A reply of a target has to be mended: what it used is owed there, whoever is asked now.
    pub(super) fn mends(&mut self, plan: &Arc<Plan>) {
        let usage = self.usage.take().unwrap_or_else(|| self.guessed());
        self.heard_bytes = 0;
        self.calls.mended = Some(Box::new(Mended { first: (plan.clone(), usage), second: None }));
    }

    /// What the second reply used, whatever is told of both.
    pub(super) fn bills(&mut self, second: &ChatResponse) {
        self.heard_bytes = second.text().len() as u64;
        let usage = second.usage.clone().unwrap_or_else(|| self.guessed());
        if let Some(mended) = &mut self.calls.mended {
            mended.second = Some(usage);
        }
    }

    /// What a call used whose provider does not say, by its bytes.
    fn guessed(&self) -> Usage {
        let read = self.grant.as_ref().map_or(0, Grant::likely_tokens);
        Usage::new(read, size::likely_tokens(self.heard_bytes))
    }

    /// What a target says that it is. Local models are known by their digests.
    pub(super) fn hears(&self, plan: &Plan, said: Option<Said<'_>>) {
        let Some(Said { model, fingerprint }) = said.filter(|_| !self.unheard && plan.provider_name != "local") else { return };
        let named = if self.row.route.is_some() || self.row.endpoint == "eval" { Named::ByUs } else { Named::ByCaller };
        self.log.metrics.snapshots.saw((&plan.provider_name, &plan.model), (model, fingerprint), named);
    }

    /// The row keeps the reply that it has, whatever the caller is told.
    pub(super) fn keep_reply(&mut self) {
        self.keeps_reply = true;
    }

    /// Begins to take out of large bodies what the log is not to have, on a thread where it holds nobody up. None where there is nothing to
    /// do; else [`Ticket::redacted`] takes what comes of it. Small bodies are left to the end, and so is what nobody waited for.
    pub(super) fn redacting(&self) -> Option<Redacting> {
        let redactor = self.log.redactor.clone()?;
        let bodies = [&self.row.request, &self.row.reply].into_iter().zip(self.redacted);
        let large = |(body, done): (&Option<String>, bool)| body.clone().filter(|text| !done && text.len() >= LARGE_BYTES);
        let mut bodies = bodies.map(large);
        let bodies = [bodies.next().flatten(), bodies.next().flatten()];
        let any = bodies.iter().any(Option::is_some);
        any.then(|| tokio::task::spawn_blocking(move || bodies.map(|body| body.map(|text| redactor.body(text)))))
    }

    /// Puts down what [`Ticket::redacting`] made.
    pub(super) fn redacted(&mut self, done: Result<[Option<String>; 2], JoinError>) {
        let [request, reply] = done.unwrap_or_else(|error| {
            tracing::error!(%error, "a body could not be redacted; it is not logged");
            [Some(String::new()), Some(String::new())]
        });
        if request.is_some() {
            (self.row.request, self.redacted[0]) = (request, true);
        }
        if reply.is_some() {
            (self.row.reply, self.redacted[1]) = (reply, true);
            self.keeps_reply = true;
        }
    }

    /// Does both.
    pub(super) async fn redact_large(&mut self) {
        if let Some(redacting) = self.redacting() {
            let done = redacting.await;
            self.redacted(done);
        }
    }

    /// Does both for a reply that is about to be told. What it takes is told as ours.
    pub(super) async fn redact_reply(&mut self, body: &Body) {
        match body {
            Body::Bytes(bytes, _) => self.answers_with(bytes),
            Body::Read(response) => self.answered(response),
        }
        self.redact_large().await;
    }

    /// Whether bodies are searched before they are logged.
    pub(super) fn redacts(&self) -> bool {
        self.log.redactor.is_some() && self.log.bodies
    }

    /// Puts a reply down as it came.
    fn answers_with(&mut self, body: &Bytes) {
        if !self.keeps_reply {
            self.row.reply = if self.log.bodies { as_sent(body.clone()) } else { None };
        }
    }

    /// The reply is whole. Returns the milliseconds it took, and what the caller is told.
    pub(super) fn succeed(mut self, response: &ChatResponse) -> (f64, Box<Told>) {
        self.answered(response);
        if let Some(plan) = self.calls.planned.as_ref().filter(|_| self.calls.held.is_some()) {
            self.hears(plan, Some(Said::by(response)));
        }
        if self.usage.is_none() && self.heard_bytes == 0 {
            self.heard_bytes = response.choices.iter().map(|choice| choice.message.plain_text().len() as u64).sum();
        }
        // 200, as the status of every reply that is not a row of the error table.
        let told = self.close(200, None);
        (told.total_ms, told.told)
    }

    /// The reply goes to the caller as it came. Returns what the caller is told, and what to wait for first: by then the row stands.
    pub(super) fn passed(mut self, body: &Bytes, glance: Glance) -> (Box<Told>, Option<Written>) {
        self.row.finish_reason = glance.finish_reason().map(str::to_string);
        self.row.input_tokens = glance.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.row.output_tokens = glance.usage.as_ref().map(|usage| usage.completion_tokens);
        self.answers_with(body);
        self.row.reply_id = Some(glance.id);
        self.usage = glance.usage;
        self.heard_bytes = body.len() as u64;
        let told = self.finish(200, None).told;
        let row = std::mem::take(&mut self.row);
        // There is nobody to wait for.
        if self.log.metrics.in_flight() <= 1 {
            self.log.recorder.record(row);
            return (told, None);
        }
        (told, self.log.recorder.gather(row))
    }

    /// The call is done and has no text to keep: vectors, or a count. `read` are the tokens that a model read for it. Returns what the
    /// caller is told.
    pub(super) fn done(mut self, read: Option<u64>) -> Box<Told> {
        self.usage = read.map(|tokens| Usage::new(tokens, 0));
        self.free = read.is_none();
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
        let waited = self.calls.upstream + self.calls.queued + self.calls.waiting.map_or(Duration::ZERO, |since| since.elapsed());
        let ours = self.started.elapsed().saturating_sub(waited);
        Told { attempts: Some(self.calls.made).filter(|made| *made > 0), overhead_ms: Some(millis(ours)), ..self.told() }
    }

    /// What the row tells the caller.
    fn told(&self) -> Told {
        let row = &self.row;
        // Where nobody was asked there is nothing to pay for.
        let cost = row.cost_micro_usd.filter(|_| self.calls.planned.is_some()).map(Cost::MicroUsd);
        Told {
            named: self.calls.planned.as_ref().map(|plan| plan.named.clone()),
            route: row.route.clone(),
            release: row.release.clone(),
            prompt: self.calls.planned.as_ref().and_then(|plan| plan.prompt.clone()),
            attempts: row.attempts,
            cache: row.cache.clone(),
            cascade: self.cascaded(),
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

    /// Writes the row.
    fn close(&mut self, status: u16, code: Option<Code>) -> Closed {
        let closed = self.finish(status, code);
        self.log.recorder.record(std::mem::take(&mut self.row));
        closed
    }

    /// Puts everything down that the row is to say.
    fn finish(&mut self, status: u16, code: Option<Code>) -> Closed {
        self.written = true;
        if let Some(sent) = self.sent.take() {
            self.row.request = as_sent(sent);
        }
        self.row.total_ms = self.elapsed_ms();
        self.count_calls();
        self.row.status = status;
        self.row.error_code = code.map(|code| code.name.to_string());
        self.charge();
        self.log.metrics.finish(&self.row);
        let mut told = Box::new(self.told());
        if self.calls.planned.is_some() && told.cost == Cost::Open {
            told.cost = Cost::Unknown;
        }
        let total_ms = self.row.total_ms;
        if let Some(redactor) = &self.log.redactor {
            if let Some(stored) = &mut self.row.stored {
                *stored = redactor.metadata(std::mem::take(stored));
            }
            for (body, done) in [&mut self.row.request, &mut self.row.reply].into_iter().zip(self.redacted) {
                if let Some(text) = body.take_if(|_| !done) {
                    *body = Some(redactor.body(text));
                }
            }
        }
        if let (Some(telemetry), Some(traced)) = (&self.log.telemetry, self.traced.take()) {
            let bodies = (self.row.request.take(), self.row.reply.take());
            let mut row = (*self.row).clone();
            if telemetry.takes_content() {
                (row.request, row.reply) = bodies.clone();
            }
            telemetry.finish(row, traced);
            (self.row.request, self.row.reply) = bodies;
        }
        Closed { total_ms, told }
    }

    /// Puts down the calls that were made, and how the time was spent. What neither a queue nor a target took is ours; in streams that
    /// is also the time in which the caller did not take what had come.
    fn count_calls(&mut self) {
        self.came();
        self.leaves_queue();
        let calls = &mut self.calls;
        calls.held = None;
        let queue_ms = Some(millis(calls.queued)).filter(|ms| *ms > 0.0);
        self.row.queue_ms = queue_ms.or(self.row.queue_ms);
        if calls.made == 0 {
            return;
        }
        self.row.attempts = Some(calls.made);
        self.row.upstream_ms = Some(millis(calls.upstream));
        let ours = self.row.total_ms - millis(calls.upstream) - millis(calls.queued);
        self.row.overhead_ms = Some((ours.max(0.0) * 1e3).round() / 1e3);
        if calls.made > 1 && !calls.failed.is_empty() {
            self.row.attempted = Some(to_text(&calls.failed));
        }
    }

    /// What tokens cost at a target, in micro-dollars; none where the price is not known.
    fn price(&self, plan: &Plan, usage: &Usage) -> Option<i64> {
        let price = self.prices.as_ref()?.of(&plan.provider_name, &plan.model, self.row.at)?;
        Some(price.cost(usage).0)
    }

    /// What was used beside the reply that counts.
    fn beside(&self) -> Beside {
        let cascade = self.calls.cascade.iter().flat_map(|cascaded| &cascaded.beside);
        self.used(cascade.chain(self.calls.mended.iter().map(|mended| &mended.first)))
    }

    fn used<'u>(&self, calls: impl Iterator<Item = &'u (Arc<Plan>, Usage)>) -> Beside {
        let mut beside = Beside { tokens: 0, cost: 0, known: true };
        for (plan, usage) in calls {
            let more = usage.prompt_tokens.saturating_add(usage.completion_tokens);
            beside.tokens = beside.tokens.saturating_add(more);
            match self.price(plan, usage) {
                Some(cost) => beside.cost = beside.cost.saturating_add(cost),
                None => beside.known = false,
            }
        }
        beside
    }

    /// What a cascade saved: less than nothing where its first model was asked in vain. None where a price is not known.
    fn saving(&self, usage: &Usage) -> Option<i64> {
        let Cascaded { accepted, alternative, beside } = self.calls.cascade.as_ref()?;
        let beside = self.used(beside.iter());
        match accepted {
            true => Some(self.price(alternative, usage)? - self.row.cost_micro_usd.filter(|_| beside.known)?),
            false => beside.known.then_some(-beside.cost),
        }
    }

    /// Puts down what the call costs, and settles what was reserved for it.
    fn charge(&mut self) {
        let grant = self.grant.take().unwrap_or_default();
        if let Some(usage) = &self.usage {
            self.row.cached_tokens = cost::cached(usage);
            self.row.cache_write_tokens = cost::cache_written(usage);
            self.row.reasoning_tokens = usage.reasoning_tokens();
        }
        let answered = self.row.error_code.is_none() || self.heard_bytes > 0;
        // A provider that does not say what it counted, or whose stream was cut before it did, still sends a bill.
        let guess = || Usage::new(grant.likely_tokens(), size::likely_tokens(self.heard_bytes));
        let guessed = (self.usage.is_none() && answered && !self.free).then(guess);
        let second = self.calls.mended.as_ref().and_then(|mended| mended.second.clone());
        let billed = second.or_else(|| self.usage.clone()).or(guessed.clone()).filter(|_| !self.row.provider.is_empty());
        let beside = self.beside();
        let Some(usage) = billed else {
            // Refused before anybody was asked, or failed with nothing to show for it but what was asked before.
            self.row.cost_micro_usd = beside.known.then_some(beside.cost);
            return grant.settle(beside.tokens, beside.cost);
        };
        let price = self.prices.as_ref().and_then(|prices| prices.of(&self.row.provider, &self.row.model, self.row.at));
        let cost = price.map(|price| price.cost(&usage).0);
        let marks = [(guessed.is_some(), " (estimated)"), (!beside.known, " (in part)")];
        let marks: String = marks.into_iter().filter_map(|(is, mark)| is.then_some(mark)).collect();
        self.row.price = price.map(|price| format!("{}{marks}", price.name()));
        if self.is_kept() {
            (self.row.cost_micro_usd, self.row.saved_micro_usd) = (Some(0), cost);
            return grant.settle(0, 0);
        }
        // What is known is owed, also where something beside it has no price.
        self.row.cost_micro_usd = cost.map(|cost| cost.saturating_add(beside.cost));
        self.row.saved_micro_usd = self.saving(&usage);
        let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens).saturating_add(beside.tokens);
        grant.settle(tokens, cost.unwrap_or(0).saturating_add(beside.cost));
    }

    fn elapsed_ms(&self) -> f64 {
        millis(self.started.elapsed())
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

/// Puts down the trace that a request belongs to; what to remember of it, where it is recorded.
fn traced<B>(log: &Log, ask: &Ask, asked: &Asked<'_, B>, row: &mut RequestRow) -> Option<Traced> {
    row.trace_id = ask.trace.map(|trace| hex(&trace.trace_id));
    // A request that is sent on as it was written is read only where somebody looks at it.
    let plain = || asked.plain.and_then(|plain| plain.read().ok()).as_ref().map(Params::of);
    let params = || asked.chat.map(Params::of).or_else(plain).unwrap_or_default();
    let (traced, trace_id) = log.telemetry.as_ref()?.begin(&ask.request_id, ask.trace, params)?;
    row.trace_id = Some(trace_id);
    Some(traced)
}

/// A row that is written.
struct Closed {
    total_ms: f64,
    told: Box<Told>,
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
