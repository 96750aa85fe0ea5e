//! Places that answer model calls, behind one small trait. Adding one: a new file and a word in [`registry`]; OpenAI-compatible
//! services are rows in [`compatible`].

pub mod compatible;
#[cfg(feature = "local")]
pub mod local;
pub mod mock;
pub mod openai;
pub mod registry;
pub mod sse;
mod upstream;

pub use registry::Providers;

use crate::types::chat::{ChatChunk, ChatRequest, ChatResponse};
use crate::types::traits::CountTokens;
use crate::types::{Code, Coded, Digest};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
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
    /// The request; its `model` field still holds what the caller wrote, providers send `model` above.
    pub request: ChatRequest,
}

/// A model that a provider offers, for `/v1/models`.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name after the slash.
    pub name: String,
    /// Who owns it.
    pub owner: String,
}

/// Chunks of a streamed reply. Dropping it cancels the call.
pub type ChunkStream = BoxStream<'static, Result<ChatChunk, ProviderError>>;

/// A place that answers model calls.
pub trait Provider: Send + Sync {
    /// A whole reply. Always carries `usage`.
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<ChatResponse, ProviderError>>;

    /// A streamed reply. The future resolves when the provider accepted the call; the last chunk carries `usage` where the provider
    /// reports it, whether or not the client asked (the gateway strips it).
    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<ChunkStream, ProviderError>>;

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
