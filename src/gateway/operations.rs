//! Endpoints for operators, and the answers for what does not exist.

use super::Gateway;
use super::body::Json;
use super::error::ApiError;
use crate::monitor::metrics::CONTENT_TYPE;
use crate::types::error::did_you_mean;
use crate::types::{Code, Failure};
use axum::extract::State;
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// `GET /health`: this process answers.
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`: OpenMetrics text.
pub async fn metrics(State(gateway): State<Gateway>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], gateway.app.metrics.render()).into_response()
}

/// No such path.
pub async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let nearest = did_you_mean(&path, super::routes::table().iter().map(|route| route.path));
    ApiError(Failure::new(Code::NOT_FOUND, format!("there is nothing at {path}{nearest}")))
}

/// The path exists, the method does not. axum adds `Allow`.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError(Failure::new(Code::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path())))
}
