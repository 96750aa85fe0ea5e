//! The cases of a run as columns of numbers: one pass over the stored rows, and a few words for each sample afterwards, however long the
//! answers are. Everything that a report computes starts here.

use crate::store::cases::each_case;
use crate::store::runs::CaseRecord;
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, HashMap};

/// The cases of a run.
#[derive(Debug, Default)]
pub struct Columns {
    /// Ids of the samples, in the order of the split.
    pub samples: Vec<Box<str>>,
    /// The group of each sample, numbered; all the same where there are no groups.
    pub groups: Vec<u32>,
    /// Whether the samples come in groups.
    pub is_grouped: bool,
    /// By target.
    pub targets: BTreeMap<String, Column>,
    names: HashMap<String, u32>,
}

/// The cases of a target.
#[derive(Debug, Default)]
pub struct Column {
    /// Sums over the repeats of each sample, by metric.
    pub metrics: BTreeMap<String, Vec<Sum>>,
    /// Repeats of each sample that were answered, and those of them with full marks.
    pub repeats: Vec<Repeats>,
    /// Cases with an answer.
    pub answered: usize,
    /// Cases that ended in an error.
    pub errors: usize,
    /// Cases whose answer was given before.
    pub cached: usize,
    /// Tokens that calls read and wrote; answers that were given before cost none.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// What the calls cost, as far as it is known, in micro-dollars.
    pub cost_micro_usd: i64,
    /// Calls of which nobody knows what they cost.
    pub unpriced: usize,
    /// What the scorers' own calls cost, as far as it is known, in micro-dollars.
    pub scoring_cost_micro_usd: i64,
    /// Cases of which nobody knows what scoring them cost.
    pub scoring_unpriced: usize,
    /// Milliseconds of every call that was made and answered.
    pub latency_ms: Vec<f64>,
}

/// Values of a sample's repeats, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    sum: f64,
    count: u32,
}

/// How the repeats of a sample went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeats {
    /// With an answer.
    pub answered: u32,
    /// Of which somebody says pass or fail.
    pub judged: u32,
    /// With full marks.
    pub passed: u32,
    /// That ended in an error.
    pub errors: u32,
}

impl Columns {
    /// Reads the cases of a run. `verdict` says of a case whether it passes; none where nobody says.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn read(store: &Store, run: &str, verdict: &dyn Fn(&CaseRecord) -> Option<bool>) -> Result<Self, StoreError> {
        let mut columns = Columns::default();
        each_case::<StoreError>(store.db.as_ref(), run, &mut |case| {
            columns.add(&case, verdict(&case));
            Ok(())
        })?;
        Ok(columns)
    }

    /// The same of cases that are in memory.
    pub fn of<'c>(cases: impl IntoIterator<Item = &'c CaseRecord>) -> Self {
        let mut columns = Columns::default();
        cases.into_iter().for_each(|case| columns.add(case, None));
        columns
    }

    fn add(&mut self, case: &CaseRecord, verdict: Option<bool>) {
        let at = case.position;
        if self.samples.len() <= at {
            self.samples.resize(at + 1, Box::default());
            self.groups.resize(at + 1, 0);
        }
        if self.samples[at].is_empty() {
            self.samples[at] = case.sample.as_str().into();
        }
        if let Some(group) = &case.group {
            self.is_grouped = true;
            let next = self.names.len() as u32 + 1;
            self.groups[at] = *self.names.entry(group.clone()).or_insert(next);
        }
        if !self.targets.contains_key(&case.target) {
            self.targets.insert(case.target.clone(), Column::default());
        }
        if let Some(column) = self.targets.get_mut(&case.target) {
            column.add(case, verdict);
        }
    }

    /// The place of a sample in the split.
    pub fn positions(&self) -> HashMap<&str, usize> {
        self.samples.iter().enumerate().filter(|(_, id)| !id.is_empty()).map(|(at, id)| (id.as_ref(), at)).collect()
    }
}

