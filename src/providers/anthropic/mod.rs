//! Anthropic's Messages API. [`request`] writes chat completions as messages, [`reply`] and [`stream`] read the answers back; a
//! request that came in as messages is sent on as it is. (Messages API reference, versions 2023-06-01 and 2026-10-21.)

mod reply;
mod request;
mod stream;

pub(super) use request::data_url;

use super::http::{Auth, Http, Service};
use super::upstream::{self, Source};
use super::{Body, Call, ModelInfo, Native, PieceStream, Protocol, Provider, ProviderError, Reply};
use crate::config::{ProviderConfig, Secret};
use crate::types::messages::{VERSIONS, is_foreign};
use futures_util::future::BoxFuture;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

/// Variable that holds the key where the configuration names none.
pub const KEY_VARIABLE: &str = "ANTHROPIC_API_KEY";
/// Where the service is.
pub const BASE_URL: &str = "https://api.anthropic.com";

/// Fields of a request whose tokens can be counted (MessageCountTokensParams).
const COUNTED: [&str; 10] =
    ["model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "prefill", "speed"];

/// The provider.
pub struct Anthropic {
    http: Http,
    version: &'static str,
    models: Vec<String>,
}

/// A provider; nothing is connected yet.
pub fn open(config: &ProviderConfig, key: Option<Secret>) -> Anthropic {
    let base_url = config.base_url.clone().unwrap_or_else(|| BASE_URL.into());
    let base_url = base_url.strip_suffix("/v1").map_or(base_url.clone(), str::to_string);
    let needed = config.base_url.is_none().then_some(KEY_VARIABLE);
    let service = Service { base_url, key, key_variable: needed, auth: Auth::Header("x-api-key") };
    let version = VERSIONS.iter().find(|version| config.api_version.as_deref() == Some(**version)).unwrap_or(&VERSIONS[0]);
    Anthropic { http: Http::new(config, service), version, models: config.models.clone() }
}

impl Anthropic {
    /// The body, the version it is written in, and whether it is the caller's own.
    fn body(&self, call: Call, source: &Source, streamed: bool) -> Result<(Map<String, Value>, &'static str, bool), ProviderError> {
        let (mut body, version, native) = match call.native {
            Some(Native { protocol: Protocol::Messages, version, mut body }) => {
                body.get_mut("messages").into_iter().for_each(without_foreign);
                (body, version, true)
            }
            _ => (request::of_chat(call.request, self.version, source)?, self.version, false),
        };
        body.insert("model".into(), call.model.into());
        match streamed {
            true => drop(body.insert("stream".into(), true.into())),
            false => drop(body.shift_remove("stream")),
        }
        Ok((body, version, native))
    }
}

fn versioned(version: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("anthropic-version"), HeaderValue::from_static(version))])
}

/// Takes other providers' thoughts out of a conversation that went on here; the service would refuse them.
fn without_foreign(messages: &mut Value) {
    let Value::Array(messages) = messages else { return };
    messages.retain_mut(|message| {
        let Some(blocks) = message.get_mut("content").and_then(Value::as_array_mut) else { return true };
        let before = blocks.len();
        blocks.retain(|block| !is_foreign(block));
        blocks.len() == before || !blocks.is_empty()
    });
}

impl Provider for Anthropic {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let (body, version, native) = self.body(call, &source, false)?;
            let headers = versioned(version);
            let message: Value = self.http.post_json("/v1/messages", &headers, &Value::Object(body), &source).await?;
            let response = reply::to_chat(&message).map_err(|what| source.broken(what))?;
            Ok(Reply { body: Body::Read(response), native: native.then_some(message) })
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let (body, version, native) = self.body(call, &source, true)?;
            let headers = versioned(version);
            let response = self.http.post("/v1/messages", &headers, &Value::Object(body), &source).await?;
            upstream::read_stream(response, source, self.http.idle_timeout(), stream::Events::new(native)).await
        })
    }

    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let (mut body, version, native) = self.body(call, &source, false)?;
            match native {
                true => drop(body.shift_remove("max_tokens")),
                false => body.retain(|name, _| COUNTED.contains(&name.as_str())),
            }
            let headers = versioned(version);
            let counted: Value = self.http.post_json("/v1/messages/count_tokens", &headers, &Value::Object(body), &source).await?;
            counted.get("input_tokens").and_then(Value::as_u64).ok_or_else(|| source.broken("the reply holds no input_tokens"))
        })
    }

    fn list_models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move {
            if !self.models.is_empty() {
                return Ok(self.models());
            }
            let list = self.http.get_json("/v1/models?limit=1000", &versioned(self.version)).await?;
            Ok(self.http.named(&list, "/data", "id"))
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        self.models.iter().map(|name| ModelInfo { name: name.clone(), owner: self.http.name().to_string() }).collect()
    }
}
