//! Fine-tuning jobs, events and checkpoints as OpenAI's clients read them: every documented field is there, null where nothing is known.

use crate::jobs::fine_tune::{fine_tuned, status};
use crate::store::fine_tunes::{FineTuneRow, WithJob};
use crate::store::job_events::JobEvent;
use crate::store::jobs::JobRecord;
use crate::types::time::now_ms;
use serde_json::{Value, json};

/// A job.
pub fn job((row, job): &WithJob) -> Value {
    let mut shown = json!({"id": row.id, "object": "fine_tuning.job", "model": row.model, "created_at": row.created_at / 1000,
        "organization_id": row.project, "training_file": row.training_file, "validation_file": row.validation_file,
        "status": status(row, job.as_ref()), "metadata": row.metadata, "integrations": [],
        "result_files": row.result_file.iter().collect::<Vec<_>>()});
    let more = match job {
        Some(job) => trained_here(row, job),
        None => trained_there(row),
    };
    if let (Some(fields), Value::Object(more)) = (shown.as_object_mut(), more) {
        fields.extend(more);
    }
    shown
}

fn trained_here(row: &FineTuneRow, job: &JobRecord) -> Value {
    let asked = &row.asked;
    let method = asked["method"].as_str().unwrap_or("supervised");
    let succeeded = job.status == "succeeded";
    let error = job.error.as_ref().map(|error| json!({"code": "training_failed", "message": error, "param": null}));
    let left = job.progress["seconds_left"].as_f64().filter(|left| job.status == "running" && left.is_finite());
    json!({"fine_tuned_model": succeeded.then(|| format!("{}:{}", row.model, row.name)),
        "finished_at": job.finished_at.filter(|_| job.status != "cancelled" || !row.is_paused).map(|at| at / 1000),
        "estimated_finish": left.map(|left| now_ms() / 1000 + left as i64),
        "hyperparameters": asked["hyperparameters"], "seed": asked["seed"], "user_provided_suffix": asked["suffix"],
        "method": {"type": method, method: {"hyperparameters": asked["hyperparameters"]}},
        "trained_tokens": job.result.get("trained_tokens").filter(|_| succeeded), "error": error})
}

/// What the provider said last.
fn trained_there(row: &FineTuneRow) -> Value {
    let answer = &row.upstream["answer"];
    let error = answer.get("error").filter(|error| error["code"].is_string() || error["message"].is_string());
    json!({"fine_tuned_model": fine_tuned(row), "finished_at": answer["finished_at"], "estimated_finish": answer["estimated_finish"],
        "hyperparameters": answer["hyperparameters"], "seed": answer["seed"], "user_provided_suffix": answer["user_provided_suffix"],
        "method": answer["method"], "trained_tokens": answer["trained_tokens"], "error": error})
}

/// An event.
pub fn event(event: &JobEvent) -> Value {
    let kind = if event.step.is_some() { "metrics" } else { "message" };
    json!({"id": event.id, "object": "fine_tuning.job.event", "created_at": event.at / 1000, "level": event.level, "message": event.message,
        "type": kind, "data": if event.data.is_null() { json!({}) } else { event.data.clone() }})
}

/// The checkpoint whose weights the model has.
pub fn checkpoint(row: &FineTuneRow, job: &JobRecord, event: &JobEvent) -> Value {
    let number = |name: &str| event.data.get(name).cloned().unwrap_or_default();
    json!({"id": event.id.replacen("ftevent", "ftckpt", 1), "object": "fine_tuning.job.checkpoint",
        "created_at": job.finished_at.unwrap_or(event.at) / 1000, "fine_tuning_job_id": row.id, "step_number": event.step,
        "fine_tuned_model_checkpoint": format!("{}:{}", row.model, row.name),
        "metrics": {"step": event.step, "train_loss": number("train_loss"), "train_mean_token_accuracy": number("train_mean_token_accuracy"),
            "valid_loss": number("valid_loss"), "valid_mean_token_accuracy": number("valid_mean_token_accuracy"),
            "full_valid_loss": number("valid_loss"), "full_valid_mean_token_accuracy": number("valid_mean_token_accuracy")}})
}
