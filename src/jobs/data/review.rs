//! Review of proposals: what each person says, when they agree, who settles a dispute, and how accepted samples become a version.

use crate::datasets::shapes::{self, Draft};
use crate::datasets::{DatasetError, Datasets, Lineage, Sample};
use crate::stats::{Interval, cohen_kappa};
use crate::store::datasets::DatasetVersion;
use crate::store::reviews::{self, ACCEPTED, DISPUTED, OPEN, Page, REJECTED, Review, ReviewItem, Settlement};
use crate::store::{Store, StoreError};
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};

/// What may be said of a proposal.
pub const VERDICTS: [&str; 3] = ["accept", "edit", "reject"];
/// Accepted items that one version takes up.
const MOST: usize = 1_000_000;
/// How often a review is written when others speak at the same moment.
const MOST_TRIES: usize = 8;
/// Items of a page while all are gathered.
const PAGE: usize = 1_000;

/// What somebody says of a proposal.
#[derive(Debug, Clone)]
pub struct Said {
    /// Item.
    pub item: String,
    /// Who says it.
    pub reviewer: String,
    /// One of [`VERDICTS`].
    pub verdict: String,
    /// With `edit`: the sample, or the fields of it that are other.
    pub edited: Option<Value>,
    /// Why.
    pub comment: Option<String>,
    /// Whether it settles a dispute.
    pub is_final: bool,
}

/// An item with what was said of it.
#[derive(Debug, Clone, Serialize)]
pub struct Reviewed {
    /// The item.
    #[serde(flatten)]
    pub item: ReviewItem,
    /// What was said, in order; while the item is open, only what the one who looks has said.
    pub reviews: Vec<Review>,
    /// How many have said something.
    pub reviewed: usize,
}

/// An item with what was said of it, as `reviewer` may see it: nobody is to follow another one's verdict.
///
/// # Errors
/// [`StoreError::Unknown`].
pub fn show(store: &Store, project: Option<&str>, id: &str, reviewer: &str) -> Result<Reviewed, StoreError> {
    let db = store.db.as_ref();
    let (mut item, mut said) = (reviews::get(db, project, id)?, reviews::of_item(db, id)?);
    // Reviews of versions that wrote verdict and settlement one after the other may have lost the second.
    if item.status == OPEN && outcome(&item, &said).0 != OPEN {
        let (status, outcome) = outcome(&item, &said);
        reviews::settle(db, id, &Settlement { reviews: said.len(), status, outcome: outcome.as_ref() })?;
        item = reviews::get(db, project, id)?;
    }
    let reviewed = said.len();
    if item.status == OPEN {
        said.retain(|review| review.reviewer == reviewer);
    }
    Ok(Reviewed { item, reviews: said, reviewed })
}

/// Writes down what somebody says, and what becomes of the item by it.
///
/// # Errors
/// [`Code::CONFLICT`] when that person has spoken already, when the item is closed, or when there is no dispute to settle;
/// [`Code::INVALID_VALUE`] for a verdict or an edit that is none.
pub fn say(store: &Store, project: Option<&str>, said: Said) -> Result<Reviewed, Failure> {
    let reviewer = said.reviewer.clone();
    for _ in 0..MOST_TRIES {
        if write_down(store, project, &said)? {
            return Ok(show(store, project, &said.item, &reviewer)?);
        }
    }
    Err(Failure::new(Code::CONFLICT, format!("others review {} at this moment", said.item)).with_hint("say it again"))
}

