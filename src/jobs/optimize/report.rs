//! What an optimisation found.

use super::Request;
use super::candidate::Candidate;
use super::measure::{Bench, Measured};
use super::meter::Ended;
use crate::evals::compare::Difference;
use crate::stats::Interval;
use crate::types::Digest;
use serde::Serialize;

/// What an optimisation found.
#[derive(Debug, Serialize)]
pub struct Optimized {
    /// Prompt.
    pub prompt: String,
    /// Suite.
    pub suite: String,
    /// Target of the suite whose model answered.
    pub target: String,
    /// Metric that decided.
    pub metric: String,
    /// Model that proposed.
    pub with: String,
    /// Seed.
    pub seed: u64,
    /// The prompt as it was, on the validation split.
    pub current: Option<Tried>,
    /// What was measured on the validation split, in the order of trying.
    pub candidates: Vec<Tried>,
    /// What was proposed and not measured, or not to the end.
    pub thrown_away: Vec<ThrownAway>,
    /// Comparisons that the interval is corrected for.
    pub compared: usize,
    /// Level of the corrected interval.
    pub level: f64,
    /// The candidate with the highest mean, where that is higher than the current prompt's.
    pub best: Option<String>,
    /// The candidate that is kept.
    pub winner: Option<Winner>,
    /// Winner minus current prompt on the test split.
    pub test: Option<Difference>,
    /// Runs that were made or found.
    pub runs: Vec<String>,
    /// What the calls of this execution cost, in dollars.
    pub spent_usd: String,
    /// Why it ended before its end.
    pub ended: Option<Ended>,
}

/// A prompt on the validation split.
#[derive(Debug, Clone, Serialize)]
pub struct Tried {
    /// `current`, or where the candidate is stored.
    pub name: String,
    /// Digest of the source.
    pub digest: Digest,
    /// Run.
    pub run: String,
    /// Mean of the metric.
    pub mean: f64,
    /// Samples.
    pub n: usize,
    /// Beyond the current prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// The difference's interval at the corrected level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Whether it is better beyond chance.
    pub is_better: bool,
}

/// A proposal that is none.
#[derive(Debug, Clone, Serialize)]
pub struct ThrownAway {
    /// Round and number.
    pub place: String,
    /// Why.
    pub reason: String,
    /// The text.
    pub template: String,
}

/// The candidate that is kept.
#[derive(Debug, Clone, Serialize)]
pub struct Winner {
    /// Where it is stored.
    pub name: String,
    /// Digest of the source.
    pub digest: Digest,
    /// The whole file.
    pub source: String,
}

impl Optimized {
    pub(super) fn new(request: &Request, bench: &Bench) -> Self {
        Optimized {
            prompt: request.name.clone(),
            suite: bench.suite.clone(),
            target: bench.target.clone(),
            metric: bench.metric.clone(),
            with: request.with.clone(),
            seed: request.seed,
            current: None,
            candidates: Vec::new(),
            thrown_away: Vec::new(),
            compared: 0,
            level: 0.95,
            best: None,
            winner: None,
            test: None,
            runs: Vec::new(),
            spent_usd: String::new(),
            ended: None,
        }
    }
}

impl Tried {
    pub(super) fn of(candidate: &Candidate, measured: &Measured) -> Self {
        let (name, digest, run) = (candidate.name.clone(), candidate.digest, measured.run.clone());
        Tried { name, digest, run, mean: measured.mean, n: measured.n, difference: None, interval: None, is_better: false }
    }
}

impl Winner {
    pub(super) fn of(candidate: &Candidate) -> Self {
        Winner { name: candidate.name.clone(), digest: candidate.digest, source: candidate.source.clone() }
    }
}
