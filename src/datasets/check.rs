//! Quality of a dataset in one report: duplicates, contradictions, leakage between splits, balance of the target's fields, lengths.

use super::import::Dataset;
use super::{Sample, similar, split};
use crate::stats::percentile;
use crate::types::Digest;
use crate::types::traits::CountTokens;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Values of a field beyond this many are counted, not listed.
const MAX_LISTED_VALUES: usize = 40;

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Samples looked at.
    pub samples: usize,
    /// Pairs with equal input.
    pub duplicates: Vec<Match>,
    /// Pairs whose texts are equal but for case, white space and punctuation.
    pub normalised_duplicates: Vec<Match>,
    /// Other pairs at least [`split::NEAR`] alike.
    pub near_duplicates: Vec<Match>,
    /// Pairs among all of the above whose targets differ.
    pub contradictions: Vec<Match>,
    /// Pairs among all of the above on two sides of the split.
    pub leakage: Vec<Match>,
    /// For each field of the target, how often each value stands.
    pub balance: BTreeMap<String, Balance>,
    /// Length of the inputs.
    pub length: Length,
    /// Samples without a target.
    pub without_target: usize,
}

/// Two samples that are alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Match {
    /// Ids.
    pub ids: [String; 2],
    /// Splits they stand in, where there are any.
    pub splits: [Option<String>; 2],
    /// Jaccard similarity of word 3-grams.
    pub similarity: f64,
}

/// Values of one target field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Balance {
    /// Number of different values.
    pub distinct: usize,
    /// Samples where it is null or absent.
    pub nulls: usize,
    /// Most frequent first; only when there are few.
    pub counts: Vec<(Value, usize)>,
}

/// Distribution of lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Length {
    /// `tokens` or `words`.
    pub unit: &'static str,
    /// Shortest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// Longest.
    pub max: f64,
}

impl Report {
    /// Whether nothing was found that a person should look at before training.
    pub fn is_clean(&self) -> bool {
        self.duplicates.is_empty() && self.contradictions.is_empty() && self.leakage.is_empty()
    }
}

/// Checks a dataset; lengths in tokens when a counter is given, in words otherwise.
pub fn check(dataset: &Dataset, counter: Option<&dyn CountTokens>) -> Report {
    let samples = &dataset.samples;
    let sides: HashMap<&str, &str> =
        dataset.assignment.iter().flat_map(|(split, ids)| ids.iter().map(move |id| (id.as_str(), split.as_str()))).collect();
    let texts: Vec<String> = samples.iter().map(Sample::text).collect();
    let normal: Vec<String> = texts.iter().map(|text| similar::normalise(text)).collect();
    let inputs: Vec<Digest> = samples.iter().map(|sample| Digest::of_json(&json!(sample.input))).collect();
    let side = |i: usize| sides.get(samples[i].id.as_str()).map(|split| split.to_string());
    let mut report = Report {
        samples: samples.len(),
        duplicates: Vec::new(),
        normalised_duplicates: Vec::new(),
        near_duplicates: Vec::new(),
        contradictions: Vec::new(),
        leakage: Vec::new(),
        balance: balance(samples),
        length: length(&texts, counter),
        without_target: samples.iter().filter(|sample| sample.target.is_null()).count(),
    };
    for pair in similar::pairs(&texts, split::NEAR) {
        let (a, b) = (pair.a, pair.b);
        let found = Match { ids: [samples[a].id.clone(), samples[b].id.clone()], splits: [side(a), side(b)], similarity: pair.similarity };
        if samples[a].target != samples[b].target {
            report.contradictions.push(found.clone());
        }
        if found.splits[0].is_some() && found.splits[1].is_some() && found.splits[0] != found.splits[1] {
            report.leakage.push(found.clone());
        }
        let kind = match (inputs[a] == inputs[b], normal[a] == normal[b]) {
            (true, _) => &mut report.duplicates,
            (_, true) => &mut report.normalised_duplicates,
            _ => &mut report.near_duplicates,
        };
        kind.push(found);
    }
    report
}

fn balance(samples: &[Sample]) -> BTreeMap<String, Balance> {
    let mut counts: BTreeMap<String, HashMap<String, usize>> = BTreeMap::new();
    for sample in samples {
        match &sample.target {
            Value::Object(fields) => {
                for (field, value) in fields {
                    *counts.entry(field.clone()).or_default().entry(value.to_string()).or_default() += 1;
                }
            }
            other => *counts.entry("target".into()).or_default().entry(other.to_string()).or_default() += 1,
        }
    }
    let of = |values: HashMap<String, usize>| {
        let present: usize = values.iter().filter(|(value, _)| *value != "null").map(|(_, n)| n).sum();
        let (distinct, nulls) = (values.len(), samples.len() - present);
        let mut listed: Vec<(String, usize)> = values.into_iter().collect();
        listed.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        listed.truncate(if distinct > MAX_LISTED_VALUES { 0 } else { distinct });
        let counts = listed.into_iter().map(|(value, n)| (serde_json::from_str(&value).unwrap_or(Value::String(value)), n)).collect();
        Balance { distinct, nulls, counts }
    };
    counts.into_iter().map(|(field, values)| (field, of(values))).collect()
}

fn length(texts: &[String], counter: Option<&dyn CountTokens>) -> Length {
    let count = |text: &String| match counter {
        Some(counter) => counter.count(text) as f64,
        None => text.split_whitespace().count() as f64,
    };
    let lengths: Vec<f64> = texts.iter().map(count).collect();
    let at = |q| percentile(&lengths, q);
    let unit = if counter.is_some() { "tokens" } else { "words" };
    Length { unit, min: at(0.0), p50: at(0.5), p95: at(0.95), max: at(1.0) }
}
