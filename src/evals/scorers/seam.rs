//! The seam between runs and scorers: [`Scorer`] looks at one case, [`Aggregate`] at all of a run, [`Services`] is what they may call.
//! A scorer that only computes implements [`Pure`] and is a scorer by that.

use super::case::Case;
use crate::datasets::Sample;
use crate::evals::Reply;
use crate::inference::{CacheWish, MostCost};
use crate::stats::{Summary, bootstrap_groups};
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use crate::types::traits::Embed;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde_json::{Map, Value};

/// Looks at one answer.
pub trait Scorer: Send + Sync {
    /// Names of the metrics, the main one first; the same for every case.
    fn metrics(&self) -> Vec<String>;

    /// What the values of a metric mean.
    fn scale(&self, _metric: &str) -> Scale {
        Scale::Share
    }

    /// Values in the order of [`Scorer::metrics`].
    ///
    /// # Errors
    /// Why there is no score: the third outcome beside right and wrong.
    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>>;

    /// Names of the numbers that [`Scorer::aggregate`] gives.
    fn aggregates(&self) -> Vec<String> {
        Vec::new()
    }

    /// Begins to add up a run's cases, where that gives numbers that no mean of cases is.
    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        None
    }

    /// Whether it runs a program of the suite's author, which has to be allowed.
    fn runs_commands(&self) -> bool {
        false
    }

    /// Whether its code lies outside of the suite and its files, where anybody may change it unseen.
    fn is_unpinned(&self) -> bool {
        false
    }

    /// Targets whose answers it compares with.
    fn compares_with(&self) -> Vec<String> {
        Vec::new()
    }

    /// Models that it asks, as far as that is known before it looks at a case.
    fn asks(&self) -> Vec<Asks> {
        Vec::new()
    }
}

/// A scorer that only computes.
pub trait Pure: Send + Sync {
    /// As [`Scorer::metrics`].
    fn metrics(&self) -> Vec<String>;

    /// As [`Scorer::scale`].
    fn scale(&self, _metric: &str) -> Scale {
        Scale::Share
    }

    /// As [`Scorer::score`].
    ///
    /// # Errors
    /// Why there is no score.
    fn look(&self, case: &Case<'_>) -> Result<Scored, String>;

    /// The same to be computed on a thread of its own, where that may take long enough to keep other cases waiting ([`MANY_STEPS`]).
    fn long(&self, _case: &Case<'_>) -> Option<Long> {
        None
    }

    /// As [`Scorer::aggregates`].
    fn aggregates(&self) -> Vec<String> {
        Vec::new()
    }

    /// As [`Scorer::aggregate`].
    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        None
    }
}

impl<P: Pure> Scorer for P {
    fn metrics(&self) -> Vec<String> {
        Pure::metrics(self)
    }

    fn scale(&self, metric: &str) -> Scale {
        Pure::scale(self, metric)
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, _services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        let Some(long) = self.long(case) else { return ready(self.look(case)).boxed() };
        Box::pin(async move { tokio::task::spawn_blocking(long).await.unwrap_or_else(|_| Err("it ended early".into())) })
    }

    fn aggregates(&self) -> Vec<String> {
        Pure::aggregates(self)
    }

    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        Pure::aggregate(self)
    }
}

/// Steps (cells of a table, runs of characters) that take some milliseconds: more are computed on a thread of their own.
pub const MANY_STEPS: usize = 1_000_000;

/// A look that takes long.
pub type Long = Box<dyn FnOnce() -> Result<Scored, String> + Send>;

/// A look at a case's answer and target, apart from where the case lives.
pub(super) fn apart<P: Pure + Clone + 'static>(scorer: &P, case: &Case<'_>) -> Long {
    let sample = Sample { id: case.sample.to_string(), input: Map::new(), target: case.target.clone(), metadata: Map::new() };
    let (scorer, reply) = (scorer.clone(), case.reply.clone());
    Box::new(move || scorer.look(&Case::new(&sample, &reply)))
}

/// What the values of a metric mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// 1 for right and 0 for wrong; less than 1 is wrong, too.
    Pass,
    /// From 0 to 1, and more is better: how good, not whether it is good enough.
    Share,
    /// A number with a unit of its own (`ms`, `micro-dollars`, `tokens`, `edits`), of which less is better.
    Less(&'static str),
    /// A number that is neither good nor bad.
    Plain(&'static str),
}

/// What a scorer says of a case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// A value for each metric; none where the metric says nothing of this case (the price of a model is not known).
    pub values: Vec<Option<f64>>,
    /// Why, for people.
    pub explanation: Option<String>,
}

