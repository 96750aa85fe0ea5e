//! What the bodies of the Evals API look like, for `/openapi.json`.

use crate::gateway::shapes::{is, pages, whole};
use serde_json::{Value, json};

fn labels() -> Value {
    json!({"type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}})
}

/// An eval to make.
pub fn new_eval() -> Value {
    let name = json!({"type": ["string", "null"]});
    json!({"type": "object", "required": ["data_source_config", "testing_criteria"], "properties": {
        "name": name, "metadata": labels(),
        "data_source_config": {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["custom", "logs", "stored_completions"]}}},
        "testing_criteria": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["type", "name"], "properties": {
            "type": {"enum": ["string_check", "text_similarity", "label_model", "score_model"]}, "name": {"type": "string"}}}},
    }})
}

/// What can be changed of one.
pub fn changes() -> Value {
    json!({"type": "object", "properties": {"name": {"type": ["string", "null"]}, "metadata": labels()}})
}

/// An eval.
pub fn eval() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", json!({"const": "eval"})),
        ("name", is("string")),
        ("created_at", is("integer")),
        ("metadata", is("object")),
        ("data_source_config", is("object")),
        ("testing_criteria", is("array")),
    ])
}

/// A page of them.
pub fn evals() -> Value {
    pages(eval())
}

/// An eval that was removed.
pub fn deleted() -> Value {
    whole(&[("object", json!({"const": "eval.deleted"})), ("deleted", json!({"const": true})), ("eval_id", is("string"))])
}

/// A run to make.
pub fn new_run() -> Value {
    json!({"type": "object", "required": ["data_source"], "properties": {
        "name": {"type": ["string", "null"]}, "metadata": labels(),
        "data_source": {"type": "object", "required": ["type", "source"], "properties": {
            "type": {"enum": ["jsonl", "completions", "responses"]}, "source": {"type": "object"}}},
    }})
}

/// A run.
pub fn run() -> Value {
    let counts = ["total", "errored", "failed", "passed"].map(|name| (name, is("integer")));
    whole(&[
        ("id", is("string")),
        ("object", json!({"const": "eval.run"})),
        ("eval_id", is("string")),
        ("status", json!({"enum": ["queued", "in_progress", "completed", "failed", "canceled"]})),
        ("model", is("string")),
        ("name", is("string")),
        ("created_at", is("integer")),
        ("metadata", is("object")),
        ("data_source", is("object")),
        ("error", json!({"type": ["object", "null"]})),
        ("report_url", is("string")),
        ("result_counts", whole(&counts)),
        ("per_model_usage", is("array")),
        ("per_testing_criteria_results", is("array")),
    ])
}

/// A page of them.
pub fn runs() -> Value {
    pages(run())
}

/// A run that was removed.
pub fn deleted_run() -> Value {
    whole(&[("object", json!({"const": "eval.run.deleted"})), ("deleted", json!({"const": true})), ("run_id", is("string"))])
}

/// What became of an item.
pub fn item() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", json!({"const": "eval.run.output_item"})),
        ("created_at", is("integer")),
        ("eval_id", is("string")),
        ("run_id", is("string")),
        ("status", json!({"enum": ["pass", "fail", "error"]})),
        ("datasource_item_id", is("integer")),
        ("datasource_item", is("object")),
        ("results", is("array")),
        ("sample", is("object")),
    ])
}

/// A page of them.
pub fn items() -> Value {
    pages(item())
}
