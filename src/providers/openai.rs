//! OpenAI and everything that speaks its chat API. Redirects are not followed, so that a key is only ever sent to the origin of
//! its base URL; what the caller sends decides neither address nor headers. Reading replies is [`upstream`](super)'s business.

use super::compatible::Quirks;
use super::upstream::{self, Source};
use super::{Call, ChunkStream, ModelInfo, Provider, ProviderError};
use crate::config::{ProviderConfig, Secret};
use crate::types::Code;
use crate::types::chat::ChatResponse;
use futures_util::future::BoxFuture;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use std::sync::OnceLock;
use std::time::Duration;

/// Fields of a request that are Refit's own and are not sent on.
const OWN_FIELDS: [&str; 2] = ["mock", "prompt"];

/// Where a provider is and how it is spoken to.
pub struct Endpoint {
    /// Base URL without a slash at the end.
    pub base_url: String,
    /// API key, bound to this base URL.
    pub key: Option<Secret>,
    /// Variable in which the key is looked for, for the message when it is missing; `None` where none is needed.
    pub key_variable: Option<&'static str>,
    /// Differences from OpenAI's own API.
    pub quirks: Quirks,
}

/// One OpenAI-compatible provider.
pub struct OpenAi {
    name: String,
    endpoint: Endpoint,
    models: Vec<String>,
    connect_timeout: Duration,
    timeout: Duration,
    idle_timeout: Duration,
    client: OnceLock<reqwest::Client>,
}

impl OpenAi {
    /// A provider; nothing is connected yet.
    pub fn new(config: &ProviderConfig, endpoint: Endpoint) -> Self {
        OpenAi {
            name: config.name.clone(),
            endpoint,
            models: config.models.clone(),
            connect_timeout: Duration::from_secs(config.connect_timeout_s),
            timeout: Duration::from_secs(config.timeout_s),
            idle_timeout: Duration::from_secs(config.idle_timeout_s),
            client: OnceLock::new(),
        }
    }

    /// Sends the call; the reply's head has arrived and is a success.
    async fn send(&self, call: Call, streamed: bool) -> Result<(reqwest::Response, Source), ProviderError> {
        let source = Source { provider: self.name.clone(), model: call.model.clone(), key: self.endpoint.key.clone() };
        if self.endpoint.key.is_none()
            && let Some(variable) = self.endpoint.key_variable
        {
            return Err(missing_key(&self.name, variable));
        }
        let url = format!("{}/chat/completions", self.endpoint.base_url);
        let mut request = self.client()?.post(url).json(&self.body(call, streamed));
        if let Some(key) = &self.endpoint.key {
            request = request.bearer_auth(key.expose());
        }
        let sent = tokio::time::timeout(self.timeout, request.send()).await;
        let response = sent.map_err(|_| source.timed_out(self.timeout))?.map_err(|error| source.unreachable(error))?;
        if response.status().is_success() { Ok((response, source)) } else { Err(upstream::refusal(response, &source).await) }
    }

    fn client(&self) -> Result<&reqwest::Client, ProviderError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let builder = reqwest::Client::builder().redirect(Policy::none()).connect_timeout(self.connect_timeout).tcp_nodelay(true);
        let client = builder.user_agent(concat!("refit/", env!("CARGO_PKG_VERSION"))).pool_idle_timeout(Duration::from_secs(50)).build();
        let client = client.map_err(|error| ProviderError::new(Code::INTERNAL, format!("cannot set up TLS for {}: {error}", self.name)))?;
        Ok(self.client.get_or_init(|| client))
    }

    fn body(&self, call: Call, streamed: bool) -> Value {
        let mut request = call.request;
        request.model = call.model;
        request.stream = streamed.then_some(true);
        request.stream_options = None;
        if self.endpoint.quirks.old_token_limit {
            request.max_tokens = request.token_limit();
            request.max_completion_tokens = None;
        }
        OWN_FIELDS.iter().for_each(|field| drop(request.extra.shift_remove(*field)));
        let mut body = serde_json::to_value(request).expect("a request is strings, maps and finite numbers: serialising cannot fail");
        if streamed && !self.endpoint.quirks.no_stream_options {
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }
}

impl Provider for OpenAi {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<ChatResponse, ProviderError>> {
        Box::pin(async move {
            let (response, source) = self.send(call, false).await?;
            let read = tokio::time::timeout(self.timeout, upstream::read_reply(response, &source)).await;
            read.map_err(|_| source.timed_out(self.timeout))?
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<ChunkStream, ProviderError>> {
        Box::pin(async move {
            let (response, source) = self.send(call, true).await?;
            Ok(upstream::read_stream(response, source, self.idle_timeout))
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        self.models.iter().map(|name| ModelInfo { name: name.clone(), owner: self.name.clone() }).collect()
    }
}

fn missing_key(provider: &str, variable: &str) -> ProviderError {
    let mut error = ProviderError::new(Code::UNSUPPORTED, format!("the provider \"{provider}\" has no API key on this server"));
    error.param = Some("model".into());
    error.hint = Some(format!("start refit with {variable} set, or name another variable under [providers.{provider}] in refit.toml"));
    error
}
