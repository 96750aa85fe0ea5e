//! `/v1/files`: upload, list, show, read back, delete. A file belongs to the project of the key that brought it; no other sees it.

use crate::access::Caller;
use crate::datasets::{DatasetError, trainable};
use crate::gateway::Gateway;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::gateway::upload::{self, Upload};
use crate::jobs::batch::INPUT_PURPOSE;
use crate::jobs::fine_tune::TRAINING_PURPOSE;
use crate::store::files::{self, FileRow, Page};
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderName, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use std::io::Seek;
use tokio::io::AsyncReadExt;

/// What clients may upload files for.
pub const PURPOSES: [&str; 6] = ["assistants", INPUT_PURPOSE, "evals", TRAINING_PURPOSE, "user_data", "vision"];
/// Seconds that a file with an end may live.
pub const EXPIRES_S: std::ops::RangeInclusive<i64> = 3_600..=2_592_000;
/// Items of a page, at most and by default.
const MAX_PAGE: usize = 10_000;
const PIECE_BYTES: usize = 64 << 10;

/// `POST /v1/files`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let store = gateway.app.store.clone();
    let most = gateway.app.config().server.max_file_bytes;
    let upload = upload::receive(request, &store.uploads.incoming(), most).await?;
    let (row, file) = checked(upload, &caller)?;
    let made = super::blocking(move || {
        // What is trained on is read when it comes.
        if row.purpose == TRAINING_PURPOSE {
            trainable::check(file.path(), &row.filename).map_err(refused)?;
        }
        Ok(files::create(&store, vec![(row, file.take())], Vec::new())?)
    })
    .await?;
    Ok(Json(made.first().map(written).unwrap_or_default()))
}

/// The same error, about the field, with a way out for whoever uploads.
fn refused(error: DatasetError) -> Failure {
    let failure = Failure::from(error);
    Failure::on(failure.code(), "file", failure.to_string()).with_hint("nothing was stored; mend the file and upload it again")
}

fn checked(upload: Upload, caller: &Caller) -> Result<(FileRow, upload::Received), Failure> {
    let Upload { texts, file } = upload;
    let missing = |field: &str| Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing"));
    let purpose = texts.get("purpose").ok_or_else(|| missing("purpose"))?;
    if !PURPOSES.contains(&purpose.as_str()) {
        return Err(Failure::on(Code::INVALID_VALUE, "purpose", format!("purpose: expected one of {}", PURPOSES.join(", "))));
    }
    let anchor = texts.get("expires_after[anchor]").map(String::as_str);
    let expires = expires_after(anchor, texts.get("expires_after[seconds]").map(|text| text.parse().ok()), "expires_after")?;
    let file = file.ok_or_else(|| missing("file"))?;
    let now = now_ms();
    let row = FileRow {
        id: files::new_file_id(),
        project: caller.project.clone(),
        filename: file.name.clone(),
        purpose: purpose.clone(),
        digest: Digest::of(b""),
        size_bytes: 0,
        created_by: caller.key_id.clone(),
        created_at: now,
        expires_at: expires.map(|seconds| now + seconds * 1000),
    };
    Ok((row, file))
}

/// The seconds of an `expires_after`; `seconds` holds none where it is no whole number.
pub(super) fn expires_after(anchor: Option<&str>, seconds: Option<Option<i64>>, field: &str) -> Result<Option<i64>, Failure> {
    match (anchor, seconds) {
        (None, None) => Ok(None),
        (Some("created_at"), Some(Some(seconds))) if EXPIRES_S.contains(&seconds) => Ok(Some(seconds)),
        (Some("created_at"), Some(_)) => {
            let message = format!("{field}.seconds: expected a whole number from {} to {}", EXPIRES_S.start(), EXPIRES_S.end());
            Err(Failure::on(Code::INVALID_VALUE, format!("{field}.seconds"), message))
        }
        (Some("created_at"), None) => {
            Err(Failure::on(Code::MISSING_FIELD, format!("{field}.seconds"), format!("{field}.seconds is missing")))
        }
        _ => Err(Failure::on(Code::INVALID_VALUE, format!("{field}.anchor"), format!("{field}.anchor: expected \"created_at\""))),
    }
}

/// `GET /v1/files`.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (limit, ascending) = (query.limit(MAX_PAGE, MAX_PAGE)?, query.ascending()?);
    let (after, purpose) = (query.after()?.map(str::to_string), query.text("purpose").map(str::to_string));
    let store = gateway.app.store.clone();
    let (rows, more) = super::blocking(move || {
        let page = Page { purpose: purpose.as_deref(), after: after.as_deref(), limit, ascending };
        Ok(files::list(store.db.as_ref(), &caller.project, &page)?)
    })
    .await?;
    Ok(Json(super::page(rows.iter().map(written).collect(), more)))
}

/// `GET /v1/files/{id}`.
pub async fn show(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(written(&found(&gateway, &caller, id).await?)))
}

/// `DELETE /v1/files/{id}`.
pub async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "file")?;
    let (store, named) = (gateway.app.store.clone(), id.clone());
    super::blocking(move || Ok(files::delete(&store, &caller.project, &named)?)).await?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

/// The file's bytes, opened, if they are still those that were uploaded. Blocking.
fn intact(path: &std::path::Path, row: &FileRow) -> Result<std::fs::File, Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Code::UNKNOWN_NAME, format!("the file {} was deleted", row.id)),
        _ => Failure::new(Code::STORAGE, format!("the bytes of {} cannot be read: {error}", row.id)),
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if Digest::of_reader(&file).map_err(failed)? != row.digest {
        let failure = Failure::new(Code::CORRUPT, format!("the stored bytes of {} no longer match their digest {}", row.id, row.digest));
        return Err(failure.with_hint("restore the data directory from a backup, or upload the file again"));
    }
    file.rewind().map_err(failed)?;
    Ok(file)
}

/// `GET /v1/files/{id}/content`: the bytes, as they were uploaded.
pub async fn content(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let row = found(&gateway, &caller, id).await?;
    let (path, named) = (gateway.app.store.uploads.path(&row.digest), row.clone());
    // Read twice: once a byte has gone out, damage could not be told any more.
    let opened = super::blocking(move || intact(&path, &named)).await?;
    let pieces = unfold(tokio::fs::File::from_std(opened), |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_string()),
        (header::CONTENT_LENGTH, row.size_bytes.to_string()),
        // Whatever was uploaded is never shown as a page of this server.
        (header::CONTENT_DISPOSITION, "attachment".to_string()),
        (HeaderName::from_static("x-content-type-options"), "nosniff".to_string()),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn found(gateway: &Gateway, caller: &Caller, id: Result<Path<String>, PathRejection>) -> Result<FileRow, Failure> {
    let id = super::id_of(id, "file")?;
    let (store, project) = (gateway.app.store.clone(), caller.project.clone());
    super::blocking(move || Ok(files::get(store.db.as_ref(), &project, &id)?)).await
}

fn written(row: &FileRow) -> Value {
    json!({"id": row.id, "object": "file", "bytes": row.size_bytes, "created_at": row.created_at / 1000,
        "expires_at": row.expires_at.map(|at| at / 1000), "filename": row.filename, "purpose": row.purpose,
        "status": "processed", "status_details": null})
}
