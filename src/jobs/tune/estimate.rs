//! Whether a training can fit, and how long it will take: its [`Estimate`] beside the memory that is there and the speed of earlier trainings.

use super::examined;
use crate::models;
use crate::store::{Store, jobs};
use crate::tuning::{AnyRecipe, Data, Estimate, Recipe, estimate};
use crate::types::{Code, Digest, Failure};
use serde::Serialize;
use std::fs;

/// What is known before a training begins.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Counts and memory.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Bytes that this machine, or the group that this process is bounded by, has left; none where nobody says.
    pub available_bytes: Option<u64>,
    /// Tokens per second of the newest training of the model, and its job.
    pub speed: Option<(f64, String)>,
    /// Seconds at that speed.
    pub seconds: Option<f64>,
}

impl Forecast {
    /// Refuses a training that cannot fit.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] about `batch_size`, saying how much is missing.
    pub fn check(&self) -> Result<(), Failure> {
        let Some(available) = self.available_bytes.filter(|available| *available < self.estimate.memory_bytes) else { return Ok(()) };
        let Estimate { memory_bytes, batch_tokens, parameters, .. } = &self.estimate;
        let message = format!(
            "the training needs about {} of memory ({:.0} million values in f32, {batch_tokens} tokens in the largest batch); {} are free",
            gib(*memory_bytes),
            *parameters as f64 / 1e6,
            gib(available)
        );
        Err(Failure::on(Code::INVALID_VALUE, "batch_size", message)
            .with_hint("lower batch_size, or batch_tokens (and raise accumulation), shorten the examples, or take a smaller model"))
    }
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// What a recipe will take; none for a head, which takes seconds and little memory.
///
/// # Errors
/// As [`super::enqueue`], but for what [`Forecast::check`] refuses.
pub fn of_recipe(store: &Store, recipe: AnyRecipe) -> Result<Option<Forecast>, Failure> {
    Ok(examined(store, recipe)?.forecast)
}

/// As [`of_recipe`], of conversations that were read.
pub(super) fn forecast(store: &Store, recipe: &AnyRecipe, model_digest: Digest, data: &Data<'_>) -> Result<Option<Forecast>, Failure> {
    let AnyRecipe::Lora(lora) = recipe else { return Ok(None) };
    let estimate = estimate(&models::find(store, recipe.model())?.files, lora, data)?;
    let speed = speed(store, model_digest, lora)?;
    let seconds = speed.as_ref().map(|(speed, _)| estimate.trained_tokens as f64 / speed);
    Ok(Some(Forecast { estimate, available_bytes: available(), speed, seconds }))
}

/// Tokens per second of the newest training that succeeded on a model's file and did the same work: by the same method, over the same kind of
/// weights.
fn speed(store: &Store, model: Digest, recipe: &Recipe) -> Result<Option<(f64, String)>, Failure> {
    let all = jobs::list(store.db.as_ref())?;
    let kind = |recipe: &Recipe| (recipe.method, recipe.dora, recipe.qlora, recipe.dropout > 0.0);
    let is_alike =
        |spec: &serde_json::Value| serde_json::from_value::<Recipe>(spec["recipe"].clone()).is_ok_and(|other| kind(&other) == kind(recipe));
    let same = |spec: &serde_json::Value| spec["model_digest"] == model.to_string().as_str() && is_alike(spec);
    let done = all.into_iter().rev().filter(|job| job.status == "succeeded" && same(&job.spec));
    Ok(done.filter_map(|job| Some((job.result["tokens_per_second"].as_f64().filter(|speed| *speed > 0.0)?, job.id))).next())
}

/// Memory that can be had: what the system says, or less where a control group bounds this process.
fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib(&text, "MemAvailable:"));
    let own = fs::read_to_string("/proc/self/cgroup").ok();
    let path = own.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::"))).unwrap_or("/").to_string();
    let group = ["/sys/fs/cgroup".to_string() + path.trim_end_matches('/'), "/sys/fs/cgroup".to_string()].into_iter().find_map(|group| {
        let number = |name: &str| fs::read_to_string(format!("{group}/{name}")).ok()?.trim().parse::<u64>().ok();
        let statistics = fs::read_to_string(format!("{group}/memory.stat")).unwrap_or_default();
        // Pages of files that are not in use are given back when they are needed.
        let files = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
        Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(files)))
    });
    match (system, group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// Most bytes of memory that this process had so far; none where the system keeps no such figure.
pub(super) fn peak() -> Option<u64> {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| kib(&text, "VmHWM:"))
}

/// A figure of `/proc/meminfo` or of a process's status, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_and_what_does_not_fit_is_refused_with_the_numbers() {
        assert_eq!(kib("MemTotal: 5 kB\nMemAvailable:   16 kB\n", "MemAvailable:"), Some(16 << 10));
        let estimate = Estimate {
            examples: 1,
            validation: 0,
            tokens: 1,
            longest: 1,
            steps: 1,
            trained_tokens: 1,
            batch_tokens: 4_096,
            parameters: 135_000_000,
            trained_parameters: 1,
            memory_bytes: 3 << 30,
        };
        let forecast = |available| Forecast { estimate: estimate.clone(), available_bytes: available, speed: None, seconds: None };
        assert!(forecast(None).check().is_ok() && forecast(Some(4 << 30)).check().is_ok());
        let told = forecast(Some(2 << 30)).check().expect_err("refused").to_string();
        assert!(told.contains("3.0 GiB") && told.contains("2.0 GiB are free") && told.contains("4096 tokens"), "{told}");
    }
}
