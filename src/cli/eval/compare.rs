//! `refit eval compare`: two targets, of one run or of two, sample by sample.

use super::write::Output;
use crate::evals::columns::Columns;
use crate::evals::compare::{Difference, Pairs, Side, changes, compared, correct};
use crate::evals::prepare::suite_of;
use crate::evals::scorers::Scale;
use crate::evals::show::Comparison;
use crate::evals::{Report, Suite};
use crate::store::Store;
use crate::store::runs::{self, RunRecord};
use crate::types::{Code, Failure};
use std::process::ExitCode;

/// A run that is compared.
pub(super) struct Run {
    record: RunRecord,
    columns: Columns,
    /// Its suite, where that can be read.
    suite: Option<Suite>,
    /// The target that was named.
    target: Option<String>,
}

/// Compares two targets, or all targets of two runs that have the same names.
pub(super) fn compare(store: &Store, names: (&str, &str), metric: Option<&str>, output: &Output) -> Result<ExitCode, Failure> {
    output.check()?;
    let (a, b) = (Run::find(store, names.0)?, Run::find(store, names.1)?);
    let comparisons = targets(&a, &b)?.into_iter().map(|(left, right)| comparison((&a, left), (&b, right), metric));
    output.comparisons(&comparisons.collect::<Result<Vec<_>, _>>()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Which targets are compared: those that are named, or those that both have.
fn targets<'r>(a: &'r Run, b: &'r Run) -> Result<Vec<(&'r str, &'r str)>, Failure> {
    let alone = |run: &'r Run| match (&run.target, run.columns.targets.len()) {
        (Some(target), _) => Some(target.as_str()),
        (None, 1) => run.columns.targets.keys().next().map(String::as_str),
        (None, _) => None,
    };
    if let (Some(left), Some(right)) = (alone(a), alone(b)) {
        return Ok(vec![(left, right)]);
    }
    let both: Vec<_> =
        a.columns.targets.keys().filter(|name| b.columns.targets.contains_key(*name)).map(|name| (name.as_str(), name.as_str())).collect();
    if a.target.is_some() || b.target.is_some() || a.record.id == b.record.id || both.is_empty() {
        let run = if alone(a).is_none() { a } else { b };
        return Err(run.unnamed());
    }
    Ok(both)
}

fn comparison((a, left): (&Run, &str), (b, right): (&Run, &str), metric: Option<&str>) -> Result<Comparison, Failure> {
    let (name_a, name_b) = (format!("{}/{left}", a.record.id), format!("{}/{right}", b.record.id));
    let (Some(of_a), Some(of_b)) = (a.columns.targets.get(left), b.columns.targets.get(right)) else { return Err(a.unnamed()) };
    let known: Vec<&str> = a.metrics(left).into_iter().filter(|metric| of_b.metrics.contains_key(*metric)).collect();
    let wanted: Vec<&str> = match metric {
        None => known,
        Some(metric) if known.contains(&metric) => vec![metric],
        Some(metric) => {
            let message = format!("the two do not share a metric \"{metric}\"; they share: {}", known.join(", "));
            return Err(Failure::on(Code::UNKNOWN_NAME, "--metric", message));
        }
    };
    let (side_a, side_b) =
        (Side { name: &name_a, columns: &a.columns, column: of_a }, Side { name: &name_b, columns: &b.columns, column: of_b });
    let pairs = Pairs::between(&a.columns, &b.columns);
    let difference =
        |metric: &&str| Difference { less_is_better: a.has_less_as_better(metric), ..compared(metric, side_a, side_b, &pairs) };
    let mut paired: Vec<_> = wanted.iter().map(difference).collect();
    if paired.iter().all(|one| one.paired.n == 0) {
        return Err(Failure::new(Code::INVALID_VALUE, format!("{name_a} and {name_b} have no sample in common that both answered")));
    }
    correct(&mut paired);
    let main = wanted.first().copied().unwrap_or_default();
    let moved = changes(main, side_a, side_b, (&pairs, usize::MAX));
    let moved = if a.has_less_as_better(main) { moved.turned() } else { moved };
    let warnings = warnings(a, b, pairs.count());
    let (metric, worse, better, changed) = (main.into(), moved.worse, moved.better, moved.samples);
    Ok(Comparison { a: name_a, b: name_b, paired, metric, worse, better, changed, warnings })
}

