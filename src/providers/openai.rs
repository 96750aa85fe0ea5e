//! OpenAI and everything that speaks its chat API: [`request`] writes what a service takes, [`reply`] reads what it answers. Bytes are
//! [`upstream`]'s business, connections [`http`](super::http)'s.

mod reply;
mod request;

use super::compatible::Quirks;
use super::http::{Http, Service, Text, is_dots, segment};
use super::upstream::{self, Source};
use super::{Body, Call, EmbedCall, Manage, ModelInfo, ModerateCall, PieceStream, Provider, ProviderError, Reply};
use crate::config::ProviderConfig;
use crate::types::Code;
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::embeddings::EmbeddingResponse;
use crate::types::glance::Glance;
use crate::types::plain::PlainChat;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// Fields of a request that are Refit's own and are not sent on.
pub(super) const OWN_FIELDS: [&str; 3] = ["mock", "prompt", crate::types::messages::SIDE];

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

    /// Where an operation lies.
    ///
    /// # Errors
    /// [`Code::MODEL_NOT_FOUND`] for a deployment whose name would lead elsewhere.
    fn path(&self, model: &str, operation: &str, source: &Source) -> Result<String, ProviderError> {
        let Some(version) = &self.dialect.api_version else { return Ok(format!("/{operation}")) };
        if is_dots(model) {
            let mut error = source.error(Code::MODEL_NOT_FOUND, format!("there is no deployment named \"{model}\""));
            error.param = Some("model".into());
            return Err(error);
        }
        Ok(format!("/openai/deployments/{}/{operation}?api-version={}", segment(model), segment(version)))
    }
}

impl OpenAi {
    /// The body of a call.
    fn written(&self, plain: Option<PlainChat>, request: ChatRequest, model: String, streamed: bool) -> Text {
        let quirks = &self.dialect.quirks;
        let Some(plain) = plain else {
            let body = request::body(request, model, streamed, quirks);
            let text = serde_json::to_vec(&body);
            return Text::from(text.expect("a request is strings, maps and finite numbers: serialising cannot fail"));
        };
        Text(plain.sent(&model, !quirks.no_stream_options))
    }
}

/// A reply that has to be read as a whole.
fn read(bytes: &[u8], source: &Source) -> Result<Reply, ProviderError> {
    let mut value = upstream::as_json(bytes, source)?;
    reply::fit(&mut value);
    if value.get("choices").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        // A success without an answer may say why.
        let says = ["message", "detail"].iter().any(|name| value.get(*name).is_some_and(|text| !text.is_null()));
        let broken = || source.broken("the reply has no choices");
        return Err(if says { upstream::from_body(upstream::IN_SUCCESS, &value, source) } else { broken() });
    }
    let response: ChatResponse = upstream::fitting(value, source)?;
    Ok(response.into())
}

impl Provider for OpenAi {
    fn takes_plain(&self) -> bool {
        // These have parameters of a plain request under other names.
        !self.dialect.quirks.old_token_limit && !self.dialect.quirks.random_seed
    }

    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let path = self.path(&call.model, "chat/completions", &source)?;
            let body = self.written(call.plain, call.request, call.model, false);
            let bytes = self.http.post_bytes(&path, body, &source).await?;
            match call.takes_bytes.then(|| Glance::of(&bytes)).flatten() {
                Some(glance) => Ok(Reply { body: Body::Bytes(bytes, glance), native: None }),
                None => read(&bytes, &source),
            }
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let path = self.path(&call.model, "chat/completions", &source)?;
            let body = self.written(call.plain, call.request, call.model, true);
            let response = self.http.post_text(&path, &HeaderMap::new(), body, &source).await?;
            upstream::read_stream(response, source, self.http.idle_timeout(), reply::Chunks::new(call.takes_bytes)).await
        })
    }

    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let path = self.path(&call.model, "embeddings", &source)?;
            let mut request = call.request;
            request.model = call.model;
            OWN_FIELDS.iter().for_each(|field| drop(request.extra.shift_remove(*field)));
            let body = serde_json::to_value(request).expect("a request is strings, maps and finite numbers: serialising cannot fail");
            self.http.post_json(&path, &HeaderMap::new(), &body, &source).await
        })
    }

    fn moderate(&self, call: ModerateCall) -> BoxFuture<'_, Result<Value, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let path = self.path(&call.model, "moderations", &source)?;
            let mut request = call.request;
            request.insert("model".into(), call.model.into());
            self.http.post_json(&path, &HeaderMap::new(), &Value::Object(request), &source).await
        })
    }

    fn manage(&self, path: &str, call: Manage) -> BoxFuture<'_, Result<Value, ProviderError>> {
        let path = match &self.dialect.api_version {
            None => path.to_string(),
            Some(version) => {
                let join = if path.contains('?') { '&' } else { '?' };
                format!("/openai{path}{join}api-version={}", segment(version))
            }
        };
        Box::pin(async move { self.http.manage(&path, call).await })
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
            let list = self.http.get_json("/models", &HeaderMap::new()).await?;
            // A bare list at Together.
            let pointer = if list.is_array() { "" } else { "/data" };
            Ok(self.http.named(&list, pointer, "id"))
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        self.models.iter().map(|name| ModelInfo { name: name.clone(), owner: self.http.name().to_string() }).collect()
    }
}
