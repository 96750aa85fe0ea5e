//! A streamed answer. Chunks pass through as they come, made uniform (the first chunk of a choice names the role, usage travels
//! apart); the log row is written before the end of the stream is reported.

use super::assemble::{Assembly, MAX_KEPT_BYTES};
use super::cache::Keeper;
use super::plan::Plan;
use super::ticket::{Redacting, Ticket};
use crate::providers::{Piece, PieceStream, Protocol, RawEvent};
use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Delta, Usage};
use crate::types::{Code, Digest, Failure, Told, json};
use futures_util::StreamExt;
use serde_json::Value;
use std::future::poll_fn;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// A streamed answer. Dropping it before its end cancels the call at the provider and logs it as cancelled.
pub struct AnswerStream {
    /// Id of the log row.
    pub request_id: String,
    /// Provider that answers.
    pub provider: String,
    /// The provider's model.
    pub model: String,
    /// Adapter that is applied.
    pub adapter: Option<Digest>,
    /// Release that answers, when a route was called.
    pub release: Option<Digest>,
    /// What the caller is told at the first byte.
    pub told: Box<Told>,
    first: Option<Piece>,
    pieces: Option<PieceStream>,
    /// When the stream must have ended.
    due: Option<Instant>,
    so_far: Assembly,
    /// The provider's own chunk of nothing but usage, for the fields that it has besides.
    usage_frame: Option<ChatChunk>,
    ticket: Option<Ticket>,
    /// The end of the stream, where its log row takes a while.
    redacting: Option<Redacting>,
    /// Takes the reply when it is whole, with what answers.
    keeper: Option<(Keeper, Arc<Plan>)>,
}

impl AnswerStream {
    pub(super) fn new(mut ticket: Ticket, plan: Arc<Plan>, first: Piece, pieces: PieceStream) -> Self {
        ticket.first_chunk();
        AnswerStream {
            request_id: ticket.request_id().to_string(),
            provider: plan.provider_name.clone(),
            model: plan.model.clone(),
            adapter: plan.adapter,
            release: plan.release,
            told: Box::new(ticket.told_so_far()),
            first: Some(first),
            pieces: Some(pieces),
            due: ticket.due(),
            so_far: Assembly::new(if ticket.keeps_bodies() { MAX_KEPT_BYTES } else { 0 }),
            usage_frame: None,
            ticket: Some(ticket),
            redacting: None,
            keeper: None,
        }
    }

    /// The stream, kept when it has ended well.
    pub(super) fn keeping(mut self, keeper: Option<(Keeper, Arc<Plan>)>) -> Self {
        if let Some((keeper, _)) = &keeper {
            let logged = self.ticket.as_ref().is_some_and(Ticket::keeps_bodies);
            self.so_far = Assembly::new(keeper.room().max(if logged { MAX_KEPT_BYTES } else { 0 }));
        }
        self.keeper = keeper;
        self
    }

    /// A reply that is there already, as a stream.
    pub(super) fn whole(ticket: Ticket, plan: Arc<Plan>, response: ChatResponse) -> Self {
        let mut pieces = chunks(response).into_iter().map(|chunk| Ok(Piece::from(chunk)));
        let first = pieces.next().and_then(Result::ok).unwrap_or_default();
        AnswerStream::new(ticket, plan, first, futures_util::stream::iter(pieces.collect::<Vec<_>>()).boxed())
    }

