//! `/admin/v1/projects`: tenants and their limits.

use super::{Fields, blocking, id_of};
use crate::access::{Caller, projects};
use crate::gateway::Gateway;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use serde_json::{Value, json};

type Name = Result<Path<String>, PathRejection>;

/// `GET /admin/v1/projects`: all that have a key or a limit.
pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Value>, ApiError> {
    let rows = blocking(move || Ok(projects::list(&gateway.app.store)?)).await?;
    Ok(Json(json!({"object": "list", "data": rows.iter().map(projects::shown).collect::<Vec<_>>()})))
}

/// `GET /admin/v1/projects/{name}`.
pub async fn show(State(gateway): State<Gateway>, name: Name) -> Result<Json<Value>, ApiError> {
    let name = id_of(name, "project")?;
    let row = blocking(move || Ok(projects::get(&gateway.app.store, &name)?)).await?;
    Ok(Json(projects::shown(&row)))
}

/// `PATCH /admin/v1/projects/{name}`: what is named changes, what is null is taken away.
pub async fn update(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    name: Name,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let name = id_of(name, "project")?;
    let mut fields = Fields::of(&gateway, request).await?;
    let changes = fields.limits()?;
    fields.finish()?;
    let row = blocking(move || Ok(projects::set(&gateway.app.store, &name, &changes, &caller.key_id)?)).await?;
    Ok(Json(projects::shown(&row)))
}
