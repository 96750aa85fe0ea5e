//! `/v1/evals`: evals, their runs and output items, as OpenAI's SDKs ask for them. What works on runs is
//! [`jobs::openai_eval`](crate::jobs::openai_eval).

pub mod schema;

use super::check;
use crate::access::Caller;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::gateway::{Gateway, body};
use crate::jobs::openai_eval::{NewEval, NewRun};
use crate::store::openai_evals::{self as rows, Counts, EvalItemRow, EvalRow, EvalRunRow, ITEM_STATUS, Page, Status};
use crate::store::{Db, StoreError};
use crate::types::ids::is_safe_name;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, Uri, header};
use serde_json::{Map, Value, json};

/// Items of a page.
const MAX_PAGE: usize = 100;
const PAGE: usize = 20;
/// What the id of an output item begins with; its place in the source follows.
const ITEM_ID: &str = "outputitem_";

type Ids<T> = Result<Path<T>, PathRejection>;

/// `POST /v1/evals`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (_, fields) = fields(&gateway, request).await?;
    check::metadata(&fields)?;
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    let new = NewEval {
        name: name(&fields)?,
        data_source: field("data_source_config"),
        criteria: field("testing_criteria"),
        metadata: labels(&fields),
    };
    let made = super::blocking(move || gateway.app.evals.create(&caller, new)).await?;
    Ok(Json(written(&made)))
}

/// `GET /v1/evals`.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let (after, limit, ascending) = page(&query)?;
    let by_update = match query.text("order_by") {
        None | Some("created_at") => false,
        Some("updated_at") => true,
        Some(_) => return Err(Failure::on(Code::INVALID_VALUE, "order_by", "order_by: expected created_at or updated_at").into()),
    };
    let store = gateway.app.store.clone();
    let (rows, more) = super::blocking(move || {
        let page = Page { after: after.as_deref(), limit, ascending };
        Ok(rows::list(store.db.as_ref(), &caller.project, page, by_update)?)
    })
    .await?;
    Ok(Json(super::page(rows.iter().map(written).collect(), more)))
}

/// `GET /v1/evals/{id}`.
pub async fn show(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Ids<String>) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "eval")?;
    let store = gateway.app.store.clone();
    let found = super::blocking(move || Ok(rows::get(store.db.as_ref(), &caller.project, &id)?)).await?;
    Ok(Json(written(&found)))
}

/// `POST /v1/evals/{id}`: another name, other labels.
pub async fn update(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Ids<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "eval")?;
    let (_, fields) = fields(&gateway, request).await?;
    check::metadata(&fields)?;
    let (name, metadata) = (name(&fields)?, fields.get("metadata").is_some_and(Value::is_object).then(|| labels(&fields)));
    let store = gateway.app.store.clone();
    let changed = super::blocking(move || Ok(rows::update(store.db.as_ref(), &caller.project, &id, name.as_deref(), metadata.as_ref())?));
    Ok(Json(written(&changed.await?)))
}

/// `DELETE /v1/evals/{id}`, with its runs.
pub async fn delete(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Ids<String>,
) -> Result<Json<Value>, ApiError> {
    let id = super::id_of(id, "eval")?;
    let (store, named) = (gateway.app.store.clone(), id.clone());
    super::blocking(move || match rows::delete(store.db.as_ref(), &caller.project, &named) {
        Err(StoreError::Conflict(_)) => {
            let failure = Failure::new(Code::CONFLICT, format!("a run of eval {named} has not ended"));
            Err(failure.with_hint("cancel it first, or wait until it has ended"))
        }
        other => Ok(other?),
    })
    .await?;
    Ok(Json(json!({"object": "eval.deleted", "deleted": true, "eval_id": id})))
}

/// `POST /v1/evals/{id}/runs`.
pub async fn create_run(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Ids<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let eval = super::id_of(id, "eval")?;
    let (headers, fields) = fields(&gateway, request).await?;
    check::metadata(&fields)?;
    let data_source = fields.get("data_source").cloned().unwrap_or_default();
    let new = NewRun { name: name(&fields)?, data_source, metadata: labels(&fields) };
    let made = super::blocking(move || gateway.app.evals.create_run(&caller, &eval, new)).await?;
    Ok(Json(written_run(&made, Counts::default(), &headers)))
}