impl Scored {
    /// With an explanation.
    pub fn because(mut self, explanation: impl Into<String>) -> Self {
        self.explanation = Some(explanation.into());
        self
    }
}

impl From<Vec<f64>> for Scored {
    fn from(values: Vec<f64>) -> Self {
        Scored { values: values.into_iter().map(Some).collect(), explanation: None }
    }
}

impl From<f64> for Scored {
    fn from(value: f64) -> Self {
        vec![value].into()
    }
}

impl From<bool> for Scored {
    fn from(passed: bool) -> Self {
        f64::from(u8::from(passed)).into()
    }
}

/// Seed of numbers that are found by drawing.
pub const SEED: u64 = 7;

/// How sure a statistic of grouped cases is, within the ends that it has; the ends themselves where nothing is known.
pub(in crate::evals) fn drawn(groups: usize, [low, high]: [f64; 2], statistic: impl FnMut(&[u32]) -> Option<f64>) -> (f64, [f64; 2]) {
    let drawn = bootstrap_groups(groups, SEED, statistic);
    drawn.map_or((0.0, [low, high]), |found| (found.standard_error, found.ci95.map(|end| end.clamp(low, high))))
}

/// Adds up the cases of one target, one by one: a run may be larger than memory.
pub trait Aggregate: Send {
    /// A case that has an answer, with the values of all metrics. Cases of one group (repeats of a sample, samples of a cluster) are not
    /// independent of each other.
    fn add(&mut self, case: &Case<'_>, scores: &Map<String, Value>, group: u32);

    /// The numbers.
    fn finish(self: Box<Self>) -> Aggregated;
}

/// What cases add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aggregated {
    /// Numbers by the names of [`Scorer::aggregates`]; those that cannot be had (no labels, no cases) are left out.
    pub metrics: Vec<(String, Summary)>,
    /// More for people and reports, such as a confusion matrix; `null` when there is nothing.
    pub details: Value,
}

/// A call that a scorer is about to make.
#[derive(Debug, Clone, Copy)]
pub enum Calling<'a> {
    /// Asks a model.
    Chat(&'a ChatRequest),
    /// Makes vectors: the model, and the texts.
    Vectors(&'a str, &'a [&'a str]),
}

/// A model that a scorer asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asks {
    /// `provider/model` or a route.
    pub model: String,
    /// Whether the scorer bounds what may be answered.
    pub has_limit: bool,
}

/// What scorers may call.
pub trait Services: Embed {
    /// Asks a model, on the road that applications take.
    fn chat(&self, request: ChatRequest, cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>>;

    /// The most that a call may cost.
    fn most_cost<'a>(&'a self, calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>>;

    /// Whether the suite's author may run programs here.
    fn allows_commands(&self) -> bool;
}

/// What all scorers say of a case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Value per metric.
    pub scores: Map<String, Value>,
    /// Explanation per scorer (by its main metric), where it gave one.
    pub explanations: Map<String, Value>,
    /// Why a scorer could not score, with the scorer's name; the first one's.
    pub error: Option<String>,
}

impl Verdict {
    /// What people may want to read, by metric; `null` where there is nothing.
    pub fn notes(&self) -> Value {
        if self.explanations.is_empty() { Value::Null } else { Value::Object(self.explanations.clone()) }
    }
}

/// Scores a case with all scorers, one after the other. What one cannot score keeps no other from its scores.
pub async fn score(scorers: &[Box<dyn Scorer>], case: &Case<'_>, services: &dyn Services) -> Verdict {
    let mut verdict = Verdict::default();
    for scorer in scorers {
        let metrics = scorer.metrics();
        let name = metrics.first().cloned().unwrap_or_default();
        match scorer.score(case, services).await.and_then(finite) {
            Ok(scored) => {
                let known = metrics.into_iter().zip(scored.values).filter_map(|(metric, value)| Some((metric, Value::from(value?))));
                verdict.scores.extend(known);
                verdict.explanations.extend(scored.explanation.map(|explanation| (name, explanation.into())));
            }
            Err(problem) => drop(verdict.error.get_or_insert(format!("{SCORER_ERROR}{name}: {problem}"))),
        }
    }
    verdict
}

/// What the error of a case begins with when it was answered and a scorer failed.
pub const SCORER_ERROR: &str = "scorer_error: ";

/// JSON has no infinite numbers: such a value would be stored as none.
fn finite(scored: Scored) -> Result<Scored, String> {
    match scored.values.iter().flatten().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("the score {value} is not a finite number")),
        None => Ok(scored),
    }
}
