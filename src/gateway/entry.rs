//! The beginning of a model call, whatever its protocol: who asks, the deployment that an Azure path names, and the body.

use super::error::ApiError;
use super::middleware::RequestId;
use super::openai::azure::Deployment;
use super::{Gateway, body};
use crate::access::Caller;
use crate::inference::Ask;
use crate::types::{Code, Failure};
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use serde_json::{Map, Value};

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
    body: Body,
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
        Ok(Entry { gateway: gateway.clone(), ask, headers: parts.headers, deployment, body })
    }

    /// Reads the body as a JSON object and checks it; what is refused is logged. The path's deployment wins over `model`.
    pub async fn read<T>(
        self,
        check: impl FnOnce(Map<String, Value>, &HeaderMap) -> Result<T, Failure>,
    ) -> Result<(Gateway, Ask, T), ApiError> {
        let Entry { gateway, mut ask, headers, deployment, body } = self;
        let most = gateway.app.config().server.max_body_bytes;
        let read = match body::read_text(&headers, body, most).await {
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
            Err(failure) => Err(gateway.app.inference.refused(ask, failure).into()),
        }
    }
}