/// `GET /v1/evals/{id}/runs`.
pub async fn list_runs(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Ids<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let eval = super::id_of(id, "eval")?;
    let query = Query::of(&uri);
    let (after, limit, ascending) = page(&query)?;
    let wrong = || Failure::on(Code::INVALID_VALUE, "status", "status: expected queued, in_progress, completed, failed or canceled");
    let status = query.text("status").map(|word| Status::of(word).ok_or_else(wrong)).transpose()?;
    let store = gateway.app.store.clone();
    let (rows, more) = super::blocking(move || {
        let db = store.db.as_ref();
        rows::get(db, &caller.project, &eval)?;
        let (runs, more) = rows::list_runs(db, &eval, Page { after: after.as_deref(), limit, ascending }, status)?;
        let counted = runs.into_iter().map(|run| Ok((rows::counts(db, &run.id)?, run))).collect::<Result<Vec<_>, StoreError>>()?;
        Ok((counted, more))
    })
    .await?;
    Ok(Json(super::page(rows.iter().map(|(counts, run)| written_run(run, *counts, &headers)).collect(), more)))
}

/// `GET /v1/evals/{id}/runs/{run}`.
pub async fn show_run(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    ids: Ids<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let ids = run_ids(ids)?;
    let store = gateway.app.store.clone();
    let (run, counts) = super::blocking(move || {
        let run = run_of(store.db.as_ref(), &caller, &ids)?;
        let counts = rows::counts(store.db.as_ref(), &run.id)?;
        Ok((run, counts))
    })
    .await?;
    Ok(Json(written_run(&run, counts, &headers)))
}

/// `POST /v1/evals/{id}/runs/{run}/cancel`, which older clients send to the run itself.
pub async fn cancel_run(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    ids: Ids<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let (eval, id) = run_ids(ids)?;
    let (run, counts) = super::blocking(move || {
        let run = gateway.app.evals.cancel(&caller, &eval, &id)?;
        let counts = rows::counts(gateway.app.store.db.as_ref(), &run.id)?;
        Ok((run, counts))
    })
    .await?;
    Ok(Json(written_run(&run, counts, &headers)))
}

/// `DELETE /v1/evals/{id}/runs/{run}`, with its items.
pub async fn delete_run(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    ids: Ids<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let ids = run_ids(ids)?;
    let (store, id) = (gateway.app.store.clone(), ids.1.clone());
    super::blocking(move || {
        let run = run_of(store.db.as_ref(), &caller, &ids)?;
        match rows::delete_run(store.db.as_ref(), &run.id) {
            Err(StoreError::Conflict(_)) => {
                Err(Failure::new(Code::CONFLICT, format!("run {} has not ended", run.id)).with_hint("cancel it first"))
            }
            other => Ok(other?),
        }
    })
    .await?;
    Ok(Json(json!({"object": "eval.run.deleted", "deleted": true, "run_id": id})))
}

/// `GET /v1/evals/{id}/runs/{run}/output_items`.
pub async fn list_items(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    ids: Ids<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let ids = run_ids(ids)?;
    let query = Query::of(&uri);
    // The order of the data source is the one that people look for.
    let ascending = query.text("order").is_none() || query.ascending()?;
    let (after, limit) = (query.after()?.map(place).transpose()?, query.limit(PAGE, MAX_PAGE)?);
    let status = query.text("status").map(String::from);
    if status.as_ref().is_some_and(|status| !ITEM_STATUS.contains(&status.as_str())) {
        let message = format!("status: expected one of {}", ITEM_STATUS.join(", "));
        return Err(Failure::on(Code::INVALID_VALUE, "status", message).into());
    }
    let store = gateway.app.store.clone();
    let (run, items, more) = super::blocking(move || {
        let run = run_of(store.db.as_ref(), &caller, &ids)?;
        let (items, more) = rows::items(store.db.as_ref(), &run.id, (after, limit, ascending), status.as_deref())?;
        Ok((run, items, more))
    })
    .await?;
    Ok(Json(super::page(items.iter().map(|item| written_item(&run, item)).collect(), more)))
}

