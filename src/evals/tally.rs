//! The line under a run that goes on: how far it is, the first metric with its standard error so far, and the time that is left.

use super::prepare::Plan;
use crate::store::runs::CaseRecord;
use crate::types::traits::Progress;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often somebody who watches is told.
const EVERY: Duration = Duration::from_millis(100);

/// Running numbers.
pub(super) struct Tally {
    done: u64,
    total: u64,
    metric: String,
    means: HashMap<String, Running>,
    last: String,
    errors: u64,
    cached: u64,
    told: Option<Instant>,
}

/// Mean and spread of values as they come.
///
/// Source: Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products", Technometrics 4 (1962).
#[derive(Default)]
struct Running {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Running {
    fn add(&mut self, value: f64) {
        self.n += 1.0;
        let before = value - self.mean;
        self.mean += before / self.n;
        self.squares += before * (value - self.mean);
    }

    fn standard_error(&self) -> f64 {
        if self.n < 2.0 { 0.0 } else { (self.squares / (self.n - 1.0) / self.n).sqrt() }
    }
}

impl Tally {
    /// Begins with what was answered before.
    pub(super) fn new(plan: &Plan, answered: usize) -> Self {
        let metric = plan.suite.metrics().into_iter().next().unwrap_or_default();
        let (means, last) = (HashMap::new(), String::new());
        Tally { done: answered as u64, total: plan.cases() as u64, metric, means, last, errors: 0, cached: 0, told: None }
    }

    /// Counts a case.
    pub(super) fn add(&mut self, case: &CaseRecord) {
        self.done += 1;
        self.cached += u64::from(case.cached);
        self.errors += u64::from(case.error.is_some());
        if self.last != case.target {
            self.last.clone_from(&case.target);
        }
        let Some(value) = case.scores[&self.metric].as_f64() else { return };
        match self.means.get_mut(&case.target) {
            Some(running) => running.add(value),
            None => self.means.entry(case.target.clone()).or_default().add(value),
        }
    }

    /// Tells whoever watches, but not for every case.
    pub(super) fn tell(&mut self, progress: &dyn Progress) {
        let now = Instant::now();
        if self.told.is_none_or(|told| now.duration_since(told) >= EVERY) || self.done == self.total {
            self.told = Some(now);
            progress.update(self.done, self.total, &self.note());
        }
    }

    fn note(&self) -> String {
        let mut note = String::new();
        if let Some(running) = self.means.get(&self.last) {
            note = format!("{} {} {:.3} ± {:.3}", self.last, self.metric, running.mean, running.standard_error());
        }
        for (count, what) in [(self.errors, "errors"), (self.cached, "cached")] {
            if count > 0 {
                note.push_str(&format!(" · {count} {what}"));
            }
        }
        note
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_are_those_of_all_values() {
        let mut running = Running::default();
        [1.0, 2.0, 3.0, 4.0].into_iter().for_each(|value| running.add(value));
        // s² = 5/3, standard error √(5/12).
        assert!((running.mean - 2.5).abs() < 1e-12 && (running.standard_error() - (5.0f64 / 12.0).sqrt()).abs() < 1e-12);
    }
}
