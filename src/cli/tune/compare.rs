//! Several trainings in one table: where their recipes differ, and what came of each.

use super::named;
use crate::cli::output;
use crate::jobs::tune::TuneResult;
use crate::store::Store;
use crate::store::jobs::JobRecord;
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// One training.
struct Row {
    name: String,
    job: JobRecord,
    recipe: Map<String, Value>,
    result: Option<TuneResult>,
}

impl Row {
    fn of(store: &Store, reference: &str) -> Result<Self, Failure> {
        let (name, job) = named(store, reference)?;
        let recipe = job.spec["recipe"].as_object().cloned().unwrap_or_default();
        let result = serde_json::from_value(job.result.clone()).ok();
        Ok(Row { name, job, recipe, result })
    }
}

/// Keys whose values are not the same in all recipes; what only names things is left out.
fn differing(rows: &[Row]) -> Vec<String> {
    let keys: BTreeSet<&String> = rows.iter().flat_map(|row| row.recipe.keys()).filter(|key| *key != "name").collect();
    let value = |row: &Row, key: &str| row.recipe.get(key).cloned().unwrap_or_default();
    let differs = |key: &&&String| rows.iter().any(|row| value(row, key) != value(&rows[0], key));
    keys.iter().filter(differs).map(ToString::to_string).collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn outcome(row: &Row) -> Vec<String> {
    let Some(result) = &row.result else {
        let mut cells = vec!["-".to_string(); OUTCOME.len()];
        cells[0].clone_from(&row.job.status);
        return cells;
    };
    let [first, last] = result.first_and_last_loss;
    let accuracy = result.accuracy.as_ref().map_or_else(
        || "-".to_string(),
        |accuracy| {
            let [low, high] = accuracy.interval.map(|share| 100.0 * share);
            format!("{:.1} % ({low:.1} to {high:.1})", 100.0 * accuracy.share)
        },
    );
    vec![
        row.job.status.clone(),
        result.steps.to_string(),
        format!("{first:.3} to {last:.3}"),
        result.validation_loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.4}")),
        accuracy,
        format!("{:.1}", result.seconds),
        format!("{:.0}", result.tokens_per_second),
        result.digest.short(),
    ]
}

const OUTCOME: [&str; 8] = ["status", "steps", "loss", "validation", "accuracy", "seconds", "tok/s", "digest"];

/// `refit tune compare`.
///
/// # Errors
/// [`Code::INVALID_REQUEST`] with fewer than two trainings; unknown ones by name.
pub fn run(store: &Store, references: &[String], as_json: bool) -> Result<(), Failure> {
    if references.len() < 2 {
        return Err(Failure::on(Code::INVALID_REQUEST, "jobs", "name at least two trainings to compare"));
    }
    let rows = references.iter().map(|reference| Row::of(store, reference)).collect::<Result<Vec<_>, _>>()?;
    let keys = differing(&rows);
    if as_json {
        let one = |row: &Row| {
            let recipe: Map<_, _> = keys.iter().map(|key| (key.clone(), row.recipe.get(key).cloned().unwrap_or_default())).collect();
            json!({"name": row.name, "job": row.job.id, "status": row.job.status, "differs": recipe, "result": row.result})
        };
        return output::json(&rows.iter().map(one).collect::<Vec<_>>());
    }
    let heading: Vec<&str> = ["training"].into_iter().chain(keys.iter().map(String::as_str)).chain(OUTCOME).collect();
    let line = |row: &Row| {
        let differs = keys.iter().map(|key| cell(row.recipe.get(key)));
        [row.name.clone()].into_iter().chain(differs).chain(outcome(row)).collect::<Vec<_>>()
    };
    output::line(output::table(&heading, &rows.iter().map(line).collect::<Vec<_>>()))
}
