//! `GET /api/public/v2/prompts…`: the same prompts where Langfuse's clients look for them (its public API, version 2), with a key of
//! Refit's as the secret key of Basic authentication. Such a client fills in variables by itself, so that only prompts of plain
//! variables can be given away. Without a label or a version it means the label `production`, as there.

use super::{Name, library, name_of};
use crate::gateway::Gateway;
use crate::gateway::admin::blocking;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::prompts::library::{LATEST, Labels};
use crate::prompts::plain::{Plain, PlainPiece};
use crate::prompts::{Prompt, PromptError};
use crate::store::prompts::PromptVersion;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};

const DEFAULT_LABEL: &str = "production";

/// `GET /api/public/v2/prompts/{name}?version=|label=`.
pub async fn show(State(gateway): State<Gateway>, name: Name, uri: Uri) -> Result<Json<Value>, ApiError> {
    let name = name_of(name)?;
    let query = Query::of(&uri);
    let selector = match (query.text("version"), query.text("label")) {
        (Some(_), Some(_)) => return Err(Failure::on(Code::INVALID_VALUE, "label", "label: send either a version or a label").into()),
        (Some(word), None) | (None, Some(word)) => word.to_string(),
        (None, None) => DEFAULT_LABEL.to_string(),
    };
    let shown = blocking(move || {
        let library = library(&gateway);
        let version = library.get(&format!("{name}@{selector}"))?;
        let newest = library.newest(&name)?.map_or(0, |newest| newest.version);
        prompt(&version, library.compile(&version)?.as_ref(), &labels_of(&library.labels(&name)?, version.version, newest))
    });
    Ok(Json(shown.await?))
}

/// `GET /api/public/v2/prompts?name=&label=&page=&limit=`.
pub async fn list(State(gateway): State<Gateway>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (limit, page) = (query.limit(50, 100)?, page(&query)?);
    let wanted = |field: &str| query.text(field).map(str::to_string);
    let (name, label) = (wanted("name"), wanted("label"));
    let all = blocking(move || {
        let library = library(&gateway);
        let mut all = Vec::new();
        for entry in library.list()?.into_iter().filter(|entry| name.as_ref().is_none_or(|name| *name == entry.newest.prompt)) {
            let compiled = library.compile(&entry.newest)?;
            let mut labels: Vec<_> = entry.labels.iter().map(|(label, _)| label.clone()).collect();
            labels.push(LATEST.to_string());
            if label.as_ref().is_some_and(|label| !labels.contains(label)) {
                continue;
            }
            let versions: Vec<_> = (1..=entry.newest.version).collect();
            let kind = compiled.plain().map_or("chat", |plain| kind(&plain));
            all.push(json!({"name": entry.newest.prompt, "type": kind, "versions": versions, "labels": labels, "tags": tags(&compiled),
                "lastUpdatedAt": rfc3339(entry.newest.created_at), "lastConfig": config(&compiled)}));
        }
        Ok(all)
    });
    let all = all.await?;
    let total = all.len();
    let data: Vec<_> = all.into_iter().skip((page - 1).saturating_mul(limit)).take(limit).collect();
    let meta = json!({"page": page, "limit": limit, "totalItems": total, "totalPages": total.div_ceil(limit)});
    Ok(Json(json!({"data": data, "meta": meta})))
}

/// The number of a page, from 1.
fn page(query: &Query) -> Result<usize, Failure> {
    let Some(text) = query.text("page") else { return Ok(1) };
    let page = text.parse().ok().filter(|page| *page > 0);
    page.ok_or_else(|| Failure::on(Code::INVALID_VALUE, "page", "page: expected a whole number from 1"))
}

fn prompt(version: &PromptVersion, compiled: &Prompt, labels: &[String]) -> Result<Value, Failure> {
    let plain = compiled.plain().map_err(|error: PromptError| {
        let failure = Failure::on(Code::UNSUPPORTED, "name", error.to_string());
        failure.with_hint(format!("call it by its name instead, or have it filled in: POST /v1/prompts/{}/render", version.prompt))
    })?;
    let written = |piece: &PlainPiece| match piece {
        PlainPiece::Message { role, text } => json!({"type": "chatmessage", "role": role, "content": text}),
        PlainPiece::History => json!({"type": "placeholder", "name": "history"}),
    };
    let body = match (plain.is_chat, plain.pieces.as_slice()) {
        (false, [PlainPiece::Message { text, .. }]) => json!(text),
        (false, _) => json!(""),
        (true, pieces) => pieces.iter().map(written).collect::<Vec<_>>().into(),
    };
    let message = Some(&version.message).filter(|message| !message.is_empty());
    Ok(json!({"id": version.digest, "type": kind(&plain), "name": version.prompt, "version": version.version, "prompt": body,
        "config": config(compiled), "labels": labels, "tags": tags(compiled), "commitMessage": message, "resolutionGraph": null,
        "createdBy": version.author, "createdAt": rfc3339(version.created_at), "updatedAt": rfc3339(version.created_at)}))
}

fn labels_of(labels: &Labels, version: i64, newest: i64) -> Vec<String> {
    let own = labels.iter().filter(|(_, at)| *at == version).map(|(label, _)| label.clone());
    own.chain((version == newest).then(|| LATEST.to_string())).collect()
}

fn kind(plain: &Plain) -> &'static str {
    if plain.is_chat { "chat" } else { "text" }
}

/// The configuration with the model in it.
fn config(prompt: &Prompt) -> Value {
    let mut config = prompt.front.config.clone();
    if let Some(model) = &prompt.front.model {
        config.entry("model").or_insert_with(|| json!(model));
    }
    config.into()
}

/// `tags` of the front matter, where it has some.
fn tags(prompt: &Prompt) -> Vec<&str> {
    prompt.front.raw.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}
