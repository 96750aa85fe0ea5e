//! OpenAI and everything that speaks its chat API. Reading replies is [`upstream`]'s business, connecting [`http`](super::http)'s.

use super::compatible::Quirks;
use super::http::{Http, Service, segment};
use super::sse::Event;
use super::upstream::{self, Decode, Source};
use super::{Call, EmbedCall, ModelInfo, Piece, PieceStream, Protocol, Provider, ProviderError, RawEvent, Reply};
use crate::config::ProviderConfig;
use crate::types::chat::{ChatChunk, ChatResponse, Message};
use crate::types::embeddings::EmbeddingResponse;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

/// Fields of a request that are Refit's own and are not sent on.
pub(super) const OWN_FIELDS: [&str; 3] = ["mock", "prompt", crate::types::messages::SIDE];
/// Fields of a message that another protocol's replies carry and this one's services refuse.
const OWN_MESSAGE_FIELDS: [&str; 3] = ["thinking_blocks", "content_blocks", "is_error"];

/// How a service is spoken to.
pub struct Dialect {
    /// Differences from OpenAI's own API.
    pub quirks: Quirks,
    /// Azure's `api-version`: with it models are deployments, which are named in the path.
    pub api_version: Option<String>,
}

/// One OpenAI-compatible provider.
pub struct OpenAi {
    http: Http,
    dialect: Dialect,
    models: Vec<String>,
}

impl OpenAi {
    /// A provider; nothing is connected yet.
    pub fn new(config: &ProviderConfig, service: Service, dialect: Dialect) -> Self {
        OpenAi { http: Http::new(config, service), dialect, models: config.models.clone() }
    }

    fn path(&self, model: &str, operation: &str) -> String {
        match &self.dialect.api_version {
            Some(version) => format!("/openai/deployments/{}/{operation}?api-version={}", segment(model), segment(version)),
            None => format!("/{operation}"),
        }
    }

    fn body(&self, call: Call, streamed: bool) -> Value {
        let mut request = call.request;
        request.model = call.model;
        request.stream = streamed.then_some(true);
        request.stream_options = None;
        if self.dialect.quirks.old_token_limit {
            request.max_tokens = request.token_limit();
            request.max_completion_tokens = None;
        }
        if self.dialect.quirks.random_seed
            && let Some(seed) = request.seed.take()
        {
            request.extra.insert("random_seed".into(), seed.into());
        }
        OWN_FIELDS.iter().for_each(|field| drop(request.extra.shift_remove(*field)));
        for message in &mut request.messages {
            OWN_MESSAGE_FIELDS.iter().for_each(|field| drop(message.extra.shift_remove(*field)));
            // Signatures are for Gemini alone, which some services have behind this protocol.
            if !request.model.contains("gemini") {
                without_signatures(message);
            }
        }
        let mut body = serde_json::to_value(request).expect("a request is strings, maps and finite numbers: serialising cannot fail");
        if streamed && !self.dialect.quirks.no_stream_options {
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }
}

fn without_signatures(message: &mut Message) {
    message.extra.shift_remove("extra_content");
    for call in message.extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        call.as_object_mut().map(|call| call.shift_remove("extra_content"));
    }
}

impl Provider for OpenAi {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let (source, path) = (self.http.source(&call.model), self.path(&call.model, "chat/completions"));
            let response: ChatResponse = self.http.post_json(&path, &[], &self.body(call, false), &source).await?;
            if response.choices.is_empty() {
                return Err(source.broken("the reply has no choices"));
            }
            Ok(response.into())
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let (source, path) = (self.http.source(&call.model), self.path(&call.model, "chat/completions"));
            let response = self.http.post(&path, &[], &self.body(call, true), &source).await?;
            upstream::read_stream(response, source, self.http.idle_timeout(), Chunks::default()).await
        })
    }

    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        Box::pin(async move {
            let (source, path) = (self.http.source(&call.model), self.path(&call.model, "embeddings"));
            let mut request = call.request;
            request.model = call.model;
            OWN_FIELDS.iter().for_each(|field| drop(request.extra.shift_remove(*field)));
            let body = serde_json::to_value(request).expect("a request is strings, maps and finite numbers: serialising cannot fail");
            self.http.post_json(&path, &[], &body, &source).await
        })
    }

    fn list_models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move {
            if !self.models.is_empty() {
                return Ok(self.models());
            }
            // Azure's classic paths list base models there, which are no deployments.
            if self.dialect.api_version.is_some() {
                return Ok(self.models());
            }
            let list = self.http.get_json("/models", &[]).await?;
            // A bare list at Together.
            let pointer = if list.is_array() { "" } else { "/data" };
            Ok(self.http.named(&list, pointer, "id"))
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        self.models.iter().map(|name| ModelInfo { name: name.clone(), owner: self.http.name().to_string() }).collect()
    }
}

/// `data: {chunk}` up to `data: [DONE]`.
#[derive(Default)]
struct Chunks {
    /// A choice gave its finish reason; a stream that ends before that was cut off.
    whole: bool,
    over: bool,
}

impl Decode for Chunks {
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError> {
        if event.data.trim() == "[DONE]" {
            self.over = true;
            return Ok(Vec::new());
        }
        let unreadable = |error| source.broken(format!("a chunk of the stream is not readable: {error}"));
        let chunk: ChatChunk = serde_json::from_str(&event.data).map_err(unreadable)?;
        if chunk.extra.get("error").is_some_and(|error| !error.is_null()) {
            let body = serde_json::from_str(&event.data).unwrap_or(Value::Null);
            return Err(upstream::from_body(502, &body, source));
        }
        self.whole |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        let raw = RawEvent { protocol: Protocol::Chat, kind: event.kind, data: event.data };
        Ok(vec![Piece { chunk: Some(chunk), raw: Some(raw) }])
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn is_whole(&self) -> bool {
        self.whole
    }
}
