//! The order in which cases are asked, and which of them have an answer already.

use super::calls::provider_of;
use super::prepare::{Plan, PlanTarget};
use super::scorers::seam::SCORER_ERROR;
use crate::store::{Store, StoreError, cases};
use std::collections::{HashMap, HashSet};

/// One case of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Target, by its place in the plan.
    pub(super) target: usize,
    /// Sample, by its place in the split.
    pub(super) position: usize,
    /// Repeat, from 0.
    pub(super) repeat: usize,
}

/// All cases of a provider's targets. A hosted one is asked sample by sample, so that a run which ends early has whole pairs to compare;
/// a local one target by target, because it keeps the beginning of a prompt in memory.
pub(super) fn places<'p>(plan: &'p Plan, provider: &str) -> Box<dyn Iterator<Item = Place> + Send + 'p> {
    let of = |target: &PlanTarget| provider_of(&target.manifest.model) == provider;
    let targets: Vec<usize> = (0..plan.targets.len()).filter(|at| of(&plan.targets[*at])).collect();
    let (samples, repeats) = (plan.samples.len(), plan.suite.repeats);
    let repeated = move |(target, position)| (0..repeats).map(move |repeat| Place { target, position, repeat });
    if provider == "local" {
        return Box::new(
            targets.into_iter().flat_map(move |target| (0..samples).map(move |position| (target, position))).flat_map(repeated),
        );
    }
    let of_sample = move |position| targets.clone().into_iter().map(move |target| (target, position));
    Box::new((0..samples).flat_map(of_sample).flat_map(repeated))
}

/// The providers of a plan, each once.
pub(super) fn providers(plan: &Plan) -> Vec<&str> {
    let mut all = Vec::new();
    for provider in plan.targets.iter().map(|target| provider_of(&target.manifest.model)) {
        if !all.contains(&provider) {
            all.push(provider);
        }
    }
    all
}

/// Cases that have an answer.
pub(super) struct Answered {
    /// By target, position and repeat.
    cases: Vec<Vec<bool>>,
    repeats: usize,
    count: usize,
    /// Those whose answer is stored and whose scorers failed.
    unscored: HashSet<Place>,
}

impl Answered {
    /// None of a plan's.
    pub(super) fn new(plan: &Plan) -> Self {
        Answered { cases: vec![Vec::new(); plan.targets.len()], repeats: plan.suite.repeats, count: 0, unscored: HashSet::new() }
    }

    /// Those that a stored run has.
    pub(super) fn of(store: &Store, run: &str, plan: &Plan) -> Result<Self, StoreError> {
        let mut answered = Answered::new(plan);
        let names: HashMap<&str, usize> = plan.targets.iter().enumerate().map(|(at, target)| (target.name.as_str(), at)).collect();
        cases::each_outcome(store.db.as_ref(), run, &mut |(target, position, repeat), error| {
            let Some(target) = names.get(target).filter(|_| repeat < answered.repeats) else { return };
            let place = Place { target: *target, position, repeat };
            match error {
                None => answered.add(place),
                Some(error) if error.starts_with(SCORER_ERROR) => drop(answered.unscored.insert(place)),
                Some(_) => {}
            }
        })?;
        Ok(answered)
    }

    fn add(&mut self, place: Place) {
        let (cases, at) = (&mut self.cases[place.target], place.position * self.repeats + place.repeat);
        if cases.len() <= at {
            cases.resize(at + 1, false);
        }
        self.count += usize::from(!std::mem::replace(&mut cases[at], true));
    }

    pub(super) fn has(&self, place: Place) -> bool {
        self.cases[place.target].get(place.position * self.repeats + place.repeat).copied().unwrap_or(false)
    }

    /// Whether its answer is stored and only its scores are missing.
    pub(super) fn is_unscored(&self, place: Place) -> bool {
        self.unscored.contains(&place)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }
}
