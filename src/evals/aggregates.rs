//! Numbers of a run that no mean of cases is: its stored cases go through the scorers that add them up, one after the other.

use super::Reply;
use super::prepare::Plan;
use super::scorers::{Aggregate, Case};
use crate::stats::Summary;
use crate::store::cases::{CaseRecord, each_case};
use crate::store::{Store, StoreError};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// What the cases of a target add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Added {
    /// Numbers by name.
    pub metrics: Vec<(String, Summary)>,
    /// More, by the main metric of the scorer that says it.
    pub details: BTreeMap<String, Value>,
}

/// What adds up, by the main metric of its scorer.
type Aggregates = Vec<(String, Box<dyn Aggregate>)>;

/// Adds up the cases of a run, by target; nothing where no scorer of the suite does.
///
/// # Errors
/// [`StoreError`] when cases or samples cannot be read.
pub fn added(store: &Store, run: &str, plan: &Plan) -> Result<HashMap<String, Added>, StoreError> {
    let begin = || -> Aggregates {
        let each = plan.suite.scorers.iter();
        each.filter_map(|scorer| Some((scorer.metrics().into_iter().next()?, scorer.aggregate()?))).collect()
    };
    if begin().is_empty() {
        return Ok(HashMap::new());
    }
    let mut targets = HashMap::<String, Aggregates>::new();
    let mut groups = HashMap::<String, u32>::new();
    each_case::<StoreError>(store.db.as_ref(), run, &mut |case| {
        if case.error.is_some() {
            return Ok(());
        }
        let sample = plan.samples.get(case.position)?;
        let reply = Reply::stored(&case);
        let none = Map::new();
        let scores = case.scores.as_object().unwrap_or(&none);
        // All repeats of a sample belong together.
        let group = match &case.group {
            None => u32::try_from(case.position).unwrap_or(u32::MAX),
            Some(name) => {
                let next = groups.len() as u32;
                *groups.entry(name.clone()).or_insert(next)
            }
        };
        for (_, aggregate) in targets.entry(case.target.clone()).or_insert_with(begin) {
            aggregate.add(&Case::new(&sample, &reply), scores, group);
        }
        Ok(())
    })?;
    let finish = |(target, aggregates): (String, Aggregates)| {
        let mut added = Added::default();
        for (scorer, aggregate) in aggregates {
            let found = aggregate.finish();
            added.metrics.extend(found.metrics);
            if !found.details.is_null() {
                added.details.insert(scorer, found.details);
            }
        }
        (target, added)
    };
    Ok(targets.into_iter().map(finish).collect())
}

impl Reply {
    /// The answer of a stored case.
    pub fn stored(case: &CaseRecord) -> Self {
        Reply {
            output: case.output.clone(),
            tool_calls: case.tool_calls.clone(),
            input_tokens: case.input_tokens,
            output_tokens: case.output_tokens,
            latency_ms: case.latency_ms,
            cost_micro_usd: case.cost_micro_usd,
            refusal: case.refusal.clone(),
            answered_as: case.answered_as.clone(),
        }
    }
}
