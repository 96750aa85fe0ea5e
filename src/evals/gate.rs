//! The gate of a suite: its thresholds and demands over the numbers of a run. Routes have a gate of their own (`releases::gate`).

use super::columns::Columns;
use super::compare::{self, Pairs};
use super::demands::{Demand, Demanded, MustPass, Other, What};
use super::estimate::paired_means;
use super::prepare::Plan;
use super::scorers::Scale;
use super::suite::GateCondition;
use crate::releases::conditions::Verdict;
use crate::releases::gate::newest;
use crate::stats::Paired;
use crate::store::routes;
use crate::store::runs::RunRecord;
use crate::store::{Store, StoreError};
use crate::types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Cases that a verdict names.
const NAMED: usize = 20;
const LIVE: &str = "live";

/// What the gate said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Whether every condition and demand was met.
    pub passed: bool,
    /// One per threshold and target.
    pub verdicts: Vec<TargetVerdict>,
    /// One per demand and target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub demands: Vec<Demanded>,
}

/// One condition, for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetVerdict {
    /// Target.
    pub target: String,
    /// The condition, the number found, and whether it was met.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Judges a run's metrics, given by target, and what became of its demands. `None` when the suite has no gate: then nothing was asked
/// and nothing is passed.
pub fn judge(conditions: &[GateCondition], targets: &[(String, Value)], demands: Vec<Demanded>) -> Option<Gate> {
    if conditions.is_empty() && demands.is_empty() {
        return None;
    }
    let mut verdicts = Vec::new();
    for GateCondition { target: wanted, condition } in conditions {
        let meant = targets.iter().filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name));
        verdicts.extend(meant.map(|(name, metrics)| TargetVerdict { target: name.clone(), verdict: condition.check(metrics) }));
    }
    let met = verdicts.iter().all(|one| one.verdict.passed) && demands.iter().all(|one| one.passed);
    Some(Gate { passed: met && !(verdicts.is_empty() && demands.is_empty()), verdicts, demands })
}

/// Everything that demands are judged by.
pub(super) struct Bench<'a> {
    pub(super) store: &'a Store,
    pub(super) run: &'a RunRecord,
    pub(super) plan: &'a Plan,
    pub(super) columns: &'a Columns,
}

impl Bench<'_> {
    /// What became of the plan's demands.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub(super) fn demanded(&self) -> Result<Vec<Demanded>, StoreError> {
        let mut all = Vec::new();
        for Demand { target, what } in &self.plan.suite.demands {
            let meant = self.plan.targets.iter().filter(|one| target.as_ref().is_none_or(|wanted| *wanted == one.name));
            let names: Vec<&str> = meant.map(|one| one.name.as_str()).collect();
            match what {
                What::MustPass(must) => self.must_pass(must, &names, &mut all)?,
                What::NotWorseThan { other, metric, margin } => {
                    for name in names.into_iter().filter(|name| *other != Other::Target((*name).to_string())) {
                        all.push(self.not_worse(name, other, (metric, *margin))?);
                    }
                }
            }
        }
        Ok(all)
    }

    fn must_pass(&self, must: &MustPass, targets: &[&str], all: &mut Vec<Demanded>) -> Result<(), StoreError> {
        let mut positions = Vec::new();
        for (position, sample) in self.plan.samples.iter().enumerate() {
            let sample = sample?;
            if must.has(&sample.id, &sample.metadata) {
                positions.push((position, sample.id));
            }
        }
        let repeats = self.plan.suite.repeats as u32;
        for name in targets {
            let column = self.columns.targets.get(*name);
            let passed = |at: usize| column.and_then(|column| column.repeats.get(at)).is_some_and(|case| case.passed >= repeats);
            let failed: Vec<_> = positions.iter().filter(|(at, _)| !passed(*at)).map(|(_, id)| id.clone()).collect();
            let reason = match (positions.len(), failed.len()) {
                (0, _) => format!("must_pass {}: no sample of the split is one of them", must.shown()),
                (count, 0) => format!("must_pass {}: all {count} pass", must.shown()),
                (count, missed) => {
                    let shown: Vec<_> = failed.iter().take(5).map(String::as_str).collect();
                    let more = if missed > 5 { ", …" } else { "" };
                    format!("must_pass {}: {missed} of {count} do not pass: {}{more}", must.shown(), shown.join(", "))
                }
            };
            let passed = failed.is_empty() && !positions.is_empty();
            let cases = failed.into_iter().take(NAMED).collect();
            all.push(Demanded { target: (*name).to_string(), demand: "must_pass".into(), passed, reason, paired: None, cases });
        }
        Ok(())
    }

    fn not_worse(&self, name: &str, other: &Other, (metric, margin): (&str, f64)) -> Result<Demanded, StoreError> {
        let demanded = |passed: bool, reason: String, paired| {
            let (target, demand, cases) = (name.to_string(), "not_worse_than".to_string(), Vec::new());
            Demanded { target, demand, passed, reason, paired, cases }
        };
        let own = self.columns.targets.get(name);
        let found = match other {
            Other::Target(other) => Ok((other.clone(), None)),
            Other::Route(route) => self.live(route, name)?,
        };
        let (shown, theirs) = match found {
            Ok(found) => found,
            Err(Missing::IsLive(route)) => return Ok(demanded(true, format!("{metric}: it is what is live on {route}"), None)),
            Err(Missing::Why(why)) => return Ok(demanded(false, format!("{metric} not worse than live: {why}"), None)),
        };
        let (their_columns, their_target) = match &theirs {
            Some((columns, target)) => (columns, target.as_str()),
            None => (self.columns, shown.as_str()),
        };
        let Some((own, theirs)) = own.zip(their_columns.targets.get(their_target)) else {
            return Ok(demanded(false, format!("{metric} not worse than {shown}: it was not measured"), None));
        };
        let pairs = Pairs::between(their_columns, self.columns);
        let values = compare::values(metric, theirs, own, &pairs);
        let paired = paired_means(&values, values.groups(their_columns, self.columns).as_deref());
        let (within, decided) = within_margin(&paired, self.plan.suite.scale(metric), margin);
        let passed = paired.n > 1 && within;
        let reason = format!("{metric} {:+.4} against {shown}, interval {decided} ({} pairs)", paired.delta, paired.n);
        Ok(demanded(passed, reason, Some(paired)))
    }

    /// What is live on a route: its name, and its cases, where they are those of another run.
    fn live(&self, route: &str, name: &str) -> Result<Result<Live, Missing>, StoreError> {
        let db = self.store.db.as_ref();
        let why = |why: String| Ok(Err(Missing::Why(why)));
        if routes::find(db, route)?.is_none() {
            return why(format!("there is no route \"{route}\""));
        }
        let Some(live) = routes::stages(db, route)?.into_iter().find(|stage| stage.stage == LIVE).map(|stage| stage.release) else {
            return why(format!("the route \"{route}\" has no live release yet; take the demand out until it has one"));
        };
        let release = |name: &str| self.plan.targets.iter().find(|target| target.name == name).map(|target| target.release);
        if release(name) == Some(live) {
            return Ok(Err(Missing::IsLive(route.to_string())));
        }
        if let Some(beside) = self.plan.targets.iter().find(|target| target.release == live) {
            return Ok(Ok((beside.name.clone(), None)));
        }
        let fits = |proof: &routes::Proof| {
            proof.dataset_digest == self.run.dataset_digest.to_string()
                && proof.split == self.run.split
                && proof.scorers_digest.is_some()
                && proof.scorers_digest == self.plan.suite.scorers_digest
        };
        let proofs = routes::proofs(db, Some(&self.run.suite), &live)?.into_iter().filter(fits);
        let Some((proof, outdated)) = newest(db, &live, proofs)? else {
            return why(not_measured(&live, &self.run.suite));
        };
        if let Some(reason) = outdated {
            return why(format!("{}: {reason}", not_measured(&live, &self.run.suite)));
        }
        let columns = Columns::read(self.store, &proof.run, &|_| None)?;
        Ok(Ok((format!("{} of {}", proof.target, proof.run), Some((columns, proof.target)))))
    }
}

