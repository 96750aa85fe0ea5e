//! What a training will take, before it begins.

use crate::cli::output;
use crate::jobs::tune::estimate::{Forecast, gib, of_recipe};
use crate::store::Store;
use crate::tuning::AnyRecipe;
use crate::types::Failure;
use serde_json::{Value, json};

/// `refit tune estimate`: prints it, and refuses what cannot fit.
///
/// # Errors
/// As [`of_recipe`], and what [`Forecast::check`] refuses.
pub fn run(store: &Store, recipe: AnyRecipe, as_json: bool) -> Result<(), Failure> {
    let Some(forecast) = of_recipe(store, recipe)? else {
        return match as_json {
            true => output::json(&json!({"method": "head"})),
            false => output::line("a head: every text goes through the embedding model once, then it is fitted in seconds"),
        };
    };
    if as_json {
        let mut told = serde_json::to_value(&forecast).unwrap_or_default();
        told["fits"] = Value::from(forecast.check().is_ok());
        output::json(&told)?;
    } else {
        output::line(lines(&forecast).join("\n"))?;
    }
    forecast.check()
}

/// The forecast in lines for people.
fn lines(forecast: &Forecast) -> Vec<String> {
    let Forecast { estimate, available_bytes, speed, seconds } = forecast;
    let free = available_bytes.map(|bytes| format!(", {} are free", gib(bytes))).unwrap_or_default();
    let time = match (seconds, speed) {
        (Some(seconds), Some((speed, job))) => format!("about {} at {speed:.0} tok/s, as {job} had", duration(*seconds)),
        _ => "unknown: no training of this model has ended here yet".to_string(),
    };
    vec![
        format!(
            "examples  {} to learn, {} to validate on, the longest has {} tokens",
            estimate.examples, estimate.validation, estimate.longest
        ),
        format!("steps     {}, {} tokens in all, up to {} in a batch", estimate.steps, estimate.trained_tokens, estimate.batch_tokens),
        format!("values    {} of {} million are trained", estimate.trained_parameters, estimate.parameters / 1_000_000),
        format!("memory    about {}{free}", gib(estimate.memory_bytes)),
        format!("time      {time}"),
    ]
}

/// Minutes and seconds.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    if seconds < 60 { format!("{seconds} s") } else { format!("{}:{:02} min", seconds / 60, seconds % 60) }
}
