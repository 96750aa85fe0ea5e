//! `/admin/v1/keys`: make, list, show, change, rotate, revoke.

use super::{Fields, blocking, id_of, wrong};
use crate::access::Caller;
use crate::access::keys::{Changes, NewKey, Wanted, shown};
use crate::gateway::Gateway;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::types::time::{end_of, now_ms};
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use serde_json::{Value, json};

type Id = Result<Path<String>, PathRejection>;

/// `GET /admin/v1/keys`: all of them, revoked ones too, oldest first.
pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Value>, ApiError> {
    let rows = blocking(move || Ok(gateway.app.keys.list()?)).await?;
    Ok(Json(json!({"object": "list", "data": rows.iter().map(shown).collect::<Vec<_>>()})))
}

/// `POST /admin/v1/keys`. The secret is in the reply, and nowhere else.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(&gateway, request).await?;
    let (name, project) = (fields.needed("name")?, fields.text("project")?.unwrap_or_else(|| caller.project.clone()));
    let role = fields.text("role")?.unwrap_or_else(|| "app".into()).parse()?;
    let changes = changes(&mut fields)?;
    fields.finish()?;
    let wanted = Wanted { name, project, role, changes };
    let made = blocking(move || {
        let made = gateway.app.keys.make(wanted, &caller.key_id)?;
        let row = gateway.app.keys.active(&made.id)?;
        Ok(with_secret(shown(&row), made))
    });
    Ok(Json(made.await?))
}

/// `GET /admin/v1/keys/{id}`.
pub async fn show(State(gateway): State<Gateway>, id: Id) -> Result<Json<Value>, ApiError> {
    let id = id_of(id, "key")?;
    let rows = blocking(move || Ok(gateway.app.keys.list()?)).await;
    let found = rows?.into_iter().find(|row| row.id == id);
    Ok(Json(shown(&found.ok_or_else(unknown)?)))
}

/// `PATCH /admin/v1/keys/{id}`: what is named changes, what is null is taken away.
pub async fn update(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let id = key_id(id)?;
    let mut fields = Fields::of(&gateway, request).await?;
    let mut changes = changes(&mut fields)?;
    changes.name = fields.text("name")?;
    changes.role = fields.text("role")?.map(|word| word.parse()).transpose()?;
    fields.finish()?;
    let row = blocking(move || Ok(gateway.app.keys.update(&id, changes, &caller.key_id)?)).await?;
    Ok(Json(shown(&row)))
}

/// `POST /admin/v1/keys/{id}/rotate`: another secret, in the reply.
pub async fn rotate(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let id = key_id(id)?;
    let made = blocking(move || {
        let made = gateway.app.keys.rotate(&id, &caller.key_id)?;
        let row = gateway.app.keys.active(&made.id)?;
        Ok(with_secret(shown(&row), made))
    });
    Ok(Json(made.await?))
}

/// `DELETE /admin/v1/keys/{id}`: revokes it.
pub async fn revoke(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let id = key_id(id)?;
    let row = blocking(move || Ok(gateway.app.keys.revoke(&id, &caller.key_id)?)).await?;
    Ok(Json(shown(&row)))
}

/// An id, not a name: several keys may share one.
fn key_id(id: Id) -> Result<String, Failure> {
    let id = id_of(id, "key")?;
    if id.starts_with("key_") { Ok(id) } else { Err(unknown()) }
}

fn unknown() -> Failure {
    Failure::new(Code::UNKNOWN_NAME, "no key has such an id").with_hint("GET /admin/v1/keys lists them")
}

fn changes(fields: &mut Fields) -> Result<Changes, Failure> {
    let routes = match fields.take("routes") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(Value::Array(items)) => {
            let names: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_string)).collect();
            Some(Some(names.ok_or_else(|| wrong("routes", ROUTES))?))
        }
        Some(_) => return Err(wrong("routes", ROUTES)),
    };
    let expires_at = match fields.take("expires_at") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(Value::Number(ms)) if ms.as_i64().is_some() => Some(ms.as_i64()),
        Some(Value::String(text)) => Some(Some(end_of(&text, now_ms()).ok_or_else(|| wrong("expires_at", EXPIRES))?)),
        Some(_) => return Err(wrong("expires_at", EXPIRES)),
    };
    Ok(Changes { routes, expires_at, limits: fields.limits()?, ..Changes::default() })
}

const ROUTES: &str = "a list of names, or null for all";
const EXPIRES: &str = "30d, a date such as 2027-01-31, a moment, milliseconds since 1970, or null";

fn with_secret(mut shown: Value, made: NewKey) -> Value {
    shown["key"] = made.key.into();
    shown
}
