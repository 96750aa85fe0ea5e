//! `POST /v1/chat/completions`, plain and streamed.

use super::check;
use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::sse::{Encode, data, forwarded};
use crate::gateway::{Gateway, answer};
use crate::inference::AnswerStream;
use crate::providers::{Piece, Protocol};
use crate::types::Failure;
use axum::extract::{Request, State};
use axum::response::Response;

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "chat.completions")?;
    let (gateway, ask, chat) = entry.read(|fields, _| check::chat(fields)).await?;
    let encoder = Chunks { wants_usage: chat.wants_usage() };
    let whole = |answer: crate::inference::Answer| {
        serde_json::to_value(answer.response).expect("a reply is strings, maps and finite numbers: serialising cannot fail")
    };
    answer::chat(&gateway, ask, chat, whole, encoder).await
}

/// `data: {chunk}`, the usage chunk when it was asked for, `data: [DONE]`. A chunk of a provider with the same protocol goes out as
/// it came.
pub(super) struct Chunks {
    pub(super) wants_usage: bool,
}

impl Encode for Chunks {
    fn piece(&mut self, piece: Piece) -> String {
        let raw = piece.raw.filter(|raw| raw.protocol == Protocol::Chat);
        let forwarded = raw.and_then(|raw| forwarded(None, &raw.data));
        forwarded.or_else(|| piece.chunk.map(|chunk| data(&chunk))).unwrap_or_default()
    }

    fn end(&mut self, stream: &AnswerStream) -> String {
        let mut last = stream.usage_chunk().filter(|_| self.wants_usage).map(|chunk| data(&chunk)).unwrap_or_default();
        last.push_str("data: [DONE]\n\n");
        last
    }

    fn failed(&mut self, failure: &Failure) -> String {
        data(&failure.to_json())
    }
}
