//! Every check of a dataset in one report: what [`datasets`](crate::datasets::check) sees by itself, tokens as models count them, personal
//! data as guardrails find it, and what vectors tell: outliers, labels that look wrong, and what live traffic asks that the dataset lacks.

use super::coverage::{self, Coverage};
use super::operators::{self, Named};
use super::{redaction, vectors};
use crate::config::guardrails::Detector;
use crate::config::{GuardrailsConfig, LogConfig};
use crate::datasets::check::{self as checks, Balance, Report, Skipped, labels, neighbours, outliers};
use crate::datasets::{Dataset, Sample};
use crate::guardrails::detect;
use crate::inference::Inference;
use crate::store::log::Filter;
use crate::store::{Store, models};
use crate::types::Failure;
use crate::types::traits::Progress;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// Model that makes vectors where none is named.
const EMBEDDER: &str = "all-minilm-l6-v2";
/// Samples that are embedded where nobody asked for it.
const UNASKED: usize = 5_000;
/// Neighbours that outliers and labels are judged by.
const NEIGHBOURS: usize = 10;
/// A field with more values than this is no label.
const MOST_LABELS: usize = 1_000;

/// What to check besides what is always checked.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Models whose tokens are counted.
    pub models: Vec<String>,
    /// Model that makes vectors; the local one where it is stored.
    pub embedder: Option<String>,
    /// Live requests that the dataset should cover.
    pub traffic: Option<Filter>,
}

/// A report with what only other rooms know.
#[derive(Debug, Clone, Serialize)]
pub struct Whole {
    /// What the dataset shows.
    #[serde(flatten)]
    pub report: Report,
    /// What live traffic asks; none where nobody wanted to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
}

/// What the checks need.
pub struct Around<'a> {
    /// The store.
    pub store: &'a Store,
    /// What makes vectors and counts tokens.
    pub inference: &'a Arc<Inference>,
    /// What the operator wants to be taken out of logged requests.
    pub log: &'a LogConfig,
    /// What the operator looks for in requests.
    pub guardrails: &'a GuardrailsConfig,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

/// Makes every check that can be made, and says which cannot.
///
/// # Errors
/// What the store says. A model that is not there is told in the report.
pub async fn check(dataset: &Dataset, wishes: &Wishes, around: &Around<'_>) -> Result<Whole, Failure> {
    let mut whole = Whole { report: checks::check(dataset, None), coverage: None };
    let report = &mut whole.report;
    let own = operators::patterns(around.log, around.guardrails);
    report.personal = Some(checks::personal(&dataset.samples, &|text| kinds(text, &own)));
    hide(report, &own);
    for model in &wishes.models {
        match around.inference.setup().providers.counter(model).await {
            Ok(counter) => report.tokens.push(checks::tokens(&dataset.samples, model, counter.as_ref())),
            Err(error) => report.skipped.push(skipped("tokens", &error.into())),
        }
    }
    let embedder = match embedder(dataset, wishes, around)? {
        Ok(embedder) => embedder,
        Err(reason) => {
            let checks: &[&str] =
                if wishes.traffic.is_some() { &["outliers", "label errors", "coverage"] } else { &["outliers", "label errors"] };
            for check in checks {
                report.skipped.push(Skipped { check, reason: reason.clone() });
            }
            return Ok(whole);
        }
    };
    let texts: Vec<String> = dataset.samples.iter().map(Sample::asked).collect();
    let vectors = match vectors::of(around.inference, &embedder, &texts, around.progress).await {
        Ok(vectors) => vectors,
        Err(failure) => {
            report.skipped.extend(["outliers", "label errors", "coverage"].map(|check| skipped(check, &failure)));
            return Ok(whole);
        }
    };
    by_vectors(dataset, report, &vectors);
    if let Some(filter) = &wishes.traffic {
        let live = coverage::live(around.store, filter, &redaction::redactor(around.log, around.guardrails))?;
        let asked: Vec<String> = live.iter().map(|request| request.text.clone()).collect();
        match vectors::of(around.inference, &embedder, &asked, around.progress).await {
            Ok(of_live) => whole.coverage = Some(coverage::coverage(&live, &of_live, &vectors)),
            Err(failure) => whole.report.skipped.push(skipped("coverage", &failure)),
        }
    }
    Ok(whole)
}

