//! What the bodies of the fine-tuning API look like, for `/openapi.json`.

use crate::gateway::shapes::{is, one, pages, whole};
use crate::jobs::fine_tune::MAX_SUFFIX;
use serde_json::{Value, json};

fn or_null(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

/// A job to make.
pub fn new_job() -> Value {
    let number = |kind: &str| json!({"oneOf": [{"const": "auto"}, {"type": kind, "exclusiveMinimum": 0}, {"type": "null"}]});
    let hyperparameters = json!({"type": ["object", "null"], "properties": {"n_epochs": number("integer"), "batch_size": number("integer"),
        "learning_rate_multiplier": number("number")}});
    let method = json!({"type": ["object", "null"], "required": ["type"], "properties": {
        "type": {"enum": ["supervised", "dpo", "reinforcement"]},
        "supervised": {"type": ["object", "null"], "properties": {"hyperparameters": hyperparameters}}}});
    json!({"type": "object", "required": ["model", "training_file"], "properties": {
        "model": {"type": "string", "minLength": 1},
        "training_file": {"type": "string", "minLength": 1},
        "validation_file": {"type": ["string", "null"], "minLength": 1},
        "suffix": {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_SUFFIX},
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2_147_483_647},
        "hyperparameters": hyperparameters,
        "method": method,
        "integrations": {"type": ["array", "null"], "items": {"type": "object"}},
        "metadata": {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}},
    }})
}

/// A job.
pub fn job() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("fine_tuning.job")),
        ("created_at", is("integer")),
        ("model", is("string")),
        ("fine_tuned_model", or_null("string")),
        ("organization_id", is("string")),
        ("status", json!({"enum": ["validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"]})),
        ("training_file", is("string")),
        ("validation_file", or_null("string")),
        ("result_files", json!({"type": "array", "items": {"type": "string"}})),
        ("hyperparameters", or_null("object")),
        ("error", or_null("object")),
    ])
}

/// A page of them.
pub fn jobs() -> Value {
    pages(job())
}

/// A page of events.
pub fn events() -> Value {
    pages(whole(&[
        ("id", is("string")),
        ("object", one("fine_tuning.job.event")),
        ("created_at", is("integer")),
        ("level", json!({"enum": ["info", "warn", "error"]})),
        ("message", is("string")),
    ]))
}

/// A page of checkpoints.
pub fn checkpoints() -> Value {
    pages(whole(&[
        ("id", is("string")),
        ("object", one("fine_tuning.job.checkpoint")),
        ("created_at", is("integer")),
        ("fine_tuned_model_checkpoint", is("string")),
        ("fine_tuning_job_id", is("string")),
        ("step_number", is("integer")),
        ("metrics", is("object")),
    ]))
}
