//! Loss curves of jobs: in the terminal, and as SVG.

use super::named;
use crate::cli::output;
use crate::stats::plot::{self, Series};
use crate::store::jobs::JobRecord;
use crate::store::{Store, job_events};
use crate::types::{Code, Failure};
use serde_json::{Value, json};
use std::path::Path;

/// Columns and lines of a curve in the terminal.
const SIZE: (usize, usize) = (64, 12);

/// Training and validation losses by step.
struct Losses {
    training: Series,
    validation: Series,
}

fn losses(store: &Store, job: &JobRecord, prefix: &str) -> Result<Losses, Failure> {
    let events = job_events::curve(store.db.as_ref(), &job.id)?;
    let points =
        |field: &str| events.iter().filter_map(|event| Some((event.step? as f64, event.data[field].as_f64()?))).collect::<Vec<_>>();
    let series = |name: &str, field: &str| Series { name: format!("{prefix}{name}"), points: points(field) };
    Ok(Losses { training: series("training loss", "train_loss"), validation: series("validation loss", "valid_loss") })
}

/// The curve of one job for the terminal; empty where no step was stored.
///
/// # Errors
/// What the store says.
pub fn drawn(store: &Store, job: &JobRecord) -> Result<String, Failure> {
    let Losses { training, validation } = losses(store, job, "")?;
    let series = if validation.points.is_empty() { vec![training] } else { vec![training, validation] };
    Ok(plot::text(&series, SIZE))
}

/// `refit tune curve`: one job's losses, or those of several in one picture.
///
/// # Errors
/// [`Code::UNKNOWN_NAME`] for a job without steps; [`Code::STORAGE`] when the file cannot be written.
pub fn run(store: &Store, references: &[String], file: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let (mut series, mut shown) = (Vec::new(), Vec::new());
    for reference in references {
        let (name, job) = named(store, reference)?;
        let Losses { training, validation } = losses(store, &job, &if references.len() == 1 { String::new() } else { format!("{name} ") })?;
        if training.points.is_empty() {
            let failure = Failure::new(Code::UNKNOWN_NAME, format!("no step of {reference} is stored: nothing can be drawn"));
            return Err(failure.with_hint("a head has no steps, and trainings from before this version kept none"));
        }
        shown.push(json!({"job": job.id, "name": name, "train_loss": pairs(&training), "valid_loss": pairs(&validation)}));
        series.push(training);
        if !validation.points.is_empty() {
            series.push(validation);
        }
    }
    if let Some(file) = file {
        let drawn = plot::svg(&references.join(", "), ("step", "loss (nats)"), &series);
        let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("cannot write {}: {error}", file.display()));
        std::fs::write(file, drawn).map_err(failed)?;
        output::note(format!("wrote {}", file.display()));
        if !as_json {
            return Ok(());
        }
    }
    if as_json { output::json(&shown) } else { output::line(plot::text(&series, SIZE)) }
}

fn pairs(series: &Series) -> Value {
    series.points.iter().map(|(step, loss)| json!([*step as u64, loss])).collect()
}