    /// The next piece. A chunk that holds nothing but usage is kept for [`AnswerStream::usage_chunk`]. None after the last one, by
    /// which time the log row stands; also after an error.
    pub async fn next(&mut self) -> Option<Result<Piece, Failure>> {
        loop {
            // Kept here while it is waited for: this future may be dropped and made anew.
            if let Some(redacting) = &mut self.redacting {
                let done = redacting.await;
                self.redacting = None;
                if let Some(ticket) = &mut self.ticket {
                    ticket.redacted(done);
                }
                self.succeed();
                return None;
            }
            let next = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.wait().await?,
            };
            match next {
                Some(Ok(piece)) => {
                    let piece = self.pass(piece);
                    if piece.chunk.is_some() || piece.raw.is_some() || piece.passage.is_some() {
                        return Some(Ok(piece));
                    }
                }
                Some(Err(failure)) => return Some(Err(self.fail(failure))),
                None => {
                    self.pieces = None;
                    if let Some((keeper, plan)) = self.keeper.take().filter(|_| self.so_far.is_whole()) {
                        keeper.keep_stream(self.so_far.reply.clone(), plan);
                    }
                    if let Some(ticket) = self.ticket.as_mut().filter(|ticket| ticket.redacts()) {
                        ticket.answered(&self.so_far.reply);
                        self.redacting = ticket.redacting();
                    }
                    if self.redacting.is_none() {
                        self.succeed();
                        return None;
                    }
                }
            }
        }
    }

    /// The stream has ended well.
    fn succeed(&mut self) {
        if let Some(mut ticket) = self.ticket.take() {
            ticket.heard(self.so_far.heard_bytes);
            ticket.succeed(&self.so_far.reply);
        }
    }

    /// The next piece of the provider, the end, or an error; none where the stream is over. The time until it is there is the
    /// provider's.
    async fn wait(&mut self) -> Option<Option<Result<Piece, Failure>>> {
        let (pieces, ticket) = (self.pieces.as_mut()?, &mut self.ticket);
        let came = poll_fn(|context| {
            let polled = pieces.poll_next_unpin(context);
            // What is there already took no time.
            match (ticket.as_mut(), polled.is_pending()) {
                (Some(ticket), true) => ticket.waits(),
                (Some(ticket), false) => ticket.came(),
                (None, _) => {}
            }
            polled
        });
        let came = match self.due {
            None => came.await,
            Some(due) => match timeout_at(due, came).await {
                Ok(came) => came,
                // Nobody's fault: who took the time, the target or the caller, cannot be told. Silence has a limit of its own.
                Err(_) => {
                    let message = format!("{}/{}: the time for the whole reply is over", self.provider, self.model);
                    return Some(Some(Err(Failure::new(Code::UPSTREAM_TIMEOUT, message))));
                }
            },
        };
        let came = came.map(|piece| piece.map_err(Failure::from));
        if let (Some(Err(failure)), Some(ticket)) = (&came, &mut self.ticket) {
            ticket.broke(failure);
        }
        Some(came)
    }

    /// Ends the stream with an error of our own: logs it with what was answered so far, and cancels the call at the provider.
    pub fn fail(&mut self, failure: Failure) -> Failure {
        self.pieces = None;
        self.keeper = None;
        match self.ticket.take() {
            Some(mut ticket) => {
                ticket.heard(self.so_far.heard_bytes);
                ticket.answered(&self.so_far.reply);
                ticket.fail(failure)
            }
            None => failure,
        }
    }

    /// Tokens, once the provider has reported them.
    pub fn usage(&self) -> Option<&Usage> {
        self.so_far.reply.usage.as_ref()
    }

    /// The chunk that `stream_options.include_usage` asks for: no choices, only usage.
    pub fn usage_chunk(&self) -> Option<ChatChunk> {
        let usage = Some(self.usage()?.clone());
        if let Some(frame) = &self.usage_frame {
            return Some(ChatChunk { usage, ..frame.clone() });
        }
        let ChatResponse { id, created, model, .. } = &self.so_far.reply;
        let object = "chat.completion.chunk".into();
        Some(ChatChunk { id: id.clone(), object, created: *created, model: model.clone(), usage, ..ChatChunk::default() })
    }

    fn pass(&mut self, mut piece: Piece) -> Piece {
        if let Some(passage) = &piece.passage {
            self.so_far.add_passage(passage);
        }
        let Some(chunk) = &mut piece.chunk else { return piece };
        // Places in the list of choices that lack the role.
        let mut nameless = Vec::new();
        for (at, choice) in chunk.choices.iter_mut().enumerate() {
            if !self.so_far.knows(choice.index) && choice.delta.role.is_none() {
                choice.delta.role = Some("assistant".into());
                nameless.push(at);
            }
        }
        self.so_far.add(chunk);
        let has_usage = chunk.usage.take().is_some();
        let is_chat = piece.raw.as_ref().is_some_and(|raw| raw.protocol == Protocol::Chat);
        if has_usage && chunk.choices.is_empty() {
            self.usage_frame = piece.chunk.take();
            piece.raw = piece.raw.filter(|_| !is_chat);
        } else if is_chat && (has_usage || !nameless.is_empty()) {
            piece.raw = piece.raw.and_then(|raw| rewritten(raw, &nameless));
        }
        piece
    }
}

/// A whole reply as the chunks of a stream: one for each choice, one for the usage.
fn chunks(response: ChatResponse) -> Vec<ChatChunk> {
    let ChatResponse { id, created, model, choices, usage, extra, .. } = response;
    let frame = ChatChunk { id, object: "chat.completion.chunk".into(), created, model, extra, ..ChatChunk::default() };
    let choice = |choice: Choice| {
        let Choice { index, message, finish_reason, extra } = choice;
        let content = message.content.is_some().then(|| message.plain_text());
        let mut delta = Delta { role: Some(message.role), content, extra: message.extra };
        // In a stream the calls of one message are told apart by their place.
        let calls = delta.extra.get_mut("tool_calls").and_then(Value::as_array_mut);
        for (place, call) in calls.into_iter().flatten().enumerate().filter(|(_, call)| call.is_object()) {
            call["index"] = place.into();
        }
        ChatChunk { choices: vec![ChunkChoice { index, delta, finish_reason, extra }], ..frame.clone() }
    };
    let mut chunks: Vec<_> = choices.into_iter().map(choice).collect();
    chunks.extend(usage.map(|usage| ChatChunk { usage: Some(usage), ..frame.clone() }));
    chunks
}

/// An event of chat completions with the role put in and usage, which has a chunk of its own, taken out. None when it is not to be
/// read as JSON: then it is written anew.
fn rewritten(raw: RawEvent, nameless: &[usize]) -> Option<RawEvent> {
    let mut value = json::read(raw.data.as_bytes(), json::MAX_VALUES).ok()?;
    value.as_object_mut()?.shift_remove("usage");
    for at in nameless {
        let delta = value.get_mut("choices")?.get_mut(*at)?.get_mut("delta").filter(|delta| delta.is_object())?;
        delta["role"] = Value::from("assistant");
    }
    Some(RawEvent { data: value.to_string(), ..raw })
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            // The caller went away: the ticket logs it as cancelled, with what it had been sent.
            ticket.heard(self.so_far.heard_bytes);
            ticket.answered(&self.so_far.reply);
        }
    }
}
