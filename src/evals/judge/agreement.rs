//! How far a judge agrees with people, from the samples that carry a person's label: Cohen's kappa, and the rate of good answers
//! corrected for what the judge gets wrong.

use crate::evals::scorers::{Aggregate, Aggregated, Case};
use crate::stats::{Summary, Validation, cohen_kappa, corrected_rate};
use serde_json::{Map, Value, json};

/// Compares a judge's values with people's labels.
pub struct Agreement {
    /// Name of the judge's metric.
    pub metric: String,
    /// Where the label stands in a sample, as [`Case::part`] finds it.
    pub pointer: String,
    /// Smallest value that means "good".
    pub pass_at: f64,
    /// Turns a label that is a number into a value from 0 to 1.
    pub lowest_and_highest: [f64; 2],
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    validation: Validation,
    judged: usize,
    positives: usize,
    /// Labels that mean nothing.
    unreadable: usize,
}

impl Agreement {
    /// Nothing compared yet.
    pub fn new(metric: String, pointer: String, pass_at: f64, lowest_and_highest: [f64; 2]) -> Self {
        Agreement { metric, pointer, pass_at, lowest_and_highest, counts: Counts::default() }
    }

    /// Names of the numbers.
    pub fn names(metric: &str) -> Vec<String> {
        vec![format!("{metric}.kappa"), format!("{metric}.corrected")]
    }

    /// Whether a person called it good; none where the label says neither.
    fn label(&self, label: &Value) -> Option<bool> {
        let [lowest, highest] = self.lowest_and_highest;
        match label {
            Value::Bool(good) => Some(*good),
            Value::Number(number) => Some((number.as_f64()? - lowest) / (highest - lowest) >= self.pass_at),
            Value::String(word) => match word.trim().to_lowercase().as_str() {
                "pass" | "good" | "yes" | "true" | "correct" | "accept" | "1" => Some(true),
                "fail" | "bad" | "no" | "false" | "incorrect" | "wrong" | "reject" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Aggregate for Agreement {
    fn add(&mut self, case: &Case<'_>, scores: &Map<String, Value>) {
        let Some(value) = scores.get(&self.metric).and_then(Value::as_f64) else { return };
        let judged = value >= self.pass_at;
        self.counts.judged += 1;
        self.counts.positives += usize::from(judged);
        let Some(label) = case.part(&self.pointer).filter(|label| !label.is_null()) else { return };
        let Some(good) = self.label(label) else {
            self.counts.unreadable += 1;
            return;
        };
        let Validation { true_positives, false_negatives, true_negatives, false_positives } = &mut self.counts.validation;
        *match (good, judged) {
            (true, true) => true_positives,
            (true, false) => false_negatives,
            (false, false) => true_negatives,
            (false, true) => false_positives,
        } += 1;
    }

    fn finish(self: Box<Self>) -> Aggregated {
        let Counts { validation, judged, positives, unreadable } = self.counts;
        let times = |pair: (bool, bool), count: usize| std::iter::repeat_n(pair, count);
        let pairs = times((true, true), validation.true_positives)
            .chain(times((true, false), validation.false_negatives))
            .chain(times((false, false), validation.true_negatives))
            .chain(times((false, true), validation.false_positives));
        let labelled = pairs.clone().count();
        let kappa = cohen_kappa(pairs);
        let corrected = corrected_rate(positives, judged, &validation);
        let mut metrics = Vec::new();
        if let Some(found) = kappa {
            let summary = Summary { n: found.n, mean: found.kappa, standard_error: found.standard_error, ci95: found.ci95 };
            metrics.push((format!("{}.kappa", self.metric), summary));
        }
        if let Some(found) = corrected {
            let summary = Summary { n: judged, mean: found.rate, standard_error: found.standard_error, ci95: found.ci95 };
            metrics.push((format!("{}.corrected", self.metric), summary));
        }
        let details = json!({
            "labelled": labelled,
            "unreadable_labels": unreadable,
            "agreement": kappa.map(|found| found.agreement),
            "sensitivity": validation.sensitivity(),
            "specificity": validation.specificity(),
            "matrix": validation,
        });
        Aggregated { metrics, details }
    }
}
