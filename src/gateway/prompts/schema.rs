//! What the bodies of the prompt library look like, for `/openapi.json`.

use crate::gateway::openai::check;
use crate::gateway::shapes::{is, list, whole};
use serde_json::{Value, json};

/// A version of a prompt.
pub fn version() -> Value {
    whole(&[
        ("object", json!({"const": "prompt.version"})),
        ("name", is("string")),
        ("version", is("integer")),
        ("digest", is("string")),
        ("labels", json!({"type": "array", "items": {"type": "string"}})),
        ("author", is("string")),
        ("message", is("string")),
        ("created_at", is("integer")),
        ("parent", json!({"type": ["string", "null"]})),
    ])
}

/// Prompts.
pub fn versions() -> Value {
    list(version())
}

/// A prompt with its versions.
pub fn prompt() -> Value {
    whole(&[
        ("object", json!({"const": "prompt"})),
        ("name", is("string")),
        ("labels", is("object")),
        ("versions", json!({"type": "array", "items": version()})),
    ])
}

/// A version to publish.
pub fn new_version() -> Value {
    json!({"type": "object", "required": ["name", "source"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 64},
        "source": {"type": "string", "maxLength": 65_536},
        "message": {"type": ["string", "null"]},
        "parent": {"type": ["string", "integer", "null"], "description": "Number or digest of the version that was edited; none; *"},
    }})
}

fn selector() -> Value {
    json!({"type": ["string", "integer", "null"], "description": "A version's number, its digest or a label"})
}

/// A label to move.
pub fn promotion() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {
        "version": selector(), "message": {"type": ["string", "null"]}, "force": {"type": ["boolean", "null"]}}})
}

/// A label to put back.
pub fn rollback() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {
        "message": {"type": ["string", "null"]}, "force": {"type": ["boolean", "null"]}}})
}

/// A label's move.
pub fn label_move() -> Value {
    whole(&[
        ("id", is("string")),
        ("label", is("string")),
        ("from_version", json!({"type": ["integer", "null"]})),
        ("to_version", json!({"type": ["integer", "null"]})),
        ("actor", is("string")),
        ("reason", is("string")),
        ("moved_at", is("integer")),
        ("kind", json!({"enum": ["promote", "rollback", "remove"]})),
    ])
}

/// Moves of labels.
pub fn label_moves() -> Value {
    list(label_move())
}

/// Variables to fill in.
pub fn call() -> Value {
    json!({"type": "object", "properties": {"version": selector(), "label": {"type": ["string", "null"]}, "variables": {"type": ["object", "null"]}}})
}

/// Variables to fill in, with fields of a chat completion.
pub fn completion() -> Value {
    let mut schema = check::chat_schema();
    schema["required"] = json!([]);
    schema["properties"]["model"] = is("string");
    schema["properties"]["messages"] = json!({"type": "array", "items": {"type": "object"}});
    if let (Some(fields), Some(own)) = (schema["properties"].as_object_mut(), call()["properties"].as_object()) {
        fields.shift_remove("prompt");
        fields.extend(own.clone());
    }
    schema
}

/// A prompt, filled in.
pub fn rendered() -> Value {
    whole(&[
        ("success", json!({"const": true})),
        ("data", is("object")),
        ("messages", json!({"type": "array", "items": {"type": "object"}})),
        ("config", is("object")),
        ("prompt", whole(&[("name", is("string")), ("version", is("integer")), ("digest", is("string"))])),
    ])
}

/// A prompt as Langfuse's clients read it.
pub fn langfuse() -> Value {
    whole(&[
        ("name", is("string")),
        ("version", is("integer")),
        ("type", json!({"enum": ["text", "chat"]})),
        ("prompt", json!({"type": ["string", "array"]})),
        ("config", is("object")),
        ("labels", is("array")),
        ("tags", is("array")),
    ])
}

/// Prompts as Langfuse's clients read them.
pub fn langfuse_list() -> Value {
    whole(&[("data", json!({"type": "array", "items": {"type": "object"}})), ("meta", is("object"))])
}
