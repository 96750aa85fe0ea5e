//! `GET /v1/models` and `GET /v1/models/{id}`: routes with a live release, and models that can be called directly.

use crate::access::Caller;
use crate::gateway::Gateway;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::inference::Listed;
use crate::types::error::did_you_mean;
use crate::types::ids::is_safe_name;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

/// Header that Anthropic's clients name their protocol's version in.
pub const VERSION_HEADER: &str = "anthropic-version";

/// The list.
pub async fn list(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let data: Vec<_> = listed(gateway, &caller).await?.iter().map(|listed| written(listed, &headers)).collect();
    let (first, last) = (data.first().map(|m| m["id"].clone()), data.last().map(|m| m["id"].clone()));
    let mut list = json!({"data": data, "first_id": first, "last_id": last, "has_more": false});
    if !headers.contains_key(VERSION_HEADER) {
        list["object"] = "list".into();
    }
    Ok(Json(list))
}

/// One of them. The id may hold slashes, percent-encoded or not.
pub async fn show(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    // What does not decode to a text is no name either.
    let Some(Path(id)) = id.ok().filter(|Path(id)| is_safe_name(id)) else {
        return Err(Failure::on(Code::MODEL_NOT_FOUND, "model", "no model has such a name").into());
    };
    let all = listed(gateway, &caller).await?;
    let Some(found) = all.iter().find(|listed| listed.id == id) else {
        let nearest = did_you_mean(&id, all.iter().map(|listed| listed.id.as_str()));
        return Err(Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the model \"{id}\" does not exist{nearest}")).into());
    };
    Ok(Json(written(found, &headers)))
}

/// What the caller may call.
async fn listed(gateway: Gateway, caller: &Caller) -> Result<Vec<Listed>, Failure> {
    gateway.app.providers().refresh().await;
    let looked_up = tokio::task::spawn_blocking(move || gateway.app.inference.models()).await;
    let mut all = looked_up.unwrap_or_else(|_| Err(Failure::new(Code::INTERNAL, "the models could not be listed")))?;
    if let Some(names) = caller.bounds.as_ref().and_then(|bounds| bounds.names.as_ref()) {
        all.retain(|listed| names.allow(&listed.id));
    }
    Ok(all)
}

/// A model in the shape of the caller's protocol, which Anthropic's clients name in a header.
fn written(listed: &Listed, headers: &HeaderMap) -> Value {
    if headers.contains_key(VERSION_HEADER) {
        return json!({"type": "model", "id": listed.id, "display_name": listed.id, "created_at": rfc3339(listed.created_at),
            "lifecycle": "active"});
    }
    json!({"id": listed.id, "object": "model", "created": listed.created_at / 1000, "owned_by": listed.owner})
}
