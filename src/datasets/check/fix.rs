//! Which samples may go without a person's look: those that say, question and answer, what another one says too. Of copies on two sides
//! of a split the one that is tested stays, so that nothing leaks. What contradicts or is only near is left to a person.

use super::normal;
use crate::datasets::Sample;
use crate::datasets::library::Dataset;
use crate::types::Digest;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::HashMap;

/// What would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fix {
    /// Ids, each with the one that stays in its place.
    pub removed: Vec<(String, String)>,
    /// How many of them stood on another side of the split than the one that stays.
    pub leaks: usize,
}

/// What may go of a dataset: of all samples that are the same but for case, punctuation and white space around, one stays.
pub fn fix(dataset: &Dataset) -> Fix {
    let sides = dataset.sides();
    let side = |sample: &Sample| sides.get(sample.id.as_str()).copied();
    let mut classes: HashMap<u128, Vec<&Sample>> = HashMap::new();
    let mut order: Vec<u128> = Vec::new();
    for sample in &dataset.samples {
        let key = Digest::of_json(&json!([normal(&sample.input), sample.target])).prefix();
        let class = classes.entry(key).or_default();
        if class.is_empty() {
            order.push(key);
        }
        class.push(sample);
    }
    let mut fix = Fix::default();
    for class in order.iter().map(|key| &classes[key]) {
        // Of equal ranks the first.
        let Some((at, stays)) = class.iter().enumerate().min_by_key(|(at, sample)| (Reverse(rank(side(sample))), *at)) else { continue };
        for (_, goes) in class.iter().enumerate().filter(|(other, _)| *other != at) {
            fix.leaks += usize::from(side(goes) != side(stays));
            fix.removed.push((goes.id.clone(), stays.id.clone()));
        }
    }
    fix
}

/// How much a place is worth: what is tested more than what is trained on.
fn rank(split: Option<&str>) -> usize {
    match split {
        Some("test") => 3,
        Some("validation") => 2,
        Some(_) => 1,
        None => 0,
    }
}
