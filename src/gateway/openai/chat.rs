//! `POST /v1/chat/completions`, plain and streamed.

use super::check;
use crate::gateway::body::Json;
use crate::gateway::entry::{CHAT, Entry};
use crate::gateway::error::ApiError;
use crate::gateway::sse::{self, Encode, data, forwarded};
use crate::gateway::{Gateway, answer};
use crate::inference::{AnswerStream, Passed};
use crate::providers::{Piece, Protocol};
use crate::types::Failure;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, CHAT)?;
    let (gateway, ask, chat) = entry.read(|fields, _| check::chat(fields)).await?;
    if chat.stream.unwrap_or(false) {
        let encoder = Chunks { wants_usage: chat.wants_usage() };
        return sse::open(&gateway, ask, chat, encoder).await;
    }
    Ok(match gateway.app.inference.pass(ask, chat).await? {
        Passed::Bytes { body, provider, release, cascade } => {
            let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer::cascaded(answer::told(([kind], body).into_response(), &provider, release), cascade)
        }
        Passed::Answer(read) => {
            answer::cascaded(answer::told(Json(&read.response).into_response(), &read.provider, read.release), read.cascade)
        }
    })
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
