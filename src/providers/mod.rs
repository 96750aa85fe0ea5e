//! Places that answer model calls, behind one small trait. Adding one: a new file and a word in [`registry`]; OpenAI-compatible
//! services are rows in [`compatible`].

pub mod anthropic;
pub mod azure;
pub mod compatible;
pub mod gemini;
mod http;
#[cfg(feature = "local")]
pub mod local;
pub mod manage;
pub mod mock;
pub mod openai;
mod received;
pub mod registry;
pub mod sse;
mod upstream;
mod wire;

pub use manage::Manage;
pub use registry::Providers;

use crate::types::asker::Asker;
use crate::types::chat::{ChatChunk, ChatRequest, ChatResponse};
use crate::types::embeddings::{EmbeddingRequest, EmbeddingResponse};
use crate::types::glance::Glance;
use crate::types::plain::PlainChat;
use crate::types::traits::CountTokens;
use crate::types::{Code, Coded, Digest};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// One model call, ready for a provider.
#[derive(Debug, Clone)]
pub struct Call {
    /// The provider's own model name (without `provider/`).
    pub model: String,
    /// Local providers: digest of the model file that a release pins; without it the file that has the name now.
    pub model_digest: Option<Digest>,
    /// Local providers: digest of the adapter to apply.
    pub adapter: Option<Digest>,
    /// Who asks: local models are shared out fairly.
    pub asker: Asker,
    /// The request; its `model` field still holds what the caller wrote, providers send `model` above.
    pub request: ChatRequest,
    /// The same request as the caller wrote it, where that was in another protocol: a provider that speaks it sends this on instead.
    pub native: Option<Native>,
    /// The caller takes a chat completion as bytes: a provider may answer [`Body::Bytes`], and stream a [`Passage`].
    pub takes_bytes: bool,
    /// The request as it was written, in the place of `request`, for providers that [take it](Provider::takes_plain).
    pub plain: Option<PlainChat>,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// Anthropic's `/v1/messages`.
    Messages,
}

/// A request body in a protocol other than chat completions.
#[derive(Debug, Clone)]
pub struct Native {
    /// The protocol.
    pub protocol: Protocol,
    /// Version of the protocol that the caller speaks, one of a closed list.
    pub version: &'static str,
    /// The body, `model` as the caller wrote it.
    pub body: Map<String, Value>,
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    /// As a chat completion.
    pub body: Body,
    /// As the provider sent it, where that is the protocol of [`Call::native`].
    pub native: Option<Value>,
}

/// A chat completion.
#[derive(Debug)]
pub enum Body {
    /// Read; always carries `usage` where the provider reports it.
    Read(ChatResponse),
    /// As it came and as it goes to the caller, with what the log needs of it.
    Bytes(Bytes, Glance),
}

impl From<ChatResponse> for Reply {
    fn from(response: ChatResponse) -> Self {
        Reply { body: Body::Read(response), native: None }
    }
}

/// One piece of a streamed reply: what it adds to the completion, and the event it came in.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// As a chat chunk; none for events that add nothing (`ping`).
    pub chunk: Option<ChatChunk>,
    /// The event as it came, where the caller speaks its protocol and nothing needs changing.
    pub raw: Option<RawEvent>,
    /// In the place of both: events that go on without being read as chunks.
    pub passage: Option<Box<Passage>>,
}

impl From<ChatChunk> for Piece {
    fn from(chunk: ChatChunk) -> Self {
        Piece { chunk: Some(chunk), ..Piece::default() }
    }
}

/// Events of chat completions that came together and go on together, as they are: for a caller that takes
/// [bytes](Call::takes_bytes).
#[derive(Debug, Clone, Default)]
pub struct Passage {
    /// The events as they are sent, `data: …` and a blank line each.
    pub events: String,
    /// What they say, by choice. The choices have been seen in a chunk before.
    pub said: Vec<Said>,
}

/// What a choice says in a passage.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// The choice.
    pub index: u32,
    /// Its text.
    pub text: String,
    /// Why it ended, if it did.
    pub finish_reason: Option<String>,
}

/// An event of an upstream stream, to be forwarded as it is.
#[derive(Debug, Clone)]
pub struct RawEvent {
    /// The protocol that it is written in.
    pub protocol: Protocol,
    /// `event:`; `message` stands for none.
    pub kind: Cow<'static, str>,
    /// `data:`.
    pub data: String,
}

