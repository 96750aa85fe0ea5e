//! The gate of a route: evaluated against a stored run of the route's suite that measured exactly the release's digest. Nothing is
//! measured here, and numbers that a caller brings along are not accepted.

use super::ReleaseError;
use super::conditions::{self, Condition, Verdict};
use crate::store::routes::{Proof, RouteRecord, proofs};
use crate::store::{Db, StoreError, cases, releases, snapshots};
use crate::types::Digest;
use crate::types::time::rfc3339;
use serde::{Deserialize, Serialize};

/// What every release must prove before it moves along a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// All must be met; never empty.
    pub conditions: Vec<Condition>,
    /// Only runs on this split count; `null` takes any.
    #[serde(default)]
    pub split: Option<String>,
    /// Only runs on the dataset version with this digest count; `null` takes any. Pinned, a run on easier data proves nothing.
    #[serde(default)]
    pub dataset_digest: Option<Digest>,
    /// Only runs whose scorers have this digest count; `null` takes any. Pinned, a run with laxer scorers of the same names proves nothing.
    #[serde(default)]
    pub scorers_digest: Option<Digest>,
}

/// What the gate said of one release, with the numbers used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether the release may move.
    pub passed: bool,
    /// Suite whose runs count.
    pub suite: String,
    /// Run used: the newest that counts; `null` when there is none.
    pub run: Option<String>,
    /// Target in that run.
    pub target: Option<String>,
    /// Split it was measured on.
    pub split: Option<String>,
    /// Digest of the dataset version it was measured on.
    pub dataset_digest: Option<String>,
    /// One per condition; empty when there is no run.
    pub verdicts: Vec<Verdict>,
    /// Why it was refused, for people; empty when it passed.
    pub reasons: Vec<String>,
}

impl Gate {
    /// Reads the gate of a stored route.
    ///
    /// # Errors
    /// [`ReleaseError::Invalid`] when the row does not hold one.
    pub fn of(route: &RouteRecord) -> Result<Self, ReleaseError> {
        let gate: Gate = serde_json::from_value(route.gate.clone())
            .map_err(|error| ReleaseError::Invalid { field: "gate", message: format!("route \"{}\": gate: {error}", route.name) })?;
        gate.checked()
    }

    /// The gate, when it has a condition: an empty one would let everything pass.
    ///
    /// # Errors
    /// [`ReleaseError::Invalid`] otherwise.
    pub fn checked(self) -> Result<Self, ReleaseError> {
        if self.conditions.is_empty() {
            let message = "a gate needs at least one condition, such as exact_match>=0.5".into();
            return Err(ReleaseError::Invalid { field: "gate", message });
        }
        Ok(self)
    }
}

/// Evaluates the route's gate for a release against its newest run that counts.
///
/// # Errors
/// When the store fails or the route's gate cannot be read; a missed gate is a [`Report`], not an error.
pub fn evaluate(db: &dyn Db, route: &RouteRecord, release: &Digest) -> Result<Report, ReleaseError> {
    let gate = Gate::of(route)?;
    let on_split = |proof: &Proof| gate.split.as_ref().is_none_or(|split| *split == proof.split);
    let on_dataset = |proof: &Proof| gate.dataset_digest.is_none_or(|digest| digest.to_string() == proof.dataset_digest);
    let with_scorers = |proof: &Proof| gate.scorers_digest.is_none_or(|digest| proof.scorers_digest == Some(digest));
    let counts = |proof: &Proof| on_split(proof) && on_dataset(proof) && with_scorers(proof);
    let (proof, outdated) = newest(db, release, proofs(db, Some(&route.suite), release)?.into_iter().filter(counts))?.unzip();
    let mut report = report(&gate, route, proof);
    if let Some(reason) = outdated.flatten() {
        report.passed = false;
        report.reasons.push(reason);
    }
    Ok(report)
}

