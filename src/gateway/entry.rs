//! The beginning of a model call, whatever its protocol: who asks, the deployment that an Azure path names, and the body.

use super::error::ApiError;
use super::middleware::RequestId;
use super::openai::azure::Deployment;
use super::{Gateway, body};
use crate::access::Caller;
use crate::inference::{Ask, CacheWish};
use crate::types::plain::PlainChat;
use crate::types::trace::TraceParent;
use crate::types::{Code, Failure};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The endpoint whose bodies the log keeps as they came.
pub const CHAT: &str = "chat.completions";

/// A call at the door.
pub struct Entry {
    /// What handlers share.
    pub gateway: Gateway,
    /// Who asks.
    pub ask: Ask,
    /// The request's headers.
    pub headers: HeaderMap,
    deployment: Option<String>,
    body: Sent,
}

/// A body, to be read or read already.
enum Sent {
    Stream(Body),
    Whole(Bytes),
}

impl Entry {
    /// Takes a request that has passed the access check.
    pub fn of(gateway: &Gateway, request: Request, endpoint: &'static str) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Failure::new(Code::FORBIDDEN, "no caller was resolved for this path"))?;
        let id = parts.extensions.get::<RequestId>().map(|RequestId(id)| id.clone());
        let deployment = parts.extensions.get::<Deployment>().map(|Deployment(name)| name.clone());
        let mut ask = Ask::new(&caller, endpoint);
        ask.request_id = id.unwrap_or(ask.request_id);
        ask.cache = wish(&parts.headers);
        ask.trace = trace(&parts.headers);
        Ok(Entry { gateway: gateway.clone(), ask, headers: parts.headers, deployment, body: Sent::Stream(body) })
    }

    /// Takes a chat request that was read whole, with its caller and its id.
    pub fn whole(gateway: &Gateway, (caller, request_id): (Caller, String), headers: HeaderMap, body: Bytes) -> Self {
        let ask = Ask {
            caller,
            request_id,
            endpoint: CHAT,
            native: None,
            text: None,
            cache: wish(&headers),
            trace: trace(&headers),
            is_private: false,
        };
        Entry { gateway: gateway.clone(), ask, headers, deployment: None, body: Sent::Whole(body) }
    }

    /// Whether the body has been read.
    pub fn is_read(&self) -> bool {
        matches!(self.body, Sent::Whole(_))
    }

    /// Writes down that the body could not be had.
    pub async fn refuse(self, failure: Failure) -> ApiError {
        self.gateway.app.inference.refused(self.ask, failure).await.into()
    }

    /// Reads the body as it is.
    pub async fn whole_body(mut self) -> Result<Self, ApiError> {
        if let Sent::Stream(body) = self.body {
            let most = self.gateway.app.config().server.max_body_bytes;
            match body::read_whole(&self.headers, body, most).await {
                Ok(bytes) => self.body = Sent::Whole(bytes),
                Err(failure) => return Err(self.gateway.app.inference.refused(self.ask, failure).await.into()),
            }
        }
        Ok(self)
    }

    /// The body as a plain chat request, where it is one and was read.
    pub fn plain(&self) -> Option<PlainChat> {
        match &self.body {
            Sent::Whole(bytes) if self.deployment.is_none() => PlainChat::of(bytes),
            _ => None,
        }
    }

    /// What a plain call goes on with; whoever has its text has it alone then.
    pub fn begun(self) -> (Gateway, Ask) {
        (self.gateway, self.ask)
    }

    /// Reads the body as a JSON object and checks it; what is refused is logged. The path's deployment wins over `model`.
    pub async fn read<T>(
        self,
        check: impl FnOnce(Map<String, Value>, &HeaderMap) -> Result<T, Failure>,
    ) -> Result<(Gateway, Ask, T), ApiError> {
        let Entry { gateway, mut ask, headers, deployment, body } = self;
        let most = gateway.app.config().server.max_body_bytes;
        let text = match body {
            Sent::Stream(body) => body::read_text(&headers, body, most).await,
            Sent::Whole(bytes) => body::in_json(bytes).await,
        };
        let read = match text {
            Ok((Value::Object(mut fields), text)) => {
                // The log keeps chat completions: bodies of other protocols are written anew as such.
                ask.text = (ask.endpoint == CHAT).then_some(text);
                if let Some(deployment) = deployment {
                    fields.insert("model".into(), deployment.into());
                }
                fields.retain(|_, value| !value.is_null());
                check(fields, &headers)
            }
            Ok(_) => Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object")),
            Err(failure) => Err(failure),
        };
        match read {
            Ok(read) => Ok((gateway, ask, read)),
            Err(failure) => Err(gateway.app.inference.refused(ask, failure).await.into()),
        }
    }
}

/// The trace that the caller is in (W3C Trace Context).
fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    TraceParent::parse(headers.get(TRACE_PARENT)?.to_str().ok()?)
}

/// What the caller wants of the cache.
fn wish(headers: &HeaderMap) -> CacheWish {
    let mut wishes = headers.get_all(super::headers::CACHE).iter().map(|value| value.to_str().unwrap_or_default());
    match (wishes.next(), wishes.next()) {
        (None, _) => CacheWish::Usual,
        (Some(wish), None) => CacheWish::of(wish),
        (Some(first), Some(second)) => CacheWish::of(&[first, second].into_iter().chain(wishes).collect::<Vec<_>>().join(",")),
    }
}
