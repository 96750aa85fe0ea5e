//! Administration over HTTP: keys, projects, usage. The same functions as behind the command line, with the acting key as the actor of
//! each audit row.

pub mod keys;
pub mod projects;
pub mod schema;
pub mod usage;

use super::Gateway;
use super::body;
use crate::access::limits::LimitChanges;
pub(in crate::gateway) use crate::types::blocking::blocking;
use crate::types::ids::is_safe_name;
use crate::types::money::MicroUsd;
use crate::types::{Code, Failure};
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::rejection::PathRejection;
use serde_json::{Map, Value};

/// Fields of a body, read one by one; what nobody read is unknown.
pub(in crate::gateway) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads the body of a request.
    pub(in crate::gateway) async fn of(gateway: &Gateway, request: Request) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let most = gateway.app.config().server.max_body_bytes;
        match body::read_json(&parts.headers, body, most).await? {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => Err(Failure::new(Code::INVALID_REQUEST, "the body is not a JSON object")),
        }
    }

    pub(in crate::gateway) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// A text that has to be there.
    pub(in crate::gateway) fn needed(&mut self, name: &str) -> Result<String, Failure> {
        let missing = || Failure::on(Code::MISSING_FIELD, name, format!("{name} is missing"));
        self.text(name)?.ok_or_else(missing)
    }

    /// A text.
    pub(in crate::gateway) fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    /// True or false; false where nothing is said.
    pub(in crate::gateway) fn switch(&mut self, name: &str) -> Result<bool, Failure> {
        match self.take(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(on),
            Some(_) => Err(wrong(name, "true or false")),
        }
    }

    /// All fields that are left.
    pub(in crate::gateway) fn rest(self) -> Map<String, Value> {
        self.0
    }

    /// A whole number; null takes it away.
    fn count(&mut self, name: &str) -> Result<Option<Option<u64>>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => value.as_u64().map(|count| Some(Some(count))).ok_or_else(|| wrong(name, "a whole number of 1 or more, or null")),
        }
    }

    /// The limits that keys and projects have alike.
    fn limits(&mut self) -> Result<LimitChanges, Failure> {
        let budget = match self.take("budget_usd") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(Value::String(text)) => Some(Some(money(&text)?)),
            // The shortest digits that mean the number, which are those that the caller wrote.
            Some(Value::Number(number)) => Some(Some(money(&number.to_string())?)),
            Some(_) => return Err(wrong("budget_usd", "dollars such as \"25.00\"")),
        };
        Ok(LimitChanges {
            requests_per_minute: self.count("requests_per_minute")?,
            tokens_per_minute: self.count("tokens_per_minute")?,
            budget,
            period: self.text("budget_period")?.map(|word| word.parse()).transpose()?,
        })
    }

    /// Refuses what nobody read.
    pub(in crate::gateway) fn finish(self) -> Result<(), Failure> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        let name: String = name.chars().take(64).collect();
        Err(Failure::on(Code::INVALID_VALUE, name.clone(), format!("{name:?} is no field of this request")))
    }
}

fn money(text: &str) -> Result<MicroUsd, Failure> {
    MicroUsd::parse(text).ok_or_else(|| wrong("budget_usd", "dollars such as \"25.00\", with at most six places"))
}

pub(in crate::gateway) fn wrong(name: &str, expected: &str) -> Failure {
    Failure::on(Code::INVALID_VALUE, name, format!("{name}: expected {expected}"))
}

/// The id of a path; what cannot be one names nothing.
pub(in crate::gateway) fn id_of(id: Result<Path<String>, PathRejection>, what: &str) -> Result<String, Failure> {
    let id = id.ok().map(|Path(id)| id).filter(|id| is_safe_name(id));
    id.ok_or_else(|| Failure::new(Code::UNKNOWN_NAME, format!("no {what} has such an id")))
}