/// A model that a provider offers, for `/v1/models`.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name after the slash.
    pub name: String,
    /// Who owns it.
    pub owner: String,
}

/// Pieces of a streamed reply. Dropping it cancels the call.
pub type PieceStream = BoxStream<'static, Result<Piece, ProviderError>>;

/// An embeddings call, ready for a provider.
#[derive(Debug, Clone)]
pub struct EmbedCall {
    /// The provider's own model name.
    pub model: String,
    /// Local providers: digest of the model that a release pins; without it the one that has the name now.
    pub model_digest: Option<Digest>,
    /// The request; its `model` field still holds what the caller wrote.
    pub request: EmbeddingRequest,
}

/// A moderation call, ready for a provider.
#[derive(Debug, Clone)]
pub struct ModerateCall {
    /// The provider's own model name.
    pub model: String,
    /// The body of `/v1/moderations`; `model` in it is what the caller wrote, if anything.
    pub request: Map<String, Value>,
}

/// A place that answers model calls.
pub trait Provider: Send + Sync {
    /// A whole reply.
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>>;

    /// A streamed reply. The future resolves when the provider accepted the call; the last chunk carries `usage` where the provider
    /// reports it, whether or not the client asked (the gateway strips it).
    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>>;

    /// Whether a plain request may be given as it was written, in [`Call::plain`].
    fn takes_plain(&self) -> bool {
        false
    }

    /// Vectors of texts.
    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        let message = format!("\"{}\" is at a provider that makes no embeddings", call.model);
        Box::pin(async move { Err(ProviderError { param: Some("model".into()), ..ProviderError::new(Code::UNSUPPORTED, message) }) })
    }

    /// What a model thinks of texts: the body of a reply of `/v1/moderations`.
    fn moderate(&self, call: ModerateCall) -> BoxFuture<'_, Result<Value, ProviderError>> {
        let message = format!("\"{}\" is at a provider that judges no texts", call.model);
        Box::pin(async move { Err(ProviderError { param: Some("model".into()), ..ProviderError::new(Code::UNSUPPORTED, message) }) })
    }

    /// Tokens of a request's prompt, as the model would count them.
    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        let message = format!("the tokens of a request to \"{}\" cannot be counted at this provider", call.model);
        Box::pin(async move { Err(ProviderError { param: Some("model".into()), ..ProviderError::new(Code::UNSUPPORTED, message) }) })
    }

    /// A call of the service's own administration, at a path such as `/fine_tuning/jobs`.
    fn manage(&self, path: &str, _call: Manage) -> BoxFuture<'_, Result<Value, ProviderError>> {
        let message = format!("this provider takes no files and trains nothing ({path})");
        Box::pin(async move { Err(ProviderError { param: Some("model".into()), ..ProviderError::new(Code::UNSUPPORTED, message) }) })
    }

    /// Models as the service lists them now.
    fn list_models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move { Ok(self.models()) })
    }

    /// Models that can be listed without a network call.
    fn models(&self) -> Vec<ModelInfo>;

    /// A counter of a model's tokens, where they can be counted without a call.
    fn counter(&self, model: &str) -> BoxFuture<'_, Result<Arc<dyn CountTokens>, ProviderError>> {
        let message = format!("the tokens of \"{model}\" cannot be counted here");
        Box::pin(async move { Err(ProviderError::new(Code::UNSUPPORTED, message)) })
    }
}

/// What can go wrong at a provider. `code` decides the status the caller sees; nothing upstream-secret is in `message`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ProviderError {
    /// Row of the error table.
    pub code: Code,
    /// What failed, naming provider and model.
    pub message: String,
    /// Field at fault, when the provider names one.
    pub param: Option<String>,
    /// Way out.
    pub hint: Option<String>,
    /// Seconds until a retry makes sense.
    pub retry_after_s: Option<u32>,
}

impl ProviderError {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        ProviderError { code, message: message.into(), param: None, hint: None, retry_after_s: None }
    }
}

impl Coded for ProviderError {
    fn code(&self) -> Code {
        self.code
    }
    fn param(&self) -> Option<String> {
        self.param.clone()
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
    fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s.map(u64::from)
    }
}
