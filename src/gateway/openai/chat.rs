//! `POST /v1/chat/completions`, plain and streamed.

use super::{check, prompt};
use crate::gateway::Gateway;
use crate::gateway::answer::{self, tell};
use crate::gateway::body::Json;
use crate::gateway::entry::{CHAT, Entry};
use crate::gateway::error::ApiError;
use crate::gateway::sse::{self, Encode, data, forwarded};
use crate::inference::{Answer, AnswerStream, Ask, Passed};
use crate::providers::{Piece, Protocol};
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use crate::types::plain::PlainChat;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    answer(Entry::of(&gateway, request, CHAT)?).await
}

/// Answers a chat request.
pub(in crate::gateway) async fn answer(entry: Entry) -> Result<Response, ApiError> {
    let entry = if entry.is_read() { entry } else { Box::pin(entry.whole_body()).await? };
    match entry.plain() {
        // What is common stays small: the futures of all that is not are made when they are needed.
        Some(plain) if plain.streamed => Box::pin(stream_plain(entry, plain)).await,
        Some(plain) => {
            let (gateway, ask) = entry.begun();
            Ok(written(gateway.app.inference.pass_plain(ask, plain).await?))
        }
        None => Box::pin(read(entry)).await,
    }
}

/// Answers a request that has to be read.
async fn read(entry: Entry) -> Result<Response, ApiError> {
    let checked = entry.read(|fields, _| Ok((prompt::is_litellm(&fields), check::chat(fields)?)));
    let (gateway, ask, (is_litellm, chat)) = checked.await?;
    let answered = if prompt::is_called(&chat.extra) { called(&gateway, ask, chat).await } else { read_chat(&gateway, ask, chat).await };
    answered.map_err(|ApiError(failure)| if is_litellm { prompt::litellm_names().told(failure) } else { failure }.into())
}

async fn read_chat(gateway: &Gateway, ask: Ask, chat: ChatRequest) -> Result<Response, ApiError> {
    if chat.stream.unwrap_or(false) {
        let encoder = Chunks { wants_usage: chat.wants_usage() };
        return sse::open(gateway, ask, chat, encoder).await;
    }
    Ok(written(gateway.app.inference.pass(ask, chat).await?))
}

/// Answers a request that calls a prompt by its name; a whole reply says which version was rendered, a stream in its header.
pub(in crate::gateway) async fn called(gateway: &Gateway, ask: Ask, chat: ChatRequest) -> Result<Response, ApiError> {
    let encoder = Chunks { wants_usage: chat.wants_usage() };
    let whole = |answer: Answer| {
        let mut reply = answer.response;
        if let Some(prompt) = &answer.prompt {
            reply.extra.insert("prompt".into(), prompt::echoed(prompt));
        }
        json!(reply)
    };
    answer::chat(gateway, ask, chat, whole, encoder).await
}

async fn stream_plain(entry: Entry, plain: PlainChat) -> Result<Response, ApiError> {
    let Entry { gateway, ask, .. } = entry;
    let encoder = Chunks { wants_usage: plain.wants_usage };
    let inference = gateway.app.inference.clone();
    sse::open_with(&gateway, Box::pin(async move { inference.stream_plain(ask, plain).await }), encoder).await
}

fn written(passed: Passed) -> Response {
    match passed {
        Passed::Bytes { body, told } => {
            let mut response = tell(Response::new(Body::from(body)), &told);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Passed::Answer(read) => tell(Json(&read.response).into_response(), &read.told),
    }
}

/// `data: {chunk}`, the usage chunk when it was asked for, `data: [DONE]`. A chunk of a provider with the same protocol goes out as
/// it came.
pub(super) struct Chunks {
    pub(super) wants_usage: bool,
}

impl Encode for Chunks {
    fn piece(&mut self, piece: Piece) -> String {
        if let Some(passage) = piece.passage {
            return passage.events;
        }
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
