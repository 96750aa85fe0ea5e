//! One provider's connection to its service. Redirects are not followed, so that a key is only ever sent to the origin of its base
//! URL; callers decide neither address nor headers. Names that become part of a path are percent-encoded.

use super::received::Received;
use super::upstream::{self, Source};
use super::wire::{Failed, Wire};
use super::{ModelInfo, ProviderError};
use crate::config::{ProviderConfig, Secret};
use crate::types::Code;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Time for a list of models: whoever asks for ours waits for it.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_NAME_BYTES: usize = 200;
/// What a path segment may hold as it is (RFC 3986, "unreserved").
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How the key is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer`.
    Bearer,
    /// A header of the service's own, such as `x-api-key`.
    Header(&'static str),
}

/// A service: where it is and which key opens it.
pub struct Service {
    /// Base URL without a slash at the end.
    pub base_url: String,
    /// API key, bound to this base URL.
    pub key: Option<Secret>,
    /// Variable in which the key is looked for, for the message when it is missing; `None` where none is needed.
    pub key_variable: Option<&'static str>,
    /// How the key is presented.
    pub auth: Auth,
}

/// A body that is JSON already, in pieces.
pub(super) struct Text(pub [Bytes; 4]);

impl From<Vec<u8>> for Text {
    fn from(text: Vec<u8>) -> Self {
        Text([text.into(), Bytes::new(), Bytes::new(), Bytes::new()])
    }
}

/// The connection. Nothing is connected before the first call.
pub struct Http {
    name: Arc<str>,
    service: Service,
    connect_timeout: Duration,
    timeout: Duration,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
    /// How encrypted services, and lists of models, are asked.
    client: OnceLock<reqwest::Client>,
    /// How services in the clear are asked.
    wire: OnceLock<Option<Wire>>,
}

impl Http {
    /// The connection of a configured provider.
    pub fn new(config: &ProviderConfig, service: Service) -> Self {
        Http {
            name: config.name.as_str().into(),
            service,
            connect_timeout: Duration::from_secs(config.connect_timeout_s),
            timeout: Duration::from_secs(config.timeout_s),
            first_byte_timeout: Duration::from_secs(config.first_byte_timeout_s),
            idle_timeout: Duration::from_secs(config.idle_timeout_s),
            client: OnceLock::new(),
            wire: OnceLock::new(),
        }
    }

    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who answers, for messages.
    pub(super) fn source(&self, model: &str) -> Source {
        Source { provider: self.name.clone(), model: model.to_string(), key: self.service.key.clone() }
    }

    /// Silence that a stream may keep.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Posts a body below the base URL; the reply's head has arrived and is a success.
    ///
    /// # Errors
    /// [`Code::UNSUPPORTED`] without a key, and everything that [`upstream::refusal`] reads out of a reply.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: &(impl Serialize + Sync + ?Sized),
        source: &Source,
    ) -> Result<Received, ProviderError> {
        let body = serde_json::to_vec(body).expect("a request is strings, maps and finite numbers: serialising cannot fail");
        self.post_text(path, headers, Text::from(body), source).await
    }

    /// As [`Http::post`], of a body that is JSON already.
    ///
    /// # Errors
    /// As [`Http::post`].
    pub(super) async fn post_text(&self, path: &str, headers: &HeaderMap, body: Text, source: &Source) -> Result<Received, ProviderError> {
        // A refusal is read within the same time: its body may never end.
        let sent = pin!(async {
            let response = match self.wire(source)? {
                Some(wire) => Received::Wire(wire.post(path, headers, &body.0).await.map_err(|failed| self.failed(failed, source))?),
                None => Received::Client(Box::pin(self.send(path, headers, body, source)).await?),
            };
            if response.is_success() { Ok(response) } else { Err(Box::pin(upstream::refusal(response, source)).await) }
        });
        tokio::time::timeout(self.first_byte_timeout, sent).await.map_err(|_| source.timed_out(self.first_byte_timeout))?
    }

    async fn send(&self, path: &str, headers: &HeaderMap, body: Text, source: &Source) -> Result<reqwest::Response, ProviderError> {
        let request = self.client()?.post(format!("{}{path}", self.service.base_url)).headers(self.fixed(source)?).headers(headers.clone());
        let sent = request.header(CONTENT_TYPE, "application/json").body(body.0.concat()).send().await;
        sent.map_err(|error| source.unreachable(error))
    }

    fn failed(&self, failed: Failed, source: &Source) -> ProviderError {
        match failed {
            Failed::ConnectTimeout => {
                source.error(Code::UPSTREAM_TIMEOUT, format!("no connection within {} s", self.connect_timeout.as_secs()))
            }
            Failed::Io(error) => source.error(Code::UPSTREAM_UNREACHABLE, error),
        }
    }

    /// Posts a body and reads the whole reply.
    ///
    /// # Errors
    /// As [`Http::post`]; [`Code::UPSTREAM`] when the reply is not what was asked for, [`Code::UPSTREAM_TIMEOUT`].
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: &Value,
        source: &Source,
    ) -> Result<T, ProviderError> {
        let response = self.post(path, headers, body, source).await?;
        let read = tokio::time::timeout(self.timeout, upstream::read_json(response, source)).await;
        upstream::fitting(read.map_err(|_| source.timed_out(self.timeout))??, source)
    }

    /// Posts a body; the bytes of the whole reply.
    ///
    /// # Errors
    /// As [`Http::post`]; [`Code::UPSTREAM`] when the reply breaks off or is too large, [`Code::UPSTREAM_TIMEOUT`].
    pub(super) async fn post_bytes(&self, path: &str, body: Text, source: &Source) -> Result<Bytes, ProviderError> {
        let response = self.post_text(path, &HeaderMap::new(), body, source).await?;
        let read = tokio::time::timeout(self.timeout, upstream::read_bytes(response, source)).await;
        read.map_err(|_| source.timed_out(self.timeout))?
    }

    /// Asks for what lies at a path; the whole reply.
    ///
    /// # Errors
    /// As [`Http::post_json`].
    pub(super) async fn get_json(&self, path: &str, headers: &HeaderMap) -> Result<Value, ProviderError> {
        let source = self.source("models");
        let asked = self.whole(self.request(reqwest::Method::GET, path, &source)?.headers(headers.clone()), &source);
        let whole = tokio::time::timeout(LIST_TIMEOUT, asked).await.map_err(|_| source.timed_out(LIST_TIMEOUT))??;
        upstream::as_json(&whole, &source)
    }

    /// A request below the base URL, with the headers that every one has.
    pub(super) fn request(&self, method: reqwest::Method, path: &str, source: &Source) -> Result<reqwest::RequestBuilder, ProviderError> {
        Ok(self.client()?.request(method, format!("{}{path}", self.service.base_url)).headers(self.fixed(source)?))
    }

    /// Sends a request; the bytes of a reply that is a success.
    ///
    /// # Errors
    /// As [`Http::post_bytes`].
    pub(super) async fn whole(&self, request: reqwest::RequestBuilder, source: &Source) -> Result<Bytes, ProviderError> {
        let asked = async {
            let response = Received::Client(request.send().await.map_err(|error| source.unreachable(error))?);
            if !response.is_success() {
                return Err(upstream::refusal(response, source).await);
            }
            upstream::read_bytes(response, source).await
        };
        tokio::time::timeout(self.timeout, asked).await.map_err(|_| source.timed_out(self.timeout))?
    }

    /// The names that a list of models holds, at `pointer`, under `field`.
    pub(super) fn named(&self, list: &Value, pointer: &str, field: &str) -> Vec<ModelInfo> {
        let entries = list.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.get(field).and_then(Value::as_str));
        // A name that could not be called is not listed.
        let names = names.filter(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains(char::is_control));
        names.map(|name| ModelInfo { name: name.to_string(), owner: self.name.to_string() }).collect()
    }

    /// The headers that every request has: who asks, and the key.
    fn fixed(&self, source: &Source) -> Result<HeaderMap, ProviderError> {
        let agent = HeaderValue::from_static(concat!("refit/", env!("CARGO_PKG_VERSION")));
        let mut headers = HeaderMap::from_iter([(USER_AGENT, agent)]);
        let Some(key) = &self.service.key else {
            return match self.service.key_variable {
                Some(variable) => Err(missing_key(&self.name, variable)),
                None => Ok(headers),
            };
        };
        let (name, text) = match self.service.auth {
            Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            Auth::Header(name) => (HeaderName::from_static(name), key.expose().to_string()),
        };
        let unfit = |_| source.error(Code::UNSUPPORTED, "the server's API key holds characters that no header can carry");
        let mut value = HeaderValue::from_str(text.trim()).map_err(unfit)?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(headers)
    }

    /// The connection in the clear, where the service is reached so.
    fn wire(&self, source: &Source) -> Result<Option<&Wire>, ProviderError> {
        if let Some(wire) = self.wire.get() {
            return Ok(wire.as_ref());
        }
        let wire = Wire::new(&self.service.base_url, &self.fixed(source)?, self.connect_timeout);
        Ok(self.wire.get_or_init(|| wire).as_ref())
    }

    fn client(&self) -> Result<&reqwest::Client, ProviderError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let builder = reqwest::Client::builder().redirect(Policy::none()).connect_timeout(self.connect_timeout).tcp_nodelay(true);
        // A proxy of the environment would read a key that is sent in the clear, and does not know what this machine calls itself.
        let builder = if in_the_clear(&self.service.base_url) { builder.no_proxy() } else { builder };
        let client = builder.pool_idle_timeout(Duration::from_secs(50)).build();
        let client = client.map_err(|error| ProviderError::new(Code::INTERNAL, format!("cannot set up TLS for {}: {error}", self.name)))?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// Whether a service is on this machine, or what is sent to it can be read on the way.
fn in_the_clear(base_url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(base_url) else { return true };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    url.scheme() == "http" || loopback
}

/// A name as a part of one segment of a path: nothing in it leads out, but for [`is_dots`] alone in its segment.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// The two segments that mean another place, percent-encoded or not (URL Standard, "double-dot URL path segment").
pub fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

fn missing_key(provider: &str, variable: &str) -> ProviderError {
    let mut error = ProviderError::new(Code::UNSUPPORTED, format!("the provider \"{provider}\" has no API key on this server"));
    error.param = Some("model".into());
    error.hint = Some(format!("start refit with {variable} set, or name another variable under [providers.{provider}] in refit.toml"));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_name_stays_in_its_segment() {
        assert_eq!(segment("gpt-4o_2.0~x"), "gpt-4o_2.0~x");
        assert_eq!(segment("../../v1/files?x=1#y"), "..%2F..%2Fv1%2Ffiles%3Fx%3D1%23y");
        assert!(is_dots(".") && is_dots("..") && !is_dots("...") && !is_dots("%2e%2e"));
        assert_eq!(segment("%2e%2e"), "%252e%252e");
    }

    #[test]
    fn no_proxy_reads_what_is_not_encrypted() {
        for url in ["http://10.0.0.7:8000/v1", "https://localhost/v1", "https://127.0.0.1:8000", "https://[::1]:1/v1"] {
            assert!(in_the_clear(url), "{url}");
        }
        assert!(!in_the_clear("https://api.openai.com/v1"));
    }
}
