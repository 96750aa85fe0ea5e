//! Endpoints for operators, and the answers for what does not exist.

use super::Gateway;
use super::body::Json;
use super::error::ApiError;
use super::middleware::access;
use crate::access::Role;
use crate::monitor::exposition::View;
use crate::monitor::metrics::CONTENT_TYPE;
use crate::prompts::front;
use crate::types::error::did_you_mean;
use crate::types::{Code, Failure};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// `GET /health`: this process answers.
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /schemas/prompt.json`: JSON Schema of a prompt's front matter, for editors.
pub async fn prompt_schema() -> Response {
    ([(header::CONTENT_TYPE, "application/schema+json")], front::SCHEMA).into_response()
}

/// `GET /metrics`: OpenMetrics text. Without a key, or with one of the role app, nothing about projects, routes and models is told; an
/// admin sees all of it, others what is their project's.
pub async fn metrics(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response, ApiError> {
    let view = match access::known_caller(&gateway, &headers).await? {
        Some(caller) if caller.role >= Role::Admin => View::All,
        Some(caller) if caller.role >= Role::Viewer => View::Project(caller.project),
        _ => View::Totals,
    };
    let metrics = gateway.app.metrics.clone();
    let rendered = tokio::task::spawn_blocking(move || metrics.render(view)).await;
    let text = rendered.map_err(|_| Failure::new(Code::INTERNAL, "the metrics could not be written"))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
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