/// Whether the worse end of the interval is within the margin, and how that reads. Of what less is better the upper end is the worse.
fn within_margin(paired: &Paired, scale: Option<Scale>, margin: f64) -> (bool, String) {
    let [low, high] = paired.ci95;
    if matches!(scale, Some(Scale::Less(_))) {
        let within = high <= margin;
        return (within, format!("up to {high:.4} {} {margin}", if within { "<=" } else { ">" }));
    }
    let within = low >= -margin;
    (within, format!("from {low:.4} {} {}", if within { ">=" } else { "<" }, 0.0 - margin))
}

/// What is compared with: its name, and its cases and target, where these are another run's.
type Live = (String, Option<(Columns, String)>);

/// Why there is nothing to compare with.
enum Missing {
    /// The target itself is live.
    IsLive(String),
    Why(String),
}

fn not_measured(live: &Digest, suite: &str) -> String {
    format!(
        "no finished run of suite \"{suite}\" measured the live release {} on these samples with these scorers; make it a target of the suite",
        live.short()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_for_their_target_or_for_all() {
        let metrics = |mean: f64| json!({"exact_match": {"mean": mean, "standard_error": 0.1, "ci95": [mean - 0.2, mean + 0.2]}});
        let targets = [("base".to_string(), metrics(0.1)), ("best".to_string(), metrics(0.6))];
        let gate = |target: Option<&str>, text: &str| {
            let condition = GateCondition { target: target.map(String::from), condition: text.parse().expect("a condition") };
            judge(&[condition], &targets, Vec::new()).expect("judged").passed
        };
        assert!(gate(Some("best"), "exact_match>=0.6") && !gate(None, "exact_match>=0.6") && gate(None, "exact_match>=0.1"));
        assert!(!gate(Some("best"), "exact_match:ci_low>=0.5") && gate(Some("best"), "exact_match:ci_low>=0.39"));
        assert!(!gate(Some("none"), "exact_match>=0"), "nothing measured is nothing passed");
        assert_eq!(judge(&[], &targets, Vec::new()), None);
    }

    #[test]
    fn where_less_is_better_slower_is_worse() {
        let (quick, slow) = ([100.0, 110.0, 105.0, 95.0], [200.0, 215.0, 204.0, 196.0]);
        let slower = crate::stats::paired(&quick, &slow);
        let faster = crate::stats::paired(&slow, &quick);
        let (less, more) = (Some(Scale::Less("ms")), Some(Scale::Share));
        assert!(!within_margin(&slower, less, 20.0).0 && within_margin(&faster, less, 20.0).0);
        assert!(within_margin(&slower, more, 20.0).0 && !within_margin(&faster, more, 20.0).0);
        assert!(within_margin(&slower, less, 20.0).1.starts_with("up to 1"));
    }
}
