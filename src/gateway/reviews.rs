//! `/v1/reviews`: what was proposed for datasets, looked at by people. The reviewer is the key; keys of the role developer may, each in its
//! own project.

use super::Gateway;
use super::admin::Fields;
use super::body::Json;
use super::error::ApiError;
use super::query::Query;
use crate::access::Caller;
use crate::jobs::data::review::{self, Said};
use crate::store::reviews::{self, Page, STATUSES};
use crate::types::blocking::blocking;
use crate::types::ids::is_safe_name;
use crate::types::{Code, Failure};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Uri;
use serde_json::{Value, json};

type Id = Result<Path<String>, PathRejection>;

/// Items of a page, by default and at most.
const PAGE: (usize, usize) = (20, 100);
/// Longest comment, bytes.
const MOST_COMMENT: usize = 4_096;

/// `GET /v1/reviews?dataset=…&status=…`: those first that were proposed first.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let limit = query.limit(PAGE.0, PAGE.1)?;
    let text = |name: &str| query.text(name).map(str::to_string);
    let (after, dataset, status) = (query.after()?.map(str::to_string), text("dataset"), text("status"));
    if let Some(status) = status.as_deref().filter(|status| !STATUSES.contains(status)) {
        let message = format!("status: expected one of {}, not {status:?}", STATUSES.join(", "));
        return Err(Failure::on(Code::INVALID_VALUE, "status", message).into());
    }
    let store = gateway.app.store.clone();
    let (items, more) = blocking(move || {
        let page =
            Page { project: Some(&caller.project), dataset: dataset.as_deref(), status: status.as_deref(), after: after.as_deref(), limit };
        Ok(reviews::list(store.db.as_ref(), &page)?)
    })
    .await?;
    Ok(Json(json!({"object": "list", "data": items, "has_more": more})))
}

/// `GET /v1/reviews/{id}`: the item with what was said of it.
pub async fn show(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let (id, store) = (id_of(id)?, gateway.app.store.clone());
    Ok(Json(json!(blocking(move || Ok(review::show(&store, Some(&caller.project), &id, &caller.key_id)?)).await?)))
}

/// `POST /v1/reviews/{id}`: `{"verdict": "accept" | "edit" | "reject", "sample": {…}, "comment": "…", "settles": false}`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    id: Id,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let item = id_of(id)?;
    let (store, named, asker) = (gateway.app.store.clone(), item.clone(), caller.clone());
    // Of what is another project's nothing is told, whatever the body says.
    blocking(move || Ok(review::show(&store, Some(&asker.project), &named, &asker.key_id)?)).await?;
    let mut fields = Fields::of(&gateway, request).await?;
    let said = Said {
        item,
        reviewer: caller.key_id.clone(),
        verdict: fields.needed("verdict")?,
        edited: fields.take("sample").filter(|sample| !sample.is_null()),
        comment: fields.text("comment")?,
        is_final: fields.switch("settles")?,
    };
    fields.finish()?;
    if said.comment.as_ref().is_some_and(|comment| comment.len() > MOST_COMMENT) {
        return Err(Failure::on(Code::INVALID_VALUE, "comment", format!("comment: expected at most {MOST_COMMENT} bytes")).into());
    }
    let store = gateway.app.store.clone();
    Ok(Json(json!(blocking(move || review::say(&store, Some(&caller.project), said)).await?)))
}

/// `GET /v1/reviews/agreement/{dataset}`.
pub async fn agreement(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, id: Id) -> Result<Json<Value>, ApiError> {
    let (dataset, store) = (id_of(id)?, gateway.app.store.clone());
    let agreement = blocking(move || {
        let project = Some(caller.project.as_str());
        let page = Page { project, dataset: Some(&dataset), limit: 1, ..Page::default() };
        if reviews::list(store.db.as_ref(), &page)?.0.is_empty() {
            return Err(Failure::new(Code::UNKNOWN_NAME, "nothing was proposed for such a dataset"));
        }
        Ok(review::agreement(&store, project, &dataset)?)
    });
    Ok(Json(json!(agreement.await?)))
}

fn id_of(id: Id) -> Result<String, Failure> {
    let id = id.ok().map(|Path(id)| id).filter(|id| is_safe_name(id));
    id.ok_or_else(|| Failure::new(Code::UNKNOWN_NAME, "no review item has such an id"))
}
