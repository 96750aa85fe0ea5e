//! Labels over HTTP: pointed at a version, put back, taken away.

use super::{Two, at_least, library, selector, two_of};
use crate::access::{Caller, Role, audit};
use crate::evals::protect::{self, Promotion};
use crate::gateway::Gateway;
use crate::gateway::admin::{Fields, blocking, wrong};
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::prompts::library::By;
use crate::store::prompts::LabelMove;
use crate::types::Failure;
use axum::extract::{Extension, Request, State};
use axum::http::Uri;
use serde_json::{Value, json};

/// `POST /v1/prompts/{name}/labels/{label}`: `{"version": …, "message": …}`. A protected label needs a version that is proven, or an
/// admin's `force` with a message.
pub async fn promote(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    path: Two,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (name, label) = two_of(path)?;
    let mut fields = Fields::of(&gateway, request).await?;
    let version = selector(&mut fields, "version", "a version's number, its digest or a label")?;
    let (message, force) = (fields.text("message")?.unwrap_or_default(), fields.switch("force")?);
    fields.finish()?;
    at_least(&caller, if force { Role::Admin } else { Role::Developer })?;
    let moved = blocking(move || {
        let (library, commit) = (library(&gateway), audit::commit(&gateway.app.store));
        let reference = version.map_or_else(|| name.clone(), |version| format!("{name}@{version}"));
        let by = By { author: &caller.key_id, message: &message, commit: &commit };
        let promotion = Promotion { reference: &reference, label: &label, force };
        let setup = gateway.app.inference.setup();
        Ok(shown(&name, &protect::promote(&gateway.app.store, &library, &setup.config.prompts, promotion, by)?))
    });
    Ok(Json(moved.await?))
}

/// `POST /v1/prompts/{name}/labels/{label}/rollback`: back to where it stood before its last move. A protected label goes only
/// to a version that is proven, or with an admin's `force` and a message.
pub async fn rollback(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    path: Two,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (name, label) = two_of(path)?;
    let mut fields = Fields::of(&gateway, request).await?;
    let (message, force) = (fields.text("message")?.unwrap_or_default(), fields.switch("force")?);
    fields.finish()?;
    at_least(&caller, if force { Role::Admin } else { Role::Developer })?;
    let moved = blocking(move || {
        let (library, commit) = (library(&gateway), audit::commit(&gateway.app.store));
        let by = By { author: &caller.key_id, message: &message, commit: &commit };
        let setup = gateway.app.inference.setup();
        Ok(shown(&name, &protect::rollback(&library, &setup.config.prompts, (&name, &label), force, by)?))
    });
    Ok(Json(moved.await?))
}

/// `DELETE /v1/prompts/{name}/labels/{label}`: whoever asks for it from now on is told that it does not exist. `message` and `force`
/// stand in the query string.
pub async fn remove(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    path: Two,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let (name, label) = two_of(path)?;
    let query = Query::of(&uri);
    let (message, force) = (query.text("message").unwrap_or_default().to_string(), is_forced(&query)?);
    at_least(&caller, if force { Role::Admin } else { Role::Developer })?;
    let moved = blocking(move || {
        let (library, commit) = (library(&gateway), audit::commit(&gateway.app.store));
        let by = By { author: &caller.key_id, message: &message, commit: &commit };
        let setup = gateway.app.inference.setup();
        Ok(shown(&name, &protect::remove(&library, &setup.config.prompts, (&name, &label), force, by)?))
    });
    Ok(Json(moved.await?))
}

fn is_forced(query: &Query) -> Result<bool, Failure> {
    match query.text("force") {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(wrong("force", "true or false")),
    }
}

fn shown(name: &str, step: &LabelMove) -> Value {
    let mut shown = json!(step);
    shown["object"] = "prompt.label_move".into();
    shown["name"] = name.into();
    shown
}
