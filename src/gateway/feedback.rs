//! `POST /v1/feedback`: what somebody thinks of a logged request of the same project, found by any of its names. `GET /v1/feedback`
//! lists what a request has.

use super::Gateway;
use super::body::{self, Json};
use super::error::ApiError;
use super::query::Query;
use crate::access::Caller;
use crate::monitor::record;
use crate::store::feedback::{self, FeedbackRow, Kind};
use crate::types::blocking::blocking;
use crate::types::error::did_you_mean;
use crate::types::ids::{is_safe_name, new_id};
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use axum::extract::{Extension, Request, State};
use axum::http::Uri;
use serde_json::{Map, Value, json};

/// Largest body.
const MAX_BODY_BYTES: usize = 256 << 10;
/// Longest texts, bytes.
const MAX_VALUE_BYTES: usize = 4_096;
const MAX_COMMENT_BYTES: usize = 16_384;
const MAX_CORRECTION_BYTES: usize = 131_072;
/// Pieces of feedback that one request may have.
const MAX_OF_REQUEST: usize = 1_000;
const FIELDS: [&str; 7] = ["target", "name", "value", "comment", "correction", "source", "id"];
/// Names by which a request is found.
const TARGETS: [(&str, Kind); 4] = [
    ("request_id", Kind::Request),
    ("completion_id", Kind::Completion),
    ("trace_id", Kind::Trace),
    ("conversation_id", Kind::Conversation),
];

/// Feedback as it was sent.
struct Given {
    kind: Kind,
    target: String,
    row: FeedbackRow,
}

/// `POST /v1/feedback`.
pub async fn create(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let Value::Object(fields) = body::read_json(&parts.headers, body, MAX_BODY_BYTES).await? else {
        return Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object").into());
    };
    let mut given = checked(&fields, caller)?;
    if let Some(redactor) = &gateway.app.inference.setup().log.redactor {
        let row = &mut given.row;
        for text in [&mut row.comment, &mut row.correction, &mut row.source].into_iter().flatten() {
            *text = redactor.text(text);
        }
        if let Ok(value) = serde_json::from_str::<String>(&row.value) {
            row.value = json!(redactor.text(&value)).to_string();
        }
    }
    let row = keep(gateway, given).await?;
    Ok(Json(written(&row)))
}

/// `GET /v1/feedback?request_id=…`: oldest first; the other names do as well.
pub async fn list(State(gateway): State<Gateway>, Extension(caller): Extension<Caller>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri);
    let named = TARGETS.iter().find_map(|(name, kind)| Some((*name, *kind, query.text(name)?.to_string())));
    let missing = || Failure::on(Code::MISSING_FIELD, "request_id", "request_id is missing: of which request?");
    let (param, kind, name) = named.ok_or_else(missing)?;
    let name = id(&Value::String(name), param)?;
    let request = found(&gateway, &caller.project, kind, &name).await?;
    let rows = blocking(move || Ok(feedback::of_request(gateway.app.store.db.as_ref(), &request, Some(&caller.project))?)).await?;
    Ok(Json(json!({"object": "list", "data": rows.iter().map(written).collect::<Vec<_>>()})))
}

/// Stores feedback on the request that it names.
async fn keep(gateway: Gateway, given: Given) -> Result<FeedbackRow, Failure> {
    let Given { kind, target, mut row } = given;
    row.request = found(&gateway, &row.project, kind, &target).await?;
    blocking(move || put(&gateway, row)).await
}

/// Stores feedback. Blocking.
fn put(gateway: &Gateway, row: FeedbackRow) -> Result<FeedbackRow, Failure> {
    let db = gateway.app.store.db.as_ref();
    if feedback::count_others(db, &row.request, &row.id)? >= MAX_OF_REQUEST {
        let message = format!("the request {} has {MAX_OF_REQUEST} pieces of feedback already, which is all it may have", row.request);
        return Err(Failure::new(Code::CONFLICT, message).with_hint("send the id of one of them to replace it"));
    }
    feedback::put(db, row.clone())?;
    if let Some(telemetry) = &gateway.app.telemetry
        && let Some(request) = record::find(&gateway.app.store, &row.request)?
    {
        telemetry.feedback(request, row.clone());
    }
    Ok(row)
}

