//! What a reply says of what answered, put down where its call lands: there the target is known that gave it, also of replies that are
//! mended, judged or not taken. And which requests are listened to: those that do not name, by a field of a provider's own, who is to
//! answer. OpenRouter's `models` does, and any caller may send it on.

use super::Ask;
use crate::providers::{Body, Piece, PieceStream, Reply};
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::embeddings::EmbeddingResponse;
use serde_json::Value;

/// What a reply says.
pub(super) struct Said<'r> {
    /// Its `model`.
    pub(super) model: &'r str,
    /// Its `system_fingerprint`.
    pub(super) fingerprint: Option<&'r str>,
}

impl<'r> Said<'r> {
    pub(super) fn by(response: &'r ChatResponse) -> Self {
        Said { model: &response.model, fingerprint: response.extra.get("system_fingerprint").and_then(Value::as_str) }
    }
}

/// What calls come to.
pub(super) trait Says {
    /// What it says of what answered; none where it says nothing, or not yet.
    fn says(&self) -> Option<Said<'_>> {
        None
    }
}

impl Says for Reply {
    fn says(&self) -> Option<Said<'_>> {
        Some(match &self.body {
            Body::Read(response) => Said::by(response),
            Body::Bytes(_, glance) => Said { model: &glance.model, fingerprint: glance.system_fingerprint.as_deref() },
        })
    }
}

/// A stream is heard at its end.
impl Says for (Piece, PieceStream) {}
impl Says for EmbeddingResponse {}
/// A verdict of a moderation.
impl Says for Value {}
/// A count of tokens.
impl Says for u64 {}

/// Whether a field of a request may choose who answers: any that is not known to say only how.
pub(super) fn may_choose(ask: &Ask, request: &ChatRequest) -> bool {
    match &ask.native {
        Some(native) => !native.body.keys().all(|name| is_of_messages(name)),
        None => !request.extra.keys().all(|name| is_of_chat(name)),
    }
}

/// Fields of OpenAI's chat completions beside those that [`ChatRequest`] names, and parameters of sampling.
fn is_of_chat(name: &str) -> bool {
    matches!(
        name,
        "tools"
            | "tool_choice"
            | "parallel_tool_calls"
            | "functions"
            | "function_call"
            | "response_format"
            | "reasoning_effort"
            | "reasoning"
            | "verbosity"
            | "presence_penalty"
            | "frequency_penalty"
            | "repetition_penalty"
            | "logit_bias"
            | "logprobs"
            | "top_logprobs"
            | "top_k"
            | "min_p"
            | "user"
            | "metadata"
            | "store"
            | "conversation"
            | "prompt"
            | "safety_identifier"
            | "prompt_cache_key"
            | "prompt_cache_retention"
            | "service_tier"
            | "modalities"
            | "audio"
            | "prediction"
            | "web_search_options"
    )
}

/// Fields of Anthropic's Messages API.
fn is_of_messages(name: &str) -> bool {
    matches!(
        name,
        "model"
            | "messages"
            | "system"
            | "max_tokens"
            | "stream"
            | "stop_sequences"
            | "temperature"
            | "top_p"
            | "top_k"
            | "tools"
            | "tool_choice"
            | "thinking"
            | "metadata"
            | "cache_control"
            | "container"
            | "context_management"
            | "mcp_servers"
            | "output_config"
            | "output_format"
            | "service_tier"
            | "inference_geo"
            | "diagnostics"
            | "speed"
    )
}
