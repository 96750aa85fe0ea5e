//! Which samples may go without a person's look: those that say, question and answer, what another one says too. Of copies on two sides
//! of a split the one that is tested stays, so that nothing leaks. What contradicts or is only near is left to a person.

use super::{Likeness, Report};
use crate::datasets::library::Dataset;
use std::collections::{HashMap, HashSet};

/// What would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fix {
    /// Ids, each with the one that stays in its place.
    pub removed: Vec<(String, String)>,
    /// How many of them stood on another side of the split than the one that stays.
    pub leaks: usize,
}

/// What may go of a dataset that was checked.
pub fn fix(dataset: &Dataset, report: &Report) -> Fix {
    let by_id: HashMap<&str, &_> = dataset.samples.iter().map(|sample| (sample.id.as_str(), sample)).collect();
    let (mut gone, mut fix) = (HashSet::new(), Fix::default());
    for found in report.duplicates.iter().chain(&report.normalised_duplicates) {
        debug_assert!(found.kind != Likeness::Near);
        let [a, b] = &found.ids;
        let same_target = matches!((by_id.get(a.as_str()), by_id.get(b.as_str())), (Some(a), Some(b)) if a.target == b.target);
        if !same_target || gone.contains(a) || gone.contains(b) {
            continue;
        }
        let ranks = [rank(found.splits[0].as_deref()), rank(found.splits[1].as_deref())];
        let (stays, goes) = if ranks[1] > ranks[0] { (b, a) } else { (a, b) };
        gone.insert(goes.clone());
        fix.leaks += usize::from(found.splits[0] != found.splits[1]);
        fix.removed.push((goes.clone(), stays.clone()));
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
