//! `GET /status`: what an operator asks first. With a key of the role viewer or above it tells what is in force and what is wrong;
//! anybody else learns whether the process answers. `GET /ready`: whether requests should be sent here.

use super::Gateway;
use super::body::Json;
use super::error::ApiError;
use super::middleware::access;
use crate::access::Role;
use crate::app::App;
use crate::monitor::health::Look;
use crate::monitor::record::LogState;
use crate::monitor::snapshots;
use crate::types::time::{now_ms, rfc3339};
use crate::types::{Code, Failure};
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a caller waits for a look at the disk before the newest known one has to do.
const PATIENCE: Duration = Duration::from_secs(2);

/// `GET /status`.
pub async fn status(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    let caller = access::known_caller(&gateway, &headers).await?;
    let app = &gateway.app;
    let (look, log) = (look(app).await, app.recorder.state());
    let wrong = wrong(&look, &log);
    let word = if wrong.is_empty() { "ok" } else { "failing" };
    let word = if app.metrics.serving.is_draining() { "draining" } else { word };
    let mut told = json!({"status": word, "version": env!("CARGO_PKG_VERSION")});
    if let Some(caller) = caller.filter(|caller| caller.role >= Role::Viewer) {
        let detail = detail(&gateway, &look, &log);
        told.as_object_mut().expect("an object, made above").extend(detail.as_object().cloned().unwrap_or_default());
        told["targets"] = targets(app, caller.role);
        told["models_changed"] = models_changed(app, caller.role).await;
        told["wrong"] = wrong.into();
    }
    Ok(Json(told))
}

/// `GET /ready`: 200, or a 503 that says why not.
pub async fn ready(State(gateway): State<Gateway>) -> Result<Json<Value>, ApiError> {
    let app = &gateway.app;
    if app.metrics.serving.is_draining() {
        return Err(Failure::new(Code::UNAVAILABLE, "not ready: the server is shutting down").into());
    }
    let wrong = wrong(&look(app).await, &app.recorder.state());
    if wrong.is_empty() {
        return Ok(Json(json!({"status": "ready"})));
    }
    // The reasons may name what strangers need not know: they are told on /status.
    Err(Failure::new(Code::UNAVAILABLE, "not ready: what is to be kept cannot be written").with_hint("GET /status says why").into())
}

/// A look at the disk. One that takes long is not waited for.
async fn look(app: &Arc<App>) -> Look {
    if let Some(known) = app.health.known() {
        return known;
    }
    let health = app.health.clone();
    let looked = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || health.look())).await;
    looked.ok().and_then(Result::ok).or_else(|| app.health.known()).unwrap_or_else(|| {
        let slow = Some(format!("no answer within {} s", PATIENCE.as_secs()));
        Look { at: now_ms(), database: slow.clone(), files: slow }
    })
}

/// What keeps this process from being ready, in words.
fn wrong(look: &Look, log: &LogState) -> Vec<String> {
    let database = look.database.as_ref().map(|why| format!("the database cannot be written: {why}"));
    let files = look.files.as_ref().map(|why| format!("files cannot be written: {why}"));
    let disk = log.disk.as_ref().map(|why| format!("log rows cannot be written: {why}; {} are kept in memory", log.kept));
    let moving = log.database.as_ref().map(|why| format!("log rows cannot be moved to the database: {why}"));
    [database, files, disk, moving].into_iter().flatten().collect()
}

fn detail(gateway: &Gateway, look: &Look, log: &LogState) -> Value {
    let (app, now) = (&gateway.app, now_ms());
    let (setup, serving) = (app.inference.setup(), &app.metrics.serving);
    let configured = |name: &str| setup.config.providers.iter().find(|provider| provider.name == name);
    let provider = |name: &str| match configured(name) {
        Some(provider) => json!({"name": name, "kind": provider.kind, "configured": true}),
        None => json!({"name": name, "kind": name, "configured": false}),
    };
    let possible = usize::try_from(serving.connections_possible.get()).unwrap_or(usize::MAX);
    let limit = setup.config.server.max_connections.min(possible);
    let oldest_s = log.oldest_unmoved_at.map(|at| (now - at).max(0) / 1_000);
    json!({
        "started_at": rfc3339(app.started_at),
        "uptime_s": (now - app.started_at).max(0) / 1_000,
        "config": config(app),
        "providers": setup.providers.names().into_iter().map(provider).collect::<Vec<_>>(),
        "log": {"pending": log.pending, "kept": log.kept, "dropped": log.dropped, "oldest_unmoved_s": oldest_s,
            "disk": log.disk, "database": log.database},
        "database": {"ok": look.database.is_none(), "problem": look.database, "looked_at": rfc3339(look.at)},
        "files": {"ok": look.files.is_none(), "problem": look.files, "looked_at": rfc3339(look.at)},
        "batches": {"running": app.batches.running()}, "evals": {"running": app.evals.running()},
        "connections": {"open": serving.connections.get(), "limit": limit,
            "refused": serving.connections_refused.get()},
        "draining": serving.is_draining(),
    })
}

/// The targets that were called. What they are called tells what other projects use: to those who are no administrators it is only told
/// how many are in which state.
fn targets(app: &App, role: Role) -> Value {
    let targets = app.inference.targets();
    if role >= Role::Admin {
        return json!(targets);
    }
    let count = |state: &str| targets.iter().filter(|target| target.state == state).count();
    json!({"closed": count("closed"), "open": count("open"), "half_open": count("half_open")})
}

/// The models of providers that have begun to answer as something else of late; to those who are no administrators, how many. Null where
/// the database cannot say, or not soon.
async fn models_changed(app: &App, role: Role) -> Value {
    let db = app.store.db.clone();
    let read = tokio::task::spawn_blocking(move || snapshots::changed_since(db.as_ref(), now_ms() - snapshots::LATE_MS));
    match tokio::time::timeout(PATIENCE, read).await.ok().and_then(Result::ok).and_then(Result::ok) {
        Some(changes) if role >= Role::Admin => json!(changes),
        Some(changes) => json!(changes.len()),
        None => Value::Null,
    }
}

fn config(app: &App) -> Value {
    let report = app.live.report();
    let refused = report.refused.map(
        |refused| json!({"at": rfc3339(refused.at), "digest": refused.digest, "message": refused.message, "problems": refused.problems}),
    );
    json!({"source": report.source, "digest": report.digest, "loaded_at": rfc3339(report.loaded_at), "reloads": report.reloads,
        "refused": refused, "waiting_for_restart": report.waiting_for_restart})
}
