//! `GET /admin/v1/usage`: what was used, by day, key, project or model. An admin sees every project, others their own.

use super::{blocking, wrong};
use crate::access::{Caller, Role};
use crate::gateway::Gateway;
use crate::gateway::body::Json;
use crate::gateway::error::ApiError;
use crate::gateway::query::Query;
use crate::store::usage::{self, By, Report};
use crate::types::time::day_of_date;
use crate::types::{Code, Failure};
use axum::extract::{Extension, State};
use axum::http::Uri;
use serde_json::{Value, json};

/// The handler.
pub async fn show(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let by = by(query.text("by").unwrap_or("day"))?;
    let since = query.text("since").map(|text| day_of_date(text).ok_or_else(|| wrong("since", "a date such as 2026-11-25"))).transpose()?;
    let project = project(&caller, query.text("project"))?;
    let app = gateway.app.clone();
    let lines = blocking(move || {
        // Rows on their way to the database are used, too.
        app.recorder.flush()?;
        let report = Report { by, since_day: since.unwrap_or(i64::MIN), project: project.as_deref() };
        Ok(usage::report(app.store.db.as_ref(), report)?)
    });
    let lines = lines.await?;
    Ok(Json(json!({"object": "list", "data": lines.iter().map(|line| line.shown(by)).collect::<Vec<_>>()})))
}

fn by(word: &str) -> Result<By, Failure> {
    By::ALL.iter().find(|(_, known)| *known == word).map(|(by, _)| *by).ok_or_else(|| wrong("by", "one of day, key, project, model"))
}

/// The project that the caller may see; none for all.
fn project(caller: &Caller, asked: Option<&str>) -> Result<Option<String>, Failure> {
    if caller.role >= Role::Admin {
        return Ok(asked.map(str::to_string));
    }
    match asked {
        Some(other) if other != caller.project => {
            Err(Failure::on(Code::FORBIDDEN, "project", "the key's role may see the usage of its own project; admin may see others"))
        }
        _ => Ok(Some(caller.project.clone())),
    }
}
