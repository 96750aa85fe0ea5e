//! How far a judge agrees with people, from the samples that carry a person's label: Cohen's kappa, and the rate of good answers
//! corrected for what the judge gets wrong.

use crate::evals::scorers::seam::drawn;
use crate::evals::scorers::{Aggregate, Aggregated, Case};
use crate::stats::{Summary, Validation, cohen_kappa, corrected_rate};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

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
    /// The same of each group.
    groups: BTreeMap<u32, Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    validation: Validation,
    judged: usize,
    positives: usize,
    /// Labels that mean nothing.
    unreadable: usize,
}

impl Counts {
    /// With so many times what another one has.
    fn plus(self, other: &Counts, times: usize) -> Self {
        let (own, more) = (self.validation, other.validation);
        let validation = Validation {
            true_positives: own.true_positives + times * more.true_positives,
            false_negatives: own.false_negatives + times * more.false_negatives,
            true_negatives: own.true_negatives + times * more.true_negatives,
            false_positives: own.false_positives + times * more.false_positives,
        };
        Counts {
            validation,
            judged: self.judged + times * other.judged,
            positives: self.positives + times * other.positives,
            unreadable: self.unreadable + times * other.unreadable,
        }
    }

    /// Judge and person, of each label.
    fn pairs(&self) -> impl Iterator<Item = (bool, bool)> + Clone + use<> {
        let Validation { true_positives, false_negatives, true_negatives, false_positives } = self.validation;
        let times = |pair: (bool, bool), count: usize| std::iter::repeat_n(pair, count);
        times((true, true), true_positives)
            .chain(times((true, false), false_negatives))
            .chain(times((false, false), true_negatives))
            .chain(times((false, true), false_positives))
    }
}

impl Agreement {
    /// Nothing compared yet.
    pub fn new(metric: String, pointer: String, pass_at: f64, lowest_and_highest: [f64; 2]) -> Self {
        Agreement { metric, pointer, pass_at, lowest_and_highest, counts: Counts::default(), groups: BTreeMap::new() }
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

impl Agreement {
    /// What one case counts for: what the judge called good, and the person's label.
    fn one(&self, judged: bool, label: Option<&Value>) -> Counts {
        let mut one = Counts { judged: 1, positives: usize::from(judged), ..Counts::default() };
        let Some(label) = label else { return one };
        let Some(good) = self.label(label) else { return Counts { unreadable: 1, ..one } };
        let Validation { true_positives, false_negatives, true_negatives, false_positives } = &mut one.validation;
        *match (good, judged) {
            (true, true) => true_positives,
            (true, false) => false_negatives,
            (false, false) => true_negatives,
            (false, true) => false_positives,
        } += 1;
        one
    }

    /// A number with its error, which is found by drawing groups anew where cases come in groups.
    fn grouped(&self, alone: Summary, ends: [f64; 2], of: impl Fn(&Counts) -> Option<f64>) -> Summary {
        if self.groups.len() == self.counts.judged {
            return alone;
        }
        let groups: Vec<&Counts> = self.groups.values().collect();
        let sum = |times: &[u32]| groups.iter().zip(times).fold(Counts::default(), |sum, (one, times)| sum.plus(one, *times as usize));
        let (standard_error, ci95) = drawn(groups.len(), ends, |times| of(&sum(times)));
        Summary { standard_error, ci95, ..alone }
    }
}

impl Aggregate for Agreement {
    fn add(&mut self, case: &Case<'_>, scores: &Map<String, Value>, group: u32) {
        let Some(value) = scores.get(&self.metric).and_then(Value::as_f64) else { return };
        let one = self.one(value >= self.pass_at, case.part(&self.pointer).filter(|label| !label.is_null()));
        self.counts = self.counts.plus(&one, 1);
        let of_group = self.groups.entry(group).or_default();
        *of_group = of_group.plus(&one, 1);
    }

    fn finish(self: Box<Self>) -> Aggregated {
        let Counts { validation, judged, positives, unreadable } = self.counts;
        let labelled = self.counts.pairs().count();
        let kappa = cohen_kappa(self.counts.pairs());
        let corrected = corrected_rate(positives, judged, &validation);
        let mut metrics = Vec::new();
        if let Some(found) = kappa {
            let alone = Summary { n: found.n, mean: found.kappa, standard_error: found.standard_error, ci95: found.ci95 };
            let summary = self.grouped(alone, [-1.0, 1.0], |counts| cohen_kappa(counts.pairs()).map(|found| found.kappa));
            metrics.push((format!("{}.kappa", self.metric), summary));
        }
        if let Some(found) = corrected {
            let alone = Summary { n: judged, mean: found.rate, standard_error: found.standard_error, ci95: found.ci95 };
            let rate = |counts: &Counts| corrected_rate(counts.positives, counts.judged, &counts.validation).map(|found| found.rate);
            metrics.push((format!("{}.corrected", self.metric), self.grouped(alone, [0.0, 1.0], rate)));
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