/// What guardrails find in a text, and what the operator's own patterns do.
fn kinds(text: &str, own: &[Named]) -> Vec<String> {
    let mut places = Vec::new();
    let mut found = |detector: &Detector| {
        places.clear();
        detect::find(*detector, text, &mut places);
        !places.is_empty()
    };
    let of_detectors = Detector::ALL.iter().filter(|detector| found(detector)).map(|detector| detector.name().to_string());
    of_detectors.chain(own.iter().filter(|(_, regex)| regex.is_match(text)).map(|(name, _)| name.clone())).collect()
}

/// Takes personal data out of the listed values of targets.
fn hide(report: &mut Report, own: &[Named]) {
    for (value, _) in report.balance.values_mut().flat_map(|balance| &mut balance.counts) {
        let found = kinds(&crate::datasets::sample::text_of(value), own);
        if !found.is_empty() {
            *value = format!("[{}]", found.join(", ")).into();
        }
    }
}

fn skipped(check: &'static str, failure: &Failure) -> Skipped {
    Skipped { check, reason: failure.told() }
}

/// The model that makes vectors, or why none does.
fn embedder(dataset: &Dataset, wishes: &Wishes, around: &Around<'_>) -> Result<Result<String, String>, Failure> {
    let count = dataset.samples.len();
    if count > neighbours::MOST {
        return Ok(Err(format!("{count} samples are more than the {} that are compared each with each", neighbours::MOST)));
    }
    if let Some(model) = &wishes.embedder {
        return Ok(Ok(model.clone()));
    }
    if models::find(around.store.db.as_ref(), EMBEDDER)?.is_none() {
        return Ok(Err(format!("there is no model that makes vectors: refit model pull {EMBEDDER}, or name one with --embedder")));
    }
    if count > UNASKED {
        return Ok(Err(format!("vectors of {count} samples take a while: ask for them with --embedder local/{EMBEDDER}")));
    }
    Ok(Ok(format!("local/{EMBEDDER}")))
}

fn by_vectors(dataset: &Dataset, report: &mut Report, vectors: &[Vec<f32>]) {
    let near = neighbours::all(vectors, NEIGHBOURS);
    let id = |at: usize| dataset.samples[at].id.clone();
    let mut found = outliers::outliers(&near);
    found.samples.truncate(checks::MAX_LISTED_SAMPLES);
    found.samples.iter_mut().for_each(|outlier| outlier.id = id(outlier.at));
    report.outliers = Some(found);
    match label_field(report) {
        Some(field) => {
            let others: Vec<&str> = report.balance.keys().filter(|other| **other != field).map(String::as_str).collect();
            if !others.is_empty() {
                let reason = format!("of the target's fields only \"{field}\" was looked at, not {}", others.join(", "));
                report.skipped.push(Skipped { check: "label errors", reason });
            }
            let label = |sample: &Sample| match sample.target_field(&field) {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            let labels: Vec<_> = dataset.samples.iter().map(label).collect();
            let mut samples = labels::suspects(&labels, &near);
            samples.truncate(checks::MAX_LISTED_SAMPLES);
            samples.iter_mut().for_each(|suspect| suspect.id = id(suspect.at));
            report.label_errors = Some(labels::Suspects { field, samples });
        }
        None => report.skipped.push(Skipped { check: "label errors", reason: "no field of the target has few values that repeat".into() }),
    }
}

/// The field of the target that is a label: the one with the most values among those whose values repeat.
fn label_field(report: &Report) -> Option<String> {
    let is_label = |balance: &&Balance| (2..=MOST_LABELS).contains(&balance.distinct) && balance.distinct * 4 <= report.samples;
    let labels = report.balance.iter().filter(|(_, balance)| is_label(balance));
    labels.max_by_key(|(_, balance)| balance.distinct).map(|(field, _)| field.clone())
}
