//! The shapes that schemas of `/openapi.json` are put together from.

use serde_json::{Map, Value, json};

/// A value of a type.
pub fn is(kind: &str) -> Value {
    json!({"type": kind})
}

/// This word and no other.
pub fn one(word: &str) -> Value {
    json!({"const": word})
}

/// An object with these fields, all of them required; each is `(name, type)`.
pub fn whole(fields: &[(&str, Value)]) -> Value {
    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<_, _> = fields.iter().map(|(name, schema)| ((*name).to_string(), schema.clone())).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

/// A list without pages.
pub fn list(item: Value) -> Value {
    whole(&[("object", one("list")), ("data", json!({"type": "array", "items": item}))])
}

/// A page of a list.
pub fn pages(item: Value) -> Value {
    whole(&[("object", one("list")), ("data", json!({"type": "array", "items": item})), ("has_more", is("boolean"))])
}
