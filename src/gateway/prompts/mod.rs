//! The prompt library over HTTP. `/v1/prompts`: list, publish, show, history; [`labels`]: move and take away; [`render`]: fill in
//! variables, and call ([`calls`]); [`langfuse`]: the same prompts where Langfuse's clients look for them. Viewers read, developers
//! change, applications call.

pub mod labels;
pub mod langfuse;
pub mod render;
pub mod schema;

use super::Gateway;
use super::admin::{Fields, blocking, wrong};
use super::body::Json;
use super::error::ApiError;
use crate::access::{Caller, Role, audit};
use crate::prompts::Library;
use crate::prompts::library::{By, LATEST, Labels, Parent};
use crate::store::prompts::PromptVersion;
use crate::types::ids::is_safe_name;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

type Name = Result<Path<String>, PathRejection>;
type Two = Result<Path<(String, String)>, PathRejection>;

/// `GET /v1/prompts`: every prompt with its newest version and labels.
pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Value>, ApiError> {
    let entries = blocking(move || Ok(library(&gateway).list()?)).await?;
    let shown: Vec<_> = entries.iter().map(|entry| described(&entry.newest, &entry.labels, true)).collect();
    Ok(Json(json!({"object": "list", "data": shown})))
}

/// `POST /v1/prompts`: another version. It names the version that it was edited from, in `parent` or `If-Match`; without one, the
/// prompt must be new.
pub async fn publish(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    at_least(&caller, Role::Developer)?;
    let matched = if_match(request.headers())?;
    let mut fields = Fields::of(&gateway, request).await?;
    let (name, source) = (fields.needed("name")?, fields.needed("source")?);
    let message = fields.text("message")?.unwrap_or_default();
    let parent = selector(&mut fields, "parent", PARENT)?.or(matched);
    fields.finish()?;
    let shown = blocking(move || {
        let (library, commit) = (library(&gateway), audit::commit(&gateway.app.store));
        let parent = match parent {
            Some(word) => library.parent(&name, &word).map_err(|error| Failure::on(Code::UNKNOWN_NAME, "parent", error.to_string()))?,
            None => Parent::Nothing,
        };
        let by = By { author: &caller.key_id, message: &message, commit: &commit };
        let published = library.publish_from(&name, &source, parent, by)?;
        let mut shown = described(&published.version, &library.labels(&name)?, published.is_new);
        shown["is_new"] = published.is_new.into();
        Ok(shown)
    });
    Ok(Json(shown.await?))
}

const PARENT: &str = "the number or digest of the version that was edited, \"none\" for a new prompt, or \"*\" for whatever is there";

/// `GET /v1/prompts/{name}`: its versions, newest first, and its labels.
pub async fn show(State(gateway): State<Gateway>, name: Name) -> Result<Json<Value>, ApiError> {
    let name = name_of(name)?;
    let (versions, labels) = blocking(move || Ok(library(&gateway).versions(&name)?)).await?;
    let shown: Vec<_> = versions.iter().enumerate().map(|(at, version)| described(version, &labels, at == 0)).collect();
    let labels: serde_json::Map<_, _> = labels.iter().map(|(label, version)| (label.clone(), json!(version))).collect();
    Ok(Json(json!({"object": "prompt", "name": versions[0].prompt, "labels": labels, "versions": shown})))
}

/// `GET /v1/prompts/{name}/versions/{version}`: one version with its source; a number, a label or a digest.
pub async fn version(State(gateway): State<Gateway>, path: Two) -> Result<Json<Value>, ApiError> {
    let (name, selector) = two_of(path)?;
    let shown = blocking(move || {
        let library = library(&gateway);
        let version = library.get(&format!("{name}@{selector}"))?;
        let prompt = library.compile(&version)?;
        let is_newest = library.newest(&name)?.is_some_and(|newest| newest.version == version.version);
        let mut shown = described(&version, &library.labels(&name)?, is_newest);
        shown["source"] = version.source.into();
        shown["description"] = json!(prompt.front.description);
        shown["model"] = json!(prompt.front.model);
        shown["config"] = json!(prompt.front.config);
        shown["required_variables"] = prompt.required_variables().into();
        shown["input_schema"] = json!(prompt.front.input_schema);
        shown["output_schema"] = json!(prompt.front.output_schema);
        Ok(shown)
    });
    Ok(Json(shown.await?))
}

/// `GET /v1/prompts/{name}/history`: every move of its labels, newest first.
pub async fn history(State(gateway): State<Gateway>, name: Name) -> Result<Json<Value>, ApiError> {
    let name = name_of(name)?;
    let moves = blocking(move || {
        let library = library(&gateway);
        library.versions(&name)?;
        Ok(library.history(&name)?)
    });
    Ok(Json(json!({"object": "list", "data": moves.await?})))
}

/// A version as it is shown.
fn described(version: &PromptVersion, labels: &Labels, is_newest: bool) -> Value {
    let own = labels.iter().filter(|(_, at)| *at == version.version).map(|(label, _)| label.as_str());
    let labels: Vec<_> = own.chain(is_newest.then_some(LATEST)).collect();
    json!({"object": "prompt.version", "name": version.prompt, "version": version.version, "digest": version.digest, "labels": labels,
        "author": version.author, "message": version.message, "created_at": version.created_at, "parent": version.parent})
}

/// The library; compiled prompts are shared with the calls.
fn library(gateway: &Gateway) -> Library {
    gateway.app.inference.library().clone()
}

/// Refuses a caller whose role is less than this path's other methods ask for.
fn at_least(caller: &Caller, role: Role) -> Result<(), Failure> {
    if caller.role >= role {
        return Ok(());
    }
    Err(Failure::new(Code::FORBIDDEN, format!("the key's role {} may not do this; {role} may", caller.role)))
}

/// A version as a body names it: a text or a number.
fn selector(fields: &mut Fields, field: &str, expected: &str) -> Result<Option<String>, Failure> {
    match fields.take(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) => Ok(Some(word)),
        Some(Value::Number(number)) if number.as_i64().is_some_and(|number| number > 0) => Ok(Some(number.to_string())),
        Some(_) => Err(wrong(field, expected)),
    }
}

/// The version that a body was edited from, as HTTP says it.
fn if_match(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let word = value.to_str().unwrap_or_default().trim().trim_matches('"');
    if is_safe_name(word) || word == "*" {
        return Ok(Some(word.to_string()));
    }
    Err(Failure::on(Code::INVALID_VALUE, "if-match", "if-match: expected one digest in quotes, or *"))
}

/// The name of a path; what cannot be one names nothing.
fn name_of(name: Name) -> Result<String, Failure> {
    let name = name.ok().map(|Path(name)| name).filter(|name| is_safe_name(name));
    name.ok_or_else(unknown)
}

fn two_of(path: Two) -> Result<(String, String), Failure> {
    let two = path.ok().map(|Path(two)| two).filter(|(name, word)| is_safe_name(name) && is_safe_name(word));
    two.ok_or_else(unknown)
}

fn unknown() -> Failure {
    Failure::new(Code::UNKNOWN_NAME, "no prompt has such a name").with_hint("GET /v1/prompts lists them")
}
