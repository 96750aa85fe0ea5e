//! `/v1/fine_tuning/jobs`: make, list, show, cancel, pause, resume; events and checkpoints. What works on them is
//! [`jobs::fine_tune`](crate::jobs::fine_tune): local models are trained here, models of a provider there.

pub mod schema;
mod shown;

use super::check;
use crate::access::Caller;
use crate::config::Config;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::gateway::{Gateway, body};
use crate::jobs::fine_tune::{FineTunes, Hosted, NewFineTune};
use crate::store::fine_tunes::{FineTuneRow, WithJob};
use crate::store::jobs::JobRecord;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Uri;
use serde_json::Value;

/// Items of a page.
const MAX_PAGE: usize = 100;
const PAGE: usize = 20;
const LOCAL: &str = "local/";

type Id = Result<Path<String>, PathRejection>;

/// `POST /v1/fine_tuning/jobs`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let most = gateway.app.config().server.max_body_bytes;
    let Value::Object(fields) = body::read_json(&parts.headers, body, most).await? else {
        return Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object").into());
    };
    check::metadata(&fields)?;
    let mut new = NewFineTune::read(fields)?;
    new.model = model(&gateway.app.config(), &new.model)?;
    allowed(&caller, &new.model)?;
    let made = if new.model.starts_with(LOCAL) {
        new.check_local()?;
        let gateway = gateway.clone();
        super::blocking(move || gateway.app.fine_tunes.create(&caller, &new)).await?
    } else {
        unbudgeted(&gateway.app.config(), &caller, &new.model)?;
        // A caller who hangs up changes nothing any more: what a provider trains must have its row.
        let making = async move { Hosted::new(&gateway.app.fine_tunes, &gateway.app.providers()).create(&caller, new).await };
        tokio::spawn(making).await.map_err(|error| Failure::new(Code::INTERNAL, format!("the fine-tuning job was not made: {error}")))??
    };
    Ok(Json(shown::job(&made)))
}

/// The model that a name stands for: a configured route with one target stands for that.
fn model(config: &Config, name: &str) -> Result<String, Failure> {
    let wrong = |message: String| Failure::on(Code::INVALID_VALUE, "model", message);
    let model = match config.routes.iter().find(|route| route.name == name) {
        None => name,
        Some(route) => match route.targets.as_slice() {
            [one] => one.model.as_str(),
            targets => {
                let message = format!("model: the route \"{name}\" has {} targets; one model is fine-tuned at a time", targets.len());
                return Err(wrong(message).with_hint("name a model, provider/model"));
            }
        },
    };
    if model.strip_prefix(LOCAL).is_some_and(|model| model.contains(':')) {
        return Err(wrong(format!("model: \"{model}\" is fine-tuned already; what is trained here begins with a base model")));
    }
    Ok(model.to_string())
}

fn allowed(caller: &Caller, model: &str) -> Result<(), Failure> {
    let names = caller.bounds.as_ref().and_then(|bounds| bounds.names.as_ref());
    if names.is_none_or(|names| names.allow(model)) {
        return Ok(());
    }
    Err(Failure::on(Code::FORBIDDEN, "model", format!("this key may not call {model:?}"))
        .with_hint("GET /v1/models lists what it may call"))
}

/// A provider's price for training is not known here, so that no budget can hold it.
fn unbudgeted(config: &Config, caller: &Caller, model: &str) -> Result<(), Failure> {
    let has_budget = caller.bounds.as_ref().is_some_and(|bounds| bounds.meters.iter().any(|meter| meter.has_budget()));
    if !has_budget || config.budgets.allow_unpriced {
        return Ok(());
    }
    let message = format!("what training {model} costs is not known here, and a budget stands over this key");
    Err(Failure::on(Code::PRICE_UNKNOWN, "model", message).with_hint("use a key without a budget, or set budgets.unpriced = \"allow\""))
}

/// `GET /v1/fine_tuning/jobs`.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (after, limit, labels) = (query.after()?.map(String::from), query.limit(PAGE, MAX_PAGE)?, query.pairs("metadata"));
    let (found, more) = super::blocking(move || gateway.app.fine_tunes.list(&caller, (after.as_deref(), limit), &labels)).await?;
    Ok(Json(super::page(found.iter().map(shown::job).collect(), more)))
}

/// `GET /v1/fine_tuning/jobs/{id}`.
pub async fn show(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let found = match found(&gateway, &caller, id).await? {
        (row, None) => (hosted(&gateway).refresh(row).await?, None),
        here => here,
    };
    Ok(Json(shown::job(&found)))
}

/// `POST /v1/fine_tuning/jobs/{id}/cancel`.
pub async fn cancel(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    act(gateway, caller, id, ("cancel", FineTunes::cancel)).await
}

/// `POST /v1/fine_tuning/jobs/{id}/pause`.
pub async fn pause(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    act(gateway, caller, id, ("pause", FineTunes::pause)).await
}

/// `POST /v1/fine_tuning/jobs/{id}/resume`.
pub async fn resume(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    act(gateway, caller, id, ("resume", FineTunes::resume)).await
}

/// What is done to one that trains here.
type Act = fn(&FineTunes, &Caller, &str) -> Result<WithJob, Failure>;

async fn act(gateway: Gateway, caller: Caller, id: Id, (verb, here): (&str, Act)) -> Result<Json<Value>, ApiError> {
    let changed = match found(&gateway, &caller, id).await? {
        (row, None) => (hosted(&gateway).act(row, verb).await?, None),
        (row, Some(_)) => super::blocking(move || here(&gateway.app.fine_tunes, &caller, &row.id)).await?,
    };
    Ok(Json(shown::job(&changed)))
}

/// `GET /v1/fine_tuning/jobs/{id}/events`, newest first.
pub async fn events(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (after, limit) = (query.after()?.map(String::from), query.limit(PAGE, MAX_PAGE)?);
    match found(&gateway, &caller, id).await? {
        (row, None) => Ok(Json(hosted(&gateway).page(&row, "events", (after.as_deref(), limit)).await?)),
        (_, Some(job)) => {
            let (events, more) = super::blocking(move || gateway.app.fine_tunes.events(&job, after.as_deref(), limit)).await?;
            Ok(Json(super::page(events.iter().map(shown::event).collect(), more)))
        }
    }
}

/// `GET /v1/fine_tuning/jobs/{id}/checkpoints`.
pub async fn checkpoints(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (after, limit) = (query.after()?.map(String::from), query.limit(PAGE, MAX_PAGE)?);
    let (row, job) = match found(&gateway, &caller, id).await? {
        (row, None) => return Ok(Json(hosted(&gateway).page(&row, "checkpoints", (after.as_deref(), limit)).await?)),
        (row, Some(job)) => (row, job),
    };
    let of = job.clone();
    let kept = super::blocking(move || gateway.app.fine_tunes.checkpoint(&of)).await?;
    let data: Vec<_> = kept.iter().map(|event| shown::checkpoint(&row, &job, event)).collect();
    // There is one, and nothing behind it.
    Ok(Json(super::page(if after.is_some() { Vec::new() } else { data }, false)))
}

fn hosted(gateway: &Gateway) -> Hosted {
    Hosted::new(&gateway.app.fine_tunes, &gateway.app.providers())
}

async fn found(gateway: &Gateway, caller: &Caller, id: Id) -> Result<(FineTuneRow, Option<JobRecord>), Failure> {
    let id = super::id_of(id, "fine-tuning job")?;
    let (gateway, caller) = (gateway.clone(), caller.clone());
    super::blocking(move || gateway.app.fine_tunes.get(&caller, &id)).await
}