/// Writes down what somebody says; false when another one spoke meanwhile.
fn write_down(store: &Store, project: Option<&str>, said: &Said) -> Result<bool, Failure> {
    let db = store.db.as_ref();
    let item = show(store, project, &said.item, &said.reviewer)?.item;
    if !VERDICTS.contains(&said.verdict.as_str()) {
        return Err(Failure::on(Code::INVALID_VALUE, "verdict", format!("verdict: expected one of {}", VERDICTS.join(", "))));
    }
    let sample = match (said.verdict.as_str(), &said.edited) {
        ("edit", Some(edited)) => Some(json!(edited_sample(&item, edited)?)),
        ("edit", None) => return Err(Failure::on(Code::MISSING_FIELD, "sample", "an edit says what the sample should be")),
        (_, Some(_)) => return Err(Failure::on(Code::INVALID_VALUE, "sample", "only an edit brings a sample")),
        (_, None) => None,
    };
    let before = reviews::of_item(db, &item.id)?;
    if before.iter().any(|review| review.reviewer == said.reviewer) {
        let failure = Failure::new(Code::CONFLICT, format!("{} has reviewed {} already", said.reviewer, item.id));
        return Err(failure.with_hint("somebody else has to look at it"));
    }
    let wanted = if said.is_final { DISPUTED } else { OPEN };
    if item.status != wanted {
        let failure = Failure::new(Code::CONFLICT, format!("{} is {}, not {wanted}", item.id, item.status));
        return Err(if item.status == DISPUTED {
            failure.with_hint("a third person settles it: refit data review settle")
        } else {
            failure
        });
    }
    let Said { item: id, reviewer, verdict, comment, is_final, .. } = said.clone();
    let review = Review { item: id, reviewer, verdict, sample, comment, is_final, at: now_ms() };
    let all: Vec<Review> = before.into_iter().chain([review.clone()]).collect();
    let (status, outcome) = outcome(&item, &all);
    match reviews::say(db, &review, &Settlement { reviews: all.len(), status, outcome: outcome.as_ref() }) {
        Ok(()) => Ok(true),
        Err(StoreError::Conflict(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The sample as edited: a whole one, or the fields `input`, `target` and `metadata` that are other.
fn edited_sample(item: &ReviewItem, edited: &Value) -> Result<Sample, Failure> {
    let wrong = |problem: String| Failure::on(Code::INVALID_VALUE, "sample", format!("sample: {problem}"));
    let Value::Object(edited) = edited else { return Err(wrong("expected an object with input, target or metadata".into())) };
    let mut whole = item.sample.as_object().cloned().unwrap_or_default();
    whole.extend(edited.clone());
    whole.insert("id".into(), item.source.clone().into());
    let own = shapes::named("jsonl").ok_or_else(|| wrong("cannot be read".into()))?;
    own.read(whole).map(Draft::named).map_err(wrong)
}

/// What an item is after these reviews. Pure.
fn outcome(item: &ReviewItem, said: &[Review]) -> (&'static str, Option<Value>) {
    let sample = |review: &Review| review.sample.clone().unwrap_or_else(|| item.sample.clone());
    let taken = |review: &Review| match review.verdict.as_str() {
        "reject" => (REJECTED, None),
        _ => (ACCEPTED, Some(sample(review))),
    };
    if let Some(last) = said.iter().find(|review| review.is_final) {
        return taken(last);
    }
    if (said.len() as i64) < item.needed {
        return (OPEN, None);
    }
    let mut outcomes = said.iter().map(taken);
    match outcomes.next() {
        Some(first) if outcomes.all(|other| other == first) => first,
        Some(_) => (DISPUTED, None),
        None => (OPEN, None),
    }
}

/// What the first two reviewers want to become of every item that has two: `accept`, `reject`, or an edit by its content.
///
/// # Errors
/// When the database fails.
pub fn pairs(store: &Store, project: Option<&str>, dataset: &str) -> Result<Vec<[String; 2]>, StoreError> {
    let db = store.db.as_ref();
    let mut pairs: Vec<(String, Vec<Review>)> = Vec::new();
    for review in reviews::of_dataset(db, project, dataset)?.into_iter().filter(|review| !review.is_final) {
        match pairs.last_mut().filter(|(item, _)| *item == review.item) {
            Some((_, said)) => said.push(review),
            None => pairs.push((review.item.clone(), vec![review])),
        }
    }
    let mut wanted = Vec::new();
    for (item, said) in pairs {
        if let [first, second, ..] = said.as_slice() {
            // Only an edit needs the item: it may make of it what it was.
            let has_edit = [first, second].iter().any(|review| review.sample.is_some());
            let proposed = if has_edit { reviews::get(db, project, &item)?.sample } else { Value::Null };
            wanted.push([wish(first, &proposed), wish(second, &proposed)]);
        }
    }
    Ok(wanted)
}

fn wish(review: &Review, proposed: &Value) -> String {
    match &review.sample {
        Some(sample) if sample == proposed => "accept".into(),
        Some(sample) => format!("edit {}", Digest::of_json(sample)),
        None => review.verdict.clone(),
    }
}

/// How often two reviewers say the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Items that two people have looked at.
    pub items: usize,
    /// Of them, those of which both say the same.
    pub agreed: usize,
    /// Cohen's kappa over what each wants to become of it: accept, reject, and every edit by its content; none where it is not defined.
    pub kappa: Option<f64>,
    /// Its 95 % interval.
    pub ci95: Option<Interval>,
}

impl Agreement {
    /// In words.
    pub fn told(&self) -> String {
        let kappa = match (self.kappa, self.ci95) {
            (Some(kappa), Some([low, high])) => format!("{kappa:.2} (95 % interval {low:.2} to {high:.2})"),
            _ => "not defined".into(),
        };
        format!("{} items with two reviews, {} of them with the same outcome, Cohen's kappa {kappa}", self.items, self.agreed)
    }
}

/// How often the first two reviewers of each item say the same.
///
/// # Errors
/// When the database fails.
pub fn agreement(store: &Store, project: Option<&str>, dataset: &str) -> Result<Agreement, StoreError> {
    let pairs = pairs(store, project, dataset)?;
    let agreed = pairs.iter().filter(|[a, b]| a == b).count();
    let items = pairs.len();
    let found = cohen_kappa(pairs.into_iter().map(|[a, b]| (a, b)));
    Ok(Agreement { items, agreed, kappa: found.map(|found| found.kappa), ci95: found.map(|found| found.ci95) })
}

/// Makes a version of a dataset: its newest one, and what was accepted since, of one project. None where nothing was. Where the newest
/// version is split, the new one is split likewise, with what is new in train.
///
/// # Errors
/// [`Code::CONFLICT`] when several projects have accepted items and none is named, or what the store says.
pub fn publish(store: &Store, project: Option<&str>, dataset: &str) -> Result<Option<DatasetVersion>, Failure> {
    let items = accepted(store, project, dataset)?;
    if items.is_empty() {
        return Ok(None);
    }
    let projects: BTreeSet<&str> = items.iter().map(|item| item.project.as_str()).collect();
    if projects.len() > 1 {
        let named = projects.into_iter().collect::<Vec<_>>().join(", ");
        let failure = Failure::new(Code::CONFLICT, format!("samples of several projects were accepted for {dataset}: {named}"));
        return Err(failure.with_hint("say whose become a version: --project NAME"));
    }
    let datasets = Datasets::new(store);
    let parent = match datasets.get(dataset) {
        Ok(row) => Some(row),
        Err(DatasetError::Unknown { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let read = |item: &ReviewItem| {
        let sample = item.outcome.clone().unwrap_or_else(|| item.sample.clone());
        serde_json::from_value::<Sample>(sample).map_err(|error| StoreError::Corrupt(format!("the sample of {}: {error}", item.id)))
    };
    let new = items.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    // What is proposed twice under one name is what was said last.
    let names: HashSet<String> = new.iter().map(|sample| sample.id.clone()).collect();
    let old = parent.as_ref().map(|row| datasets.stream(row)).transpose()?;
    let old = old.into_iter().flatten().filter(|sample| !sample.as_ref().is_ok_and(|sample| names.contains(&sample.id)));
    let lineage = Lineage {
        kind: "curated".into(),
        source: format!("{} reviewed requests", items.len()),
        parents: parent.iter().map(|row| row.digest).collect(),
        detail: json!({"project": projects.first(), "items": items.len(), "reviewed_by_two": pairs(store, project, dataset)?.len()}),
        ..Lineage::default()
    };
    let (mut row, is_new) = datasets.store(dataset, old.chain(new.into_iter().map(Ok)), &lineage)?;
    if let Some(parent) = parent.filter(|_| is_new) {
        datasets.split_as_before(&mut row, &parent, names)?;
    }
    reviews::publish(store.db.as_ref(), &items.into_iter().map(|item| item.id).collect::<Vec<_>>())?;
    Ok(Some(row))
}

fn accepted(store: &Store, project: Option<&str>, dataset: &str) -> Result<Vec<ReviewItem>, StoreError> {
    let mut items: Vec<ReviewItem> = Vec::new();
    loop {
        let after = items.last().map(|item| item.id.clone());
        let page = Page { project, dataset: Some(dataset), status: Some(ACCEPTED), after: after.as_deref(), limit: PAGE };
        let (some, more) = reviews::list(store.db.as_ref(), &page)?;
        items.extend(some);
        if !more || items.len() >= MOST {
            return Ok(items);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(verdict: &str, target: Option<&str>, is_final: bool) -> Review {
        let sample = target.map(|target| json!({"target": target}));
        Review { item: "i".into(), reviewer: "r".into(), verdict: verdict.into(), sample, comment: None, is_final, at: 0 }
    }

    #[test]
    fn two_who_want_the_same_agree_and_a_third_settles_the_rest() {
        let item = ReviewItem {
            id: "i".into(),
            project: "p".into(),
            dataset: "d".into(),
            source: "s".into(),
            reason: String::new(),
            sample: json!({"target": "x"}),
            status: OPEN.into(),
            outcome: None,
            needed: 2,
            created_at: 0,
            closed_at: None,
        };
        let status = |said: &[Review]| outcome(&item, said).0;
        let (accept, reject) = (review("accept", None, false), review("reject", None, false));
        let edit = |target: &str| review("edit", Some(target), false);
        assert_eq!(status(std::slice::from_ref(&accept)), OPEN);
        assert_eq!(status(&[accept.clone(), accept.clone()]), ACCEPTED);
        assert_eq!(status(&[reject.clone(), reject.clone()]), REJECTED);
        assert_eq!(status(&[accept.clone(), reject.clone()]), DISPUTED);
        assert_eq!(status(&[edit("y"), edit("z")]), DISPUTED);
        assert_eq!(outcome(&item, &[edit("y"), edit("y")]), (ACCEPTED, Some(json!({"target": "y"}))));
        // Whoever edits it into what it is accepts it.
        assert_eq!(status(&[edit("x"), accept.clone()]), ACCEPTED);
        assert_eq!(outcome(&item, &[accept, reject, review("edit", Some("z"), true)]), (ACCEPTED, Some(json!({"target": "z"}))));
    }
}
