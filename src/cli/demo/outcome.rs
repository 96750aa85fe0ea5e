//! The numbers of a demo, as `--json` prints them.

use super::serving::Call;
use super::steps::{Package, Pulled, TEST_TARGETS, Tested};
use crate::jobs::tune::TuneResult;
use crate::types::Failure;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Grows step by step; printed as one JSON object.
#[derive(Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip)]
    steps: Vec<Value>,
}

/// What the steps brought.
pub struct Parts {
    /// The model.
    pub model: Pulled,
    /// Sizes of the splits.
    pub split: Value,
    /// The training.
    pub trained: TuneResult,
    /// The test.
    pub test: Tested,
    /// The releases.
    pub package: Package,
    /// The first call; none when nothing is live.
    pub call: Option<Call>,
}

impl Outcome {
    /// Nothing yet.
    pub fn new() -> Self {
        Outcome { fields: Map::new(), steps: Vec::new() }
    }

    /// Runs a step and keeps its seconds.
    ///
    /// # Errors
    /// The step's own.
    pub fn timed<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let began = Instant::now();
        let result = step()?;
        self.steps.push(json!({"name": name, "seconds": rounded(began.elapsed().as_secs_f64())}));
        Ok(result)
    }

    /// Puts everything in its place.
    pub fn finish(&mut self, parts: Parts, wall: Duration) {
        let Parts { model, split, trained, test, package, call } = parts;
        let metric = |metric: &str, pick: fn(&crate::stats::Summary) -> f64| -> Value {
            let each = TEST_TARGETS.iter().map(|(name, target)| {
                let found = test.report.targets.iter().find(|report| report.name == *target);
                let value = found.and_then(|report| report.totals.metrics.get(metric)).map(pick);
                ((*name).to_string(), json!(value))
            });
            Value::Object(each.collect())
        };
        let difference = &test.adapter_minus_prompt.paired;
        let value = json!({
            "model": model.name,
            "model_sha256": model.digest.hex(),
            "steps": self.steps,
            "split": split,
            "accuracy": metric("exact_match", |summary| summary.mean),
            "standard_error": metric("exact_match", |summary| summary.standard_error),
            "valid_json": metric("json_schema", |summary| summary.mean),
            "adapter_minus_prompt": {"delta": difference.delta, "ci95": difference.ci95, "n": difference.n},
            "trained_tokens": trained.trained_tokens,
            "train_seconds": rounded(trained.seconds),
            "release": package.release,
            "refused_release": package.refused,
            "request_id": call.as_ref().map(|call| &call.request_id),
            "answer": call.as_ref().map(|call| &call.answer),
            "wall_seconds": rounded(wall.as_secs_f64()),
        });
        if let Value::Object(fields) = value {
            self.fields = fields;
        }
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
