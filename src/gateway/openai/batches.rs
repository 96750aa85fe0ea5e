//! `/v1/batches`: make, list, show, cancel. What works on them is [`jobs::batch`](crate::jobs::batch).

use super::check;
use crate::access::Caller;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::gateway::{Gateway, body};
use crate::jobs::batch::NewBatch;
use crate::store::batches::{BatchRow, Status};
use crate::types::{Code, Digest, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, Uri};
use serde_json::{Map, Value, json};

/// Items of a page.
const MAX_PAGE: usize = 100;
const PAGE: usize = 20;
const MAX_RETRY_KEY_BYTES: usize = 255;

/// `POST /v1/batches`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let most = gateway.app.config().server.max_body_bytes;
    let value = body::read_json(&parts.headers, body, most).await?;
    let Value::Object(fields) = value else { return Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object").into()) };
    let new = read(&fields, retry_key(&parts.headers)?)?;
    let made = super::blocking(move || gateway.app.batches.create(&caller, new)).await?;
    Ok(Json(written(&made)))
}

fn read(fields: &Map<String, Value>, retry_key: Option<String>) -> Result<NewBatch, Failure> {
    let text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        None | Some(Value::Null) => Err(Failure::on(Code::MISSING_FIELD, name, format!("{name} is missing"))),
        Some(_) => Err(Failure::on(Code::INVALID_VALUE, name, format!("{name}: expected a text"))),
    };
    let field = "output_expires_after";
    let expires = match fields.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::Object(after)) => {
            let anchor = after.get("anchor").map(|anchor| anchor.as_str().unwrap_or_default());
            super::files::expires_after(anchor, after.get("seconds").map(Value::as_i64), field)?
        }
        Some(_) => return Err(Failure::on(Code::INVALID_VALUE, field, format!("{field}: expected an object"))),
    };
    check::metadata(fields)?;
    Ok(NewBatch {
        endpoint: text("endpoint")?,
        input_file: text("input_file_id")?,
        completion_window: text("completion_window")?,
        metadata: fields.get("metadata").cloned().unwrap_or_default(),
        output_expires_s: expires,
        retry_key,
        request_digest: Digest::of_json(&Value::Object(fields.clone())),
    })
}

fn retry_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=MAX_RETRY_KEY_BYTES).contains(&key.len()));
    let message = format!("Idempotency-Key: expected 1 to {MAX_RETRY_KEY_BYTES} printable characters");
    key.map(|key| Some(key.to_string())).ok_or_else(|| Failure::on(Code::INVALID_VALUE, "idempotency-key", message))
}

/// `GET /v1/batches`.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (after, limit) = (query.after()?.map(str::to_string), query.limit(PAGE, MAX_PAGE)?);
    let (rows, more) = super::blocking(move || gateway.app.batches.list(&caller, after.as_deref(), limit)).await?;
    Ok(Json(super::page(rows.iter().map(written).collect(), more)))
}

/// `GET /v1/batches/{id}`.
pub async fn show(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "batch")?;
    let found = super::blocking(move || gateway.app.batches.get(&caller, &id)).await?;
    Ok(Json(written(&found)))
}

/// `POST /v1/batches/{id}/cancel`.
pub async fn cancel(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "batch")?;
    let asked = super::blocking(move || gateway.app.batches.cancel(&caller, &id)).await?;
    Ok(Json(written(&asked)))
}

fn written(row: &BatchRow) -> Value {
    let at = |wanted: Status| row.times.iter().find(|(status, _)| *status == wanted).map(|(_, at)| at / 1000);
    let errors = row.errors.as_array().filter(|errors| !errors.is_empty()).map(|errors| json!({"object": "list", "data": errors}));
    let counts = &row.counts;
    let usage = json!({"input_tokens": counts.input_tokens, "input_tokens_details": {"cached_tokens": counts.cached_tokens},
        "output_tokens": counts.output_tokens, "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.input_tokens + counts.output_tokens});
    json!({"id": row.id, "object": "batch", "endpoint": row.endpoint, "model": row.model, "errors": errors,
        "input_file_id": row.input_file, "completion_window": row.completion_window, "status": row.status.word(),
        "output_file_id": row.output_file, "error_file_id": row.error_file, "created_at": row.created_at / 1000,
        "in_progress_at": at(Status::InProgress), "expires_at": row.expires_at / 1000, "finalizing_at": at(Status::Finalizing),
        "completed_at": at(Status::Completed), "failed_at": at(Status::Failed), "expired_at": at(Status::Expired),
        "cancelling_at": at(Status::Cancelling), "cancelled_at": at(Status::Cancelled),
        "request_counts": {"total": counts.total, "completed": counts.completed, "failed": counts.failed},
        "usage": usage, "metadata": row.metadata})
}