/// The first of some runs, newest first, that measured the model that answers today; where there is none the first, and why it does not
/// count. A run that was interrupted and ended after a better one hides none.
///
/// # Errors
/// When the database fails.
pub fn newest(db: &dyn Db, release: &Digest, proofs: impl Iterator<Item = Proof>) -> Result<Option<(Proof, Option<String>)>, StoreError> {
    let mut first = None;
    for proof in proofs {
        let Some(reason) = outdated(db, release, &proof)? else { return Ok(Some((proof, None))) };
        first.get_or_insert((proof, Some(reason)));
    }
    Ok(first)
}

/// What a run measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'m> {
    /// `provider/model`, as it was called.
    pub model: &'m str,
    /// The run.
    pub run: &'m str,
    /// The target's name in it.
    pub target: &'m str,
    /// When it began, milliseconds.
    pub began_at: i64,
}

/// As [`of_another_model`], for a run that measured a release.
///
/// # Errors
/// When the database fails.
fn outdated(db: &dyn Db, release: &Digest, proof: &Proof) -> Result<Option<String>, StoreError> {
    let Some(release) = releases::find(db, release)? else { return Ok(None) };
    let Some(model) = release.manifest["model"].as_str() else { return Ok(None) };
    of_another_model(db, Measured { model, run: &proof.run, target: &proof.target, began_at: proof.began_at })
}

/// Why what a run measured says nothing any more: under the name of its model the provider answers with another one since. What the
/// answers of the run say decides, where that was written down: a run that saw the change, and only the new model, counts.
///
/// # Errors
/// When the database fails.
pub fn of_another_model(db: &dyn Db, measured: Measured<'_>) -> Result<Option<String>, StoreError> {
    let Measured { model: called, run, target, began_at } = measured;
    let Some((provider, model)) = called.split_once('/') else { return Ok(None) };
    let answered = snapshots::of(db, (provider, model), snapshots::MODEL)?;
    let [.., before, now] = answered.as_slice() else { return Ok(None) };
    let told = || format!("{called} answers as \"{}\" since {}, before as \"{}\"", now.name, rfc3339(now.first_seen), before.name);
    let of_the_run = cases::answered_as(db, run, target)?;
    let is_earlier = now.first_seen >= began_at;
    // An answer that was given again may be older than its run.
    let is_another = |(name, cached): &(Option<String>, bool)| (is_earlier || *cached) && name.as_ref() != Some(&now.name);
    let is_outdated = if of_the_run.is_empty() { is_earlier } else { of_the_run.iter().any(is_another) };
    Ok(is_outdated.then(|| format!("run {run} is unverified: {}; measure the release again", told())))
}

fn report(gate: &Gate, route: &RouteRecord, proof: Option<Proof>) -> Report {
    let suite = route.suite.clone();
    let Some(proof) = proof else {
        let on_split = gate.split.as_ref().map(|split| format!(" on split \"{split}\"")).unwrap_or_default();
        let on_dataset = gate.dataset_digest.map(|digest| format!(" on dataset {}", digest.short())).unwrap_or_default();
        let with_scorers = gate.scorers_digest.map(|digest| format!(" with scorers {}", digest.short())).unwrap_or_default();
        let reasons = vec![format!("no finished run of suite \"{suite}\"{on_split}{on_dataset}{with_scorers} measured this digest")];
        return Report { passed: false, suite, run: None, target: None, split: None, dataset_digest: None, verdicts: Vec::new(), reasons };
    };
    let verdicts = conditions::check(&gate.conditions, &proof.metrics);
    let reasons: Vec<_> = verdicts.iter().filter(|verdict| !verdict.passed).map(|verdict| verdict.reason.clone()).collect();
    Report {
        passed: reasons.is_empty(),
        suite,
        run: Some(proof.run),
        target: Some(proof.target),
        split: Some(proof.split),
        dataset_digest: Some(proof.dataset_digest),
        verdicts,
        reasons,
    }
}