/// What makes two runs less than comparable, plainly.
fn warnings(a: &Run, b: &Run, shared: usize) -> Vec<String> {
    let (left, right, mut warnings) = (&a.record, &b.record, Vec::new());
    if left.id == right.id {
        return warnings;
    }
    let data = |run: &RunRecord| format!("{}@{} ({})", run.dataset, run.dataset_digest.short(), run.split);
    if (left.dataset_digest, &left.split) != (right.dataset_digest, &right.split) {
        warnings.push(format!(
            "the runs did not measure the same data, {} and {}: the {shared} samples with the same id are compared, and may not say the same",
            data(left),
            data(right)
        ));
    }
    match (left.scorers_digest, right.scorers_digest) {
        (Some(one), Some(other)) if one == other => {}
        (Some(_), Some(_)) => {
            warnings.push("the runs did not have the same scorers: a metric of the same name may mean something else".into());
        }
        _ => warnings.push("nobody knows whether the runs had the same scorers: a program outside of the suite scores".into()),
    }
    let alone = |run: &Run| run.columns.positions().len().saturating_sub(shared);
    if alone(a) + alone(b) > 0 {
        warnings.push(format!("{} samples of the first run and {} of the second are not in the other, and left out", alone(a), alone(b)));
    }
    warnings
}

impl Run {
    /// `RUN/TARGET`, or `RUN`.
    pub(super) fn find(store: &Store, reference: &str) -> Result<Self, Failure> {
        let (run, target) = reference.split_once('/').map_or((reference, None), |(run, target)| (run, Some(target.to_string())));
        let record = runs::get(store.db.as_ref(), run)?;
        let columns = Columns::read(store, &record.id, &|_| None)?;
        let suite = suite_of(store, &record).ok();
        let run = Run { record, columns, suite, target };
        match &run.target {
            Some(target) if !run.columns.targets.contains_key(target) => Err(run.unnamed()),
            _ => Ok(run),
        }
    }

    /// The target that was named, or all of them.
    pub(super) fn sides(&self) -> Vec<Side<'_>> {
        let all = self.columns.targets.iter().filter(|(name, _)| self.target.as_ref().is_none_or(|wanted| wanted == *name));
        all.map(|(name, column)| Side { name, columns: &self.columns, column }).collect()
    }

    /// The metric that the suite's scorers report first.
    pub(super) fn first_metric(&self) -> Option<String> {
        let target = self.sides().first()?.name;
        self.metrics(target).first().map(|metric| (*metric).to_string())
    }

    /// Whether less of a metric is better, as the run's suite has it.
    fn has_less_as_better(&self, metric: &str) -> bool {
        self.suite.as_ref().and_then(|suite| suite.scale(metric)).is_some_and(|scale| matches!(scale, Scale::Less(_)))
    }

    /// The metrics of a target, those first that the suite's scorers report first.
    fn metrics(&self, target: &str) -> Vec<&str> {
        let main = serde_json::from_value::<Report>(self.record.summary.clone()).map(|report| report.main_metrics).unwrap_or_default();
        let mut metrics: Vec<&str> =
            self.columns.targets.get(target).into_iter().flat_map(|column| column.metrics.keys()).map(String::as_str).collect();
        metrics.sort_by_key(|metric| main.iter().position(|known| known == metric).unwrap_or(usize::MAX));
        metrics
    }

    fn unnamed(&self) -> Failure {
        let names: Vec<&str> = self.columns.targets.keys().map(String::as_str).collect();
        let named = self.target.as_ref().map_or_else(|| self.record.id.clone(), |target| format!("{}/{target}", self.record.id));
        let message = format!("\"{named}\" does not name a target of run {}", self.record.id);
        Failure::new(Code::UNKNOWN_NAME, message).with_hint(format!("targets: {}", names.join(", ")))
    }
}
