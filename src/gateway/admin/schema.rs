//! What the bodies of administration look like, for `/openapi.json`.

use crate::access::{Period, Role};
use crate::store::usage::By;
use serde_json::{Map, Value, json};

fn nullable(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn words<T: Copy>(all: &[(T, &'static str)]) -> Value {
    all.iter().map(|(_, word)| *word).collect::<Vec<_>>().into()
}

/// Limits as they are sent.
fn limits() -> Map<String, Value> {
    let per_minute = json!({"type": ["integer", "null"], "minimum": 1});
    Map::from_iter([
        ("requests_per_minute".to_string(), per_minute.clone()),
        ("tokens_per_minute".to_string(), per_minute),
        ("budget_usd".to_string(), json!({"type": ["string", "number", "null"], "description": "Dollars, such as \"25.00\""})),
        ("budget_period".to_string(), json!({"enum": words(&Period::ALL)})),
    ])
}

fn of_key() -> Map<String, Value> {
    let mut fields = limits();
    let routes = json!({"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1, "maxItems": 100});
    fields.insert("name".into(), json!({"type": "string", "minLength": 1, "maxLength": 64}));
    fields.insert("role".into(), json!({"enum": words(&Role::ALL)}));
    fields.insert("routes".into(), routes);
    fields.insert(
        "expires_at".into(),
        json!({"type": ["string", "integer", "null"], "description": "30d, a date, a moment, or milliseconds"}),
    );
    fields
}

fn closed(properties: Map<String, Value>) -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

/// A key to make.
pub fn new_key() -> Value {
    let mut fields = of_key();
    fields.insert("project".into(), json!({"type": "string"}));
    let mut schema = closed(fields);
    schema["required"] = json!(["name"]);
    schema
}

/// Changes of a key.
pub fn key_changes() -> Value {
    closed(of_key())
}

/// Changes of a project.
pub fn project_changes() -> Value {
    closed(limits())
}

fn stored_limits() -> Map<String, Value> {
    let names = ["requests_per_minute", "tokens_per_minute", "budget_micro_usd"];
    let mut fields: Map<_, _> = names.iter().map(|name| ((*name).to_string(), nullable("integer"))).collect();
    fields.insert("budget_period".into(), nullable("string"));
    fields
}

fn whole(properties: Map<String, Value>) -> Value {
    let required: Vec<_> = properties.keys().cloned().collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// A key as it is shown.
pub fn key() -> Value {
    let mut fields = stored_limits();
    fields.extend(["id", "name", "project", "role", "hint"].map(|name| (name.to_string(), json!({"type": "string"}))));
    fields.extend(["expires_at", "revoked_at"].map(|name| (name.to_string(), nullable("integer"))));
    fields.insert("created_at".into(), json!({"type": "integer"}));
    fields.insert("routes".into(), nullable("array"));
    whole(fields)
}

/// A key with its secret.
pub fn key_with_secret() -> Value {
    let mut schema = key();
    schema["properties"]["key"] = json!({"type": "string"});
    schema["required"].as_array_mut().into_iter().for_each(|names| names.push("key".into()));
    schema
}

/// A project as it is shown.
pub fn project() -> Value {
    let mut fields = stored_limits();
    fields.insert("name".into(), json!({"type": "string"}));
    fields.insert("keys".into(), json!({"type": "integer"}));
    whole(fields)
}

fn list(item: Value) -> Value {
    json!({"type": "object", "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": item}}})
}

/// Keys.
pub fn keys() -> Value {
    list(key())
}

/// Projects.
pub fn projects() -> Value {
    list(project())
}

/// Usage.
pub fn usage() -> Value {
    list(json!({"type": "object", "required": ["requests", "cost_micro_usd", "unpriced"], "properties": {
        "requests": {"type": "integer"}, "cost_micro_usd": {"type": "integer"}, "unpriced": {"type": "integer"}}}))
}

/// Fields of the query string of the usage.
pub fn usage_query() -> Vec<(&'static str, Value)> {
    let date = json!({"type": "string", "format": "date"});
    vec![("by", json!({"enum": words(&By::ALL)})), ("since", date), ("project", json!({"type": "string"}))]
}
