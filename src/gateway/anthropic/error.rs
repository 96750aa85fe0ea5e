//! Failures in Anthropic's shape: `{"type":"error","error":{"type","message"},"request_id"}`.

use crate::types::Code;
use serde_json::{Value, json};

/// Status of an overloaded service in this protocol.
pub const OVERLOADED: u16 = 529;

/// The error body.
pub fn body(code: Code, message: &str, request_id: Option<&str>) -> Value {
    let mut body = json!({"type": "error", "error": {"type": kind(code), "message": message}});
    if let Some(id) = request_id {
        body["request_id"] = id.into();
    }
    body
}

/// The protocol's word for a code.
fn kind(code: Code) -> &'static str {
    match code.status {
        _ if code == Code::UPSTREAM_OVERLOADED || code == Code::UNAVAILABLE => "overloaded_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}