/// `GET /v1/evals/{id}/runs/{run}/output_items/{item}`.
pub async fn show_item(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    ids: Ids<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let unknown = || Failure::new(Code::UNKNOWN_NAME, "no output item has such an id");
    let Ok(Path((eval, run, item))) = ids else { return Err(unknown().into()) };
    let number = place(&item).map_err(|_| unknown())?;
    let store = gateway.app.store.clone();
    let (run, item) = super::blocking(move || {
        let run = run_of(store.db.as_ref(), &caller, &(eval, run))?;
        let item = rows::item(store.db.as_ref(), &run.id, number)?;
        Ok((run, item))
    })
    .await?;
    Ok(Json(written_item(&run, &item)))
}

async fn fields(gateway: &Gateway, request: Request) -> Result<(HeaderMap, Map<String, Value>), Failure> {
    let (parts, body) = request.into_parts();
    let most = gateway.app.config().server.max_body_bytes;
    match body::read_json(&parts.headers, body, most).await? {
        Value::Object(fields) => Ok((parts.headers, fields)),
        _ => Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object")),
    }
}

fn name(fields: &Map<String, Value>) -> Result<Option<String>, Failure> {
    match fields.get("name") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name.clone())),
        Some(_) => Err(Failure::on(Code::INVALID_VALUE, "name", "name: expected a text")),
    }
}

/// Metadata is an object in every answer.
fn labels(fields: &Map<String, Value>) -> Value {
    fields.get("metadata").filter(|metadata| metadata.is_object()).cloned().unwrap_or_else(|| json!({}))
}

fn page(query: &Query) -> Result<(Option<String>, usize, bool), Failure> {
    // OpenAI's lists of evals begin with the oldest.
    let ascending = query.text("order").is_none() || query.ascending()?;
    Ok((query.after()?.map(String::from), query.limit(PAGE, MAX_PAGE)?, ascending))
}

fn run_ids(ids: Ids<(String, String)>) -> Result<(String, String), Failure> {
    let ids = ids.ok().map(|Path(ids)| ids).filter(|(eval, run)| is_safe_name(eval) && is_safe_name(run));
    ids.ok_or_else(|| Failure::new(Code::UNKNOWN_NAME, "no run has such an id"))
}

fn run_of(db: &dyn Db, caller: &Caller, (eval, run): &(String, String)) -> Result<EvalRunRow, StoreError> {
    rows::get_run(db, &caller.project, eval, run)
}

/// The place of an output item, by its id.
fn place(id: &str) -> Result<u64, Failure> {
    let number = id.strip_prefix(ITEM_ID).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::on(Code::INVALID_VALUE, "after", "after: expected the id of an output item"))
}

fn written(eval: &EvalRow) -> Value {
    json!({"id": eval.id, "object": "eval", "name": eval.name, "created_at": eval.created_at / 1000, "metadata": eval.metadata,
        "data_source_config": eval.data_source, "testing_criteria": eval.criteria})
}

fn written_run(run: &EvalRunRow, counts: Counts, headers: &HeaderMap) -> Value {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let Counts { passed, failed, errored } = counts;
    json!({"id": run.id, "object": "eval.run", "eval_id": run.eval, "status": run.status.word(), "model": run.model, "name": run.name,
        "created_at": run.created_at / 1000, "metadata": run.metadata, "data_source": run.data_source, "error": run.error,
        "report_url": format!("http://{host}/v1/evals/{}/runs/{}/output_items", run.eval, run.id),
        "result_counts": {"total": passed + failed + errored, "errored": errored, "failed": failed, "passed": passed},
        "per_model_usage": run.usage, "per_testing_criteria_results": run.per_criteria})
}

fn written_item(run: &EvalRunRow, item: &EvalItemRow) -> Value {
    json!({"id": format!("{ITEM_ID}{}", item.number), "object": "eval.run.output_item", "created_at": item.created_at / 1000,
        "eval_id": run.eval, "run_id": run.id, "status": item.status, "datasource_item_id": item.number, "datasource_item": item.item,
        "results": item.results, "sample": item.sample})
}