/// The id of the project's request of this name.
async fn found(gateway: &Gateway, project: &str, kind: Kind, name: &str) -> Result<String, Failure> {
    let look_up = || {
        let (db, project, name) = (gateway.app.store.db.clone(), project.to_string(), name.to_string());
        blocking(move || Ok(feedback::request_of(db.as_ref(), &project, kind, &name)?))
    };
    // What one request has alone is believed; of the others the newest is meant, which may be of the last moment.
    if let (Kind::Request | Kind::Completion, Some(id)) = (kind, look_up().await?) {
        return Ok(id);
    }
    match kind {
        Kind::Request => gateway.app.names.move_rows().await?,
        Kind::Completion | Kind::Trace | Kind::Conversation => gateway.app.names.learn().await?,
    }
    let unknown = || {
        let failure = Failure::on(Code::UNKNOWN_NAME, "target", "no logged request of this project has such an id");
        failure.with_hint("the x-request-id header of a reply names its request")
    };
    look_up().await?.ok_or_else(unknown)
}

fn checked(fields: &Map<String, Value>, caller: Caller) -> Result<Given, Failure> {
    if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let shown = if is_safe_name(unknown) { format!("\"{unknown}\"") } else { "of this name".to_string() };
        let message = format!("there is no field {shown}{}", did_you_mean(unknown, FIELDS));
        let failure = Failure::on(Code::INVALID_VALUE, if is_safe_name(unknown) { unknown } else { "body" }, message);
        return Err(failure.with_hint(format!("the fields are {}", FIELDS.join(", "))));
    }
    let (kind, target) = target(fields.get("target"))?;
    let (value, number) = value(fields.get("value"))?;
    let name = text(fields, "name", 64)?.ok_or_else(|| missing("name"))?;
    if !is_safe_name(&name) {
        return Err(Failure::on(Code::INVALID_VALUE, "name", "name: expected 1 to 64 of letters, digits, . _ : @ / -"));
    }
    let own_id = fields.get("id").filter(|value| !value.is_null()).map(|value| id(value, "id")).transpose()?;
    let Caller { key_id: api_key, project, .. } = caller;
    let row = FeedbackRow {
        id: own_id.unwrap_or_else(|| new_id("fb")),
        request: String::new(),
        project,
        api_key,
        name,
        value,
        number,
        comment: text(fields, "comment", MAX_COMMENT_BYTES)?,
        correction: text(fields, "correction", MAX_CORRECTION_BYTES)?,
        source: text(fields, "source", 64)?,
        created_at: now_ms(),
    };
    Ok(Given { kind, target, row })
}

/// Exactly one name of a request.
fn target(given: Option<&Value>) -> Result<(Kind, String), Failure> {
    let fields = given.ok_or_else(|| missing("target"))?.as_object();
    let names = TARGETS.map(|(name, _)| name).join(", ");
    let wrong = || Failure::on(Code::INVALID_VALUE, "target", format!("target: expected an object with one of {names}"));
    let fields = fields.filter(|fields| fields.len() == 1).ok_or_else(wrong)?;
    let (name, value) = fields.iter().next().ok_or_else(wrong)?;
    let (name, kind) = TARGETS.iter().find(|(known, _)| known == name).ok_or_else(wrong)?;
    Ok((*kind, id(value, &format!("target.{name}"))?))
}

fn id(value: &Value, param: &str) -> Result<String, Failure> {
    let id = value.as_str().filter(|id| is_safe_name(id));
    let wrong = || Failure::on(Code::INVALID_VALUE, param, format!("{param}: expected an id of at most 128 letters, digits, . _ : @ / -"));
    Ok(id.ok_or_else(wrong)?.to_string())
}

/// A value as JSON text, and as a number where it is one.
fn value(given: Option<&Value>) -> Result<(String, Option<f64>), Failure> {
    let given = given.ok_or_else(|| missing("value"))?;
    let number = match given {
        Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
        Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
        Value::String(text) if text.len() <= MAX_VALUE_BYTES => return Ok((given.to_string(), None)),
        _ => None,
    };
    let wrong = || {
        let message = format!("value: expected a number, true or false, or a text of at most {MAX_VALUE_BYTES} bytes");
        Failure::on(Code::INVALID_VALUE, "value", message)
    };
    Ok((given.to_string(), Some(number.ok_or_else(wrong)?)))
}

/// A text that may be missing.
fn text(fields: &Map<String, Value>, name: &str, most: usize) -> Result<Option<String>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= most => Ok(Some(text.clone())),
        Some(_) => Err(Failure::on(Code::INVALID_VALUE, name, format!("{name}: expected a text of at most {most} bytes"))),
    }
}

fn missing(field: &str) -> Failure {
    Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing"))
}

fn written(row: &FeedbackRow) -> Value {
    let value: Value = serde_json::from_str(&row.value).unwrap_or(Value::Null);
    json!({"id": row.id, "object": "feedback", "request_id": row.request, "name": row.name, "value": value, "comment": row.comment,
        "correction": row.correction, "source": row.source, "created_at": row.created_at / 1000})
}
