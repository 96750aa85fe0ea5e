//! A streamed answer. Chunks pass through as they come, made uniform (the first chunk of a choice names the role, usage travels
//! apart); the log row is written before the end of the stream is reported.

use super::assemble;
use super::plan::Plan;
use super::ticket::Ticket;
use crate::providers::{Piece, PieceStream, Protocol, RawEvent};
use crate::types::chat::{ChatChunk, ChatResponse, Usage};
use crate::types::{Digest, Failure};
use futures_util::StreamExt;

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
    first: Option<Piece>,
    pieces: Option<PieceStream>,
    reply: ChatResponse,
    ticket: Option<Ticket>,
}

impl AnswerStream {
    pub(super) fn new(mut ticket: Ticket, plan: Plan, first: Piece, pieces: PieceStream) -> Self {
        ticket.first_chunk();
        AnswerStream {
            request_id: ticket.request_id().to_string(),
            provider: plan.provider_name,
            model: plan.model,
            adapter: plan.adapter,
            release: plan.release,
            first: Some(first),
            pieces: Some(pieces),
            reply: ChatResponse::default(),
            ticket: Some(ticket),
        }
    }

    /// The next piece. A chunk that holds nothing but usage is kept for [`AnswerStream::usage_chunk`]. None after the last one, by
    /// which time the log row stands; also after an error.
    pub async fn next(&mut self) -> Option<Result<Piece, Failure>> {
        loop {
            let next = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.pieces.as_mut()?.next().await,
            };
            match next {
                Some(Ok(piece)) => {
                    let piece = self.pass(piece);
                    if piece.chunk.is_some() || piece.raw.is_some() {
                        return Some(Ok(piece));
                    }
                }
                Some(Err(error)) => return Some(Err(self.fail(error.into()))),
                None => {
                    self.pieces = None;
                    self.ticket.take().map(|ticket| ticket.succeed(&self.reply));
                    return None;
                }
            }
        }
    }

    /// Ends the stream with an error of our own: logs it with what was answered so far, and cancels the call at the provider.
    pub fn fail(&mut self, failure: Failure) -> Failure {
        self.pieces = None;
        match self.ticket.take() {
            Some(mut ticket) => {
                ticket.answered(&self.reply);
                ticket.fail(failure)
            }
            None => failure,
        }
    }

    /// Tokens, once the provider has reported them.
    pub fn usage(&self) -> Option<&Usage> {
        self.reply.usage.as_ref()
    }

    /// The chunk that `stream_options.include_usage` asks for: no choices, only usage.
    pub fn usage_chunk(&self) -> Option<ChatChunk> {
        let ChatResponse { id, created, model, .. } = &self.reply;
        self.usage().map(|usage| ChatChunk {
            id: id.clone(),
            object: "chat.completion.chunk".into(),
            created: *created,
            model: model.clone(),
            usage: Some(usage.clone()),
            ..ChatChunk::default()
        })
    }

    fn pass(&mut self, mut piece: Piece) -> Piece {
        let Some(chunk) = &mut piece.chunk else { return piece };
        let mut changed = false;
        for choice in &mut chunk.choices {
            let known = self.reply.choices.iter().any(|known| known.index == choice.index);
            if !known && choice.delta.role.is_none() {
                choice.delta.role = Some("assistant".into());
                changed = true;
            }
        }
        assemble::add(&mut self.reply, chunk);
        let only_usage = chunk.usage.take().is_some() && chunk.choices.is_empty();
        let is_chat = |raw: &RawEvent| raw.protocol == Protocol::Chat;
        if only_usage {
            piece.chunk = None;
        }
        if (changed || only_usage) && piece.raw.as_ref().is_some_and(is_chat) {
            piece.raw = None;
        }
        piece
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            // The caller went away: the ticket logs it as cancelled, with what it had been sent.
            ticket.answered(&self.reply);
        }
    }
}