impl Column {
    fn add(&mut self, case: &CaseRecord, verdict: Option<bool>) {
        let at = case.position;
        // A case that was given its answer at last may have cost something before.
        self.cost_micro_usd = self.cost_micro_usd.saturating_add(case.cost_micro_usd.unwrap_or(0));
        self.scoring_cost_micro_usd = self.scoring_cost_micro_usd.saturating_add(case.scoring_cost_micro_usd.unwrap_or(0));
        self.scoring_unpriced += usize::from(case.scoring_cost_micro_usd.is_none());
        if self.repeats.len() <= at {
            self.repeats.resize(at + 1, Repeats::default());
        }
        if case.cached {
            self.cached += 1;
        } else {
            self.input_tokens += case.input_tokens;
            self.output_tokens += case.output_tokens;
            self.unpriced += usize::from(case.cost_micro_usd.is_none() && case.error.is_none());
        }
        if case.error.is_some() {
            self.errors += 1;
            self.repeats[at].errors += 1;
            return;
        }
        self.answered += 1;
        self.repeats[at].answered += 1;
        self.repeats[at].judged += u32::from(verdict.is_some());
        self.repeats[at].passed += u32::from(verdict == Some(true));
        if !case.cached {
            self.latency_ms.push(case.latency_ms);
        }
        for (metric, value) in case.scores.as_object().into_iter().flatten() {
            // A scorer that had no value says why in the case's notes.
            let Some(value) = value.as_f64() else { continue };
            if !self.metrics.contains_key(metric) {
                self.metrics.insert(metric.clone(), Vec::new());
            }
            let Some(sums) = self.metrics.get_mut(metric) else { continue };
            if sums.len() <= at {
                sums.resize(at + 1, Sum::default());
            }
            sums[at].sum += value;
            sums[at].count += 1;
        }
    }

    /// The mean over the repeats of the sample at a place; none where it has no value.
    pub fn mean(&self, metric: &str, position: usize) -> Option<f64> {
        let sum = self.metrics.get(metric)?.get(position)?;
        (sum.count > 0).then(|| sum.sum / f64::from(sum.count))
    }

    /// The means of all samples that have a value, with the group of each.
    pub fn means(&self, metric: &str, groups: &[u32]) -> (Vec<f64>, Vec<u32>) {
        let count = self.metrics.get(metric).map_or(0, Vec::len);
        (0..count).filter_map(|at| Some((self.mean(metric, at)?, groups.get(at).copied().unwrap_or(0)))).unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn case(position: usize, repeat: usize, value: Option<f64>) -> CaseRecord {
        CaseRecord {
            target: "t".into(),
            sample: format!("s{position}"),
            position,
            repeat,
            scores: value.map_or(json!({}), |value| json!({"m": value})),
            error: value.is_none().then(|| "broken".into()),
            group: Some(format!("g{}", position % 2)),
            input_tokens: 3,
            cost_micro_usd: Some(2),
            latency_ms: 5.0,
            ..CaseRecord::default()
        }
    }

    #[test]
    fn repeats_are_averaged_and_errors_are_neither_right_nor_wrong() {
        let cases =
            [case(0, 0, Some(1.0)), case(0, 1, Some(0.0)), case(1, 0, None), case(1, 1, Some(1.0)), case(2, 0, None), case(2, 1, None)];
        let columns = Columns::of(&cases);
        let column = &columns.targets["t"];
        assert_eq!(column.means("m", &columns.groups), (vec![0.5, 1.0], vec![1, 2]));
        assert_eq!((column.answered, column.errors, column.latency_ms.len()), (3, 3, 3));
        assert_eq!(column.repeats[0], Repeats { answered: 2, judged: 0, passed: 0, errors: 0 });
        assert_eq!((column.mean("m", 2), column.mean("n", 0)), (None, None));
        assert!(columns.is_grouped && columns.groups == [1, 2, 1]);
    }

    #[test]
    fn what_was_given_before_costs_nothing_and_has_no_latency() {
        let cached = CaseRecord { cached: true, cost_micro_usd: Some(0), ..case(0, 0, Some(1.0)) };
        let columns = Columns::of(&[cached, case(1, 0, Some(1.0))]);
        let column = &columns.targets["t"];
        assert_eq!((column.cached, column.input_tokens, column.cost_micro_usd, column.latency_ms.len()), (1, 3, 2, 1));
    }
}
