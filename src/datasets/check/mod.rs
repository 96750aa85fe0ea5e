//! Quality of a dataset in one report: duplicates, contradictions, leakage between splits, balance of the target's fields, lengths,
//! [`languages`], personal data; and by vectors of the samples [`labels`] that look wrong and [`outliers`]. [`fix`] says which samples may
//! go without a person's look.

pub mod fix;
pub mod labels;
pub mod languages;
pub mod neighbours;
pub mod outliers;

use super::library::Dataset;
use super::{Sample, similar, split};
use crate::stats::percentile;
use crate::types::traits::CountTokens;
use languages::Languages;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// Values of a field beyond this many are counted, not listed.
const MAX_LISTED_VALUES: usize = 40;
/// Samples that one check lists.
pub const MAX_LISTED_SAMPLES: usize = 1_000;

/// Pairs that one check lists.
pub const MAX_LISTED_PAIRS: usize = 10_000;

/// How many pairs of each kind there are, listed or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Pairs with equal input.
    pub duplicates: usize,
    /// Pairs that are equal but for case, white space and punctuation.
    pub normalised_duplicates: usize,
    /// Other pairs that are alike.
    pub near_duplicates: usize,
    /// Pairs among them whose targets differ.
    pub contradictions: usize,
    /// Pairs among them on two sides of the split.
    pub leakage: usize,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Samples looked at.
    pub samples: usize,
    /// How many pairs there are; of each kind up to [`MAX_LISTED_PAIRS`] are listed.
    pub counts: Counts,
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
    /// Length of inputs and targets for each model that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Tokens>,
    /// Languages of the inputs.
    pub languages: Languages,
    /// Samples with what may be personal data or a secret; none where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personal: Option<Personal>,
    /// Labels that look wrong; none where there were no vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_errors: Option<labels::Suspects>,
    /// Samples that are like no other; none where there were no vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outliers: Option<outliers::Outliers>,
    /// Checks that were not made, and why.
    pub skipped: Vec<Skipped>,
    /// Samples without a target.
    pub without_target: usize,
}

/// A check that was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its name.
    pub check: &'static str,
    /// Why, and what to do about it.
    pub reason: String,
}

/// Length in the tokens of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tokens {
    /// Model.
    pub model: String,
    /// Tokens of inputs and targets together.
    pub length: Length,
    /// Tokens of the whole dataset.
    pub total: f64,
}

/// Personal data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Personal {
    /// Samples by what was found in them.
    pub counts: BTreeMap<String, usize>,
    /// The samples, up to [`MAX_LISTED_SAMPLES`].
    pub samples: Vec<PersonalSample>,
}

/// A sample with personal data; the data itself is not told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PersonalSample {
    /// Id.
    pub id: String,
    /// What was found.
    pub kinds: Vec<String>,
}

/// How alike two samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Likeness {
    /// The same but for white space around texts.
    Exact,
    /// The same but for case, punctuation and white space around.
    Normalised,
    /// At least [`split::NEAR`] alike.
    Near,
}

/// Two samples that are alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Match {
    /// Ids.
    pub ids: [String; 2],
    /// Splits they stand in, where there are any.
    pub splits: [Option<String>; 2],
    /// How they are alike.
    pub kind: Likeness,
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
    let sides = dataset.sides();
    let texts: Vec<String> = samples.iter().map(Sample::text).collect();
    let asked: Vec<String> = samples.iter().map(Sample::asked).collect();
    let side = |i: usize| sides.get(samples[i].id.as_str()).map(|split| split.to_string());
    let mut report = Report {
        samples: samples.len(),
        counts: Counts::default(),
        duplicates: Vec::new(),
        normalised_duplicates: Vec::new(),
        near_duplicates: Vec::new(),
        contradictions: Vec::new(),
        leakage: Vec::new(),
        balance: balance(samples),
        length: length(&texts, counter),
        tokens: Vec::new(),
        languages: languages::of(&asked),
        personal: None,
        label_errors: None,
        outliers: None,
        skipped: Vec::new(),
        without_target: samples.iter().filter(|sample| sample.target.is_null()).count(),
    };
    let number = |i: usize| {
        let split = sides.get(samples[i].id.as_str());
        split.map_or(0, |split| split::NAMES.iter().position(|name| name == split).map_or(4, |at| at + 1))
    };
    for pair in similar::pairs_across(&asked, split::NEAR, &number) {
        let (a, b) = (pair.a, pair.b);
        let kind = likeness(&samples[a], &samples[b]);
        let ids = [samples[a].id.clone(), samples[b].id.clone()];
        let found = Match { ids, splits: [side(a), side(b)], kind, similarity: pair.similarity };
        if samples[a].target != samples[b].target && samples[a].context() == samples[b].context() {
            list(&mut report.contradictions, &mut report.counts.contradictions, found.clone());
        }
        if found.splits[0].is_some() && found.splits[1].is_some() && found.splits[0] != found.splits[1] {
            list(&mut report.leakage, &mut report.counts.leakage, found.clone());
        }
        let (pairs, count) = match kind {
            Likeness::Exact => (&mut report.duplicates, &mut report.counts.duplicates),
            Likeness::Normalised => (&mut report.normalised_duplicates, &mut report.counts.normalised_duplicates),
            Likeness::Near => (&mut report.near_duplicates, &mut report.counts.near_duplicates),
        };
        list(pairs, count, found);
    }
    report
}

