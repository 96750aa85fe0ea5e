//! Stored completions: chat completions that were asked for with `store: true`, read from the request log. `GET /v1/chat/completions` and
//! below. What the log redacts or leaves out is redacted or left out here, too; they go when the log's rules say so.

use crate::access::Caller;
use crate::gateway::Gateway;
use crate::gateway::admin::Fields;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::store::completions::{self, Page};
use crate::store::requests::RequestRow;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Uri;
use serde_json::{Map, Value, json};

type Id = Result<Path<String>, PathRejection>;

/// Items of a page, by default and at most.
const PAGE: (usize, usize) = (20, 100);
/// Bounds of metadata, which are OpenAI's: pairs, and characters of keys and values.
const MOST_PAIRS: usize = 16;
const MOST_KEY: usize = 64;
const MOST_VALUE: usize = 512;
/// Parameters that a stored completion tells again.
const TOLD: [&str; 11] = [
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
    "reasoning_effort",
    "max_completion_tokens",
    "user",
];

/// `GET /v1/chat/completions`.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let limit = query.limit(PAGE.0, PAGE.1)?;
    // OpenAI's other lists begin with the newest; this one with the oldest.
    let ascending = query.text("order").is_none() || query.ascending()?;
    let (after, model) = (query.after()?.map(str::to_string), query.text("model").map(str::to_string));
    let metadata = query.pairs("metadata");
    gateway.app.names.move_rows().await?;
    let store = gateway.app.store.clone();
    let (rows, more) = super::blocking(move || {
        let page = Page {
            project: &caller.project,
            model: model.as_deref(),
            metadata: &metadata,
            after: after.as_deref(),
            limit,
            ascending,
            between: (None, None),
        };
        Ok(completions::list(store.db.as_ref(), &page)?)
    })
    .await?;
    Ok(Json(super::page(rows.iter().filter_map(|row| written(row).ok()).collect(), more)))
}

/// `GET /v1/chat/completions/{id}`.
pub async fn show(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    Ok(Json(written(&found(&gateway, &caller, id).await?)?))
}

/// `GET /v1/chat/completions/{id}/messages`: what was asked.
pub async fn messages(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let limit = query.limit(PAGE.0, PAGE.1)?;
    let ascending = query.text("order").is_none() || query.ascending()?;
    let after = query.after()?.map(str::to_string);
    let row = found(&gateway, &caller, id).await?;
    let id = row.reply_id.clone().unwrap_or_default();
    let request = body(row.request.as_deref(), &id)?;
    let asked = request.get("messages").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut all: Vec<Value> = asked.into_iter().enumerate().map(|(at, message)| message_of(&id, at, message)).collect();
    if !ascending {
        all.reverse();
    }
    if let Some(after) = after {
        let at = all.iter().position(|message| message["id"] == after.as_str());
        let at = at.ok_or_else(|| Failure::on(Code::INVALID_VALUE, "after", "after: expected the id of an item of the list"))?;
        all.drain(..=at);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    Ok(Json(super::page(all, more)))
}

/// `POST /v1/chat/completions/{id}`: other metadata.
pub async fn update(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    // Of what is another project's nothing is told, whatever the body says.
    let id = found(&gateway, &caller, id).await?.reply_id.unwrap_or_default();
    let mut fields = Fields::of(&gateway, request).await?;
    let mut metadata = checked(fields.take("metadata"))?;
    fields.finish()?;
    if let Some(redactor) = &gateway.app.inference.setup().log.redactor {
        let text = redactor.text(&metadata.to_string());
        metadata = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
    }
    let store = gateway.app.store.clone();
    let row = super::blocking(move || Ok(completions::set_metadata(store.db.as_ref(), &caller.project, &id, &metadata)?)).await?;
    Ok(Json(written(&row)?))
}

/// `DELETE /v1/chat/completions/{id}`.
pub async fn delete(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "stored completion")?;
    gateway.app.names.move_rows().await?;
    let (store, named) = (gateway.app.store.clone(), id.clone());
    super::blocking(move || Ok(completions::forget(store.db.as_ref(), &caller.project, &named)?)).await?;
    Ok(Json(json!({"id": id, "object": "chat.completion.deleted", "deleted": true})))
}

async fn found(gateway: &Gateway, caller: &Caller, id: Id) -> Result<RequestRow, Failure> {
    let id = super::id_of(id, "stored completion")?;
    gateway.app.names.move_rows().await?;
    let (store, project) = (gateway.app.store.clone(), caller.project.clone());
    super::blocking(move || Ok(completions::get(store.db.as_ref(), &project, &id)?)).await
}

fn checked(metadata: Option<Value>) -> Result<Value, Failure> {
    let wrong = |problem: String| Failure::on(Code::INVALID_VALUE, "metadata", format!("metadata: {problem}"));
    let Some(metadata) = metadata else { return Err(Failure::on(Code::MISSING_FIELD, "metadata", "metadata is missing")) };
    let pairs = match metadata {
        Value::Null => Map::new(),
        Value::Object(pairs) => pairs,
        _ => return Err(wrong("expected an object of texts".into())),
    };
    if pairs.len() > MOST_PAIRS {
        return Err(wrong(format!("{} pairs, at most {MOST_PAIRS} are kept", pairs.len())));
    }
    for (key, value) in &pairs {
        let fits = value.as_str().is_some_and(|value| value.chars().count() <= MOST_VALUE) && key.chars().count() <= MOST_KEY;
        if !fits {
            return Err(wrong(format!("expected keys of at most {MOST_KEY} characters and texts of at most {MOST_VALUE}")));
        }
    }
    Ok(pairs.into())
}

/// The completion as it was answered, with what it was asked with.
fn written(row: &RequestRow) -> Result<Value, Failure> {
    let id = row.reply_id.as_deref().unwrap_or_default();
    let mut reply = body(row.reply.as_deref(), id)?;
    reply.insert("metadata".into(), row.stored.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| json!({})));
    reply.insert("request_id".into(), row.id.clone().into());
    if let Ok(request) = body(row.request.as_deref(), id) {
        for name in TOLD {
            reply.insert(name.into(), request.get(name).cloned().unwrap_or(Value::Null));
        }
    }
    Ok(reply.into())
}

/// A logged body that is whole.
fn body(text: Option<&str>, id: &str) -> Result<Map<String, Value>, Failure> {
    let read = text.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    let whole = read.filter(|body| body.get("refit").is_none_or(|note| note.get("cut").is_none()));
    let cut = || Failure::new(Code::UNKNOWN_NAME, format!("of the stored completion \"{id}\" the log has kept only a part"));
    whole.ok_or_else(|| cut().with_hint("log.max_body_bytes says how much it keeps"))
}

fn message_of(id: &str, at: usize, message: Value) -> Value {
    let Value::Object(mut fields) = message else { return message };
    fields.insert("id".into(), format!("{id}-{at}").into());
    let parts = fields.get("content").filter(|content| content.is_array()).cloned();
    if let Some(parts) = &parts {
        fields.insert("content".into(), crate::datasets::sample::text_of(parts).into());
    }
    fields.insert("content_parts".into(), parts.unwrap_or_default());
    fields.into()
}