/// Counts a pair, and lists it where there is room.
fn list(pairs: &mut Vec<Match>, count: &mut usize, found: Match) {
    *count += 1;
    if pairs.len() < MAX_LISTED_PAIRS {
        pairs.push(found);
    }
}

/// Counts the tokens of inputs and targets as a model would.
pub fn tokens(samples: &[Sample], model: &str, counter: &dyn CountTokens) -> Tokens {
    let text = |sample: &Sample| match &sample.target {
        Value::Null => sample.text(),
        Value::String(target) => format!("{}\n{target}", sample.text()),
        target => format!("{}\n{target}", sample.text()),
    };
    let lengths: Vec<f64> = samples.iter().map(|sample| counter.count(&text(sample)) as f64).collect();
    Tokens { model: model.to_string(), total: lengths.iter().sum(), length: distribution("tokens", &lengths) }
}

/// Looks for personal data in every text, number and name of samples, metadata included; `find` names what it finds in a text.
pub fn personal(samples: &[Sample], find: &dyn Fn(&str) -> Vec<String>) -> Personal {
    let mut personal = Personal::default();
    for sample in samples {
        let mut kinds = Vec::new();
        let mut look = |text: &str| kinds.extend(find(text));
        for (name, value) in sample.input.iter().chain(&sample.metadata) {
            look(name);
            super::sample::each_text(value, &mut look);
        }
        super::sample::each_text(&sample.target, &mut look);
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.is_empty() {
            continue;
        }
        kinds.iter().for_each(|kind| *personal.counts.entry(kind.clone()).or_default() += 1);
        if personal.samples.len() < MAX_LISTED_SAMPLES {
            personal.samples.push(PersonalSample { id: sample.id.clone(), kinds });
        }
    }
    personal
}

/// How alike two samples are that are near anyway.
fn likeness(a: &Sample, b: &Sample) -> Likeness {
    let same = |x: &Value, y: &Value| match (x, y) {
        (Value::String(x), Value::String(y)) => x.trim() == y.trim(),
        _ => x == y,
    };
    let is_exact = a.input.len() == b.input.len() && a.input.iter().all(|(name, x)| b.input.get(name).is_some_and(|y| same(x, y)));
    match is_exact {
        true => Likeness::Exact,
        false if normal(&a.input) == normal(&b.input) => Likeness::Normalised,
        false => Likeness::Near,
    }
}

/// Variables with every text in the form in which case and punctuation do not count; what is no text stays as it is.
fn normal(input: &Map<String, Value>) -> Map<String, Value> {
    input.iter().map(|(name, value)| (name.clone(), normal_value(value))).collect()
}

fn normal_value(value: &Value) -> Value {
    match value {
        Value::String(text) => similar::letters(text).into(),
        Value::Array(items) => items.iter().map(normal_value).collect(),
        Value::Object(fields) => Value::Object(normal(fields)),
        other => other.clone(),
    }
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
    distribution(if counter.is_some() { "tokens" } else { "words" }, &lengths)
}

fn distribution(unit: &'static str, lengths: &[f64]) -> Length {
    let at = |q| percentile(lengths, q);
    Length { unit, min: at(0.0), p50: at(0.5), p95: at(0.95), max: at(1.0) }
}
