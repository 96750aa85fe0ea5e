//! What proves a version of a prompt: the newest run of its suite that measured the version as it is called. Every target of that run
//! that did must pass the suite's gate.

use super::demands::Demanded;
use super::prepare::suite_of;
use super::suite::Target;
use crate::prompts::Prompt;
use crate::releases::conditions::Bound;
use crate::releases::gate::{Measured, of_another_model};
use crate::releases::{Condition, Manifest, Measure, Verdict};
use crate::store::prompts::PromptVersion;
use crate::store::runs::{self, RunRecord, RunTarget};
use crate::store::{Store, adapters};
use crate::types::{Digest, Failure};
use serde_json::{Value, json};
use std::path::Path;

/// What proves a version, or why nothing does.
pub(super) type Proof = Result<Value, Vec<String>>;

/// A version, and what a call of it would send.
struct Judged<'v> {
    version: &'v PromptVersion,
    prompt: &'v Prompt,
    /// The model, where the prompt names one; a route may lead anywhere.
    model: Option<&'v str>,
    /// The adapter that the prompt's model names; an error where it names one that is not there.
    adapter: Result<Option<Digest>, String>,
}

/// The newest run that counts, or why none proves the version.
pub(super) fn prove(store: &Store, suite: &str, version: &PromptVersion, prompt: &Prompt) -> Result<Proof, Failure> {
    let judged = Judged::of(store, version, prompt);
    let mut reasons = Vec::new();
    let found = runs::measuring(store.db.as_ref(), suite, &version.digest)?;
    for of_run in found.chunk_by(|(one, _), (other, _)| one.id == other.id) {
        let Some((run, _)) = of_run.first() else { continue };
        let (mut judgements, mut counts) = (Vec::new(), true);
        for (_, target) in of_run {
            match judged.by(store, run, target) {
                Ok(verdicts) => judgements.push((target, verdicts)),
                Err(Uncounted { reason, whole_run }) => {
                    counts &= !whole_run;
                    if !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                }
            }
        }
        // The newest run that counts decides: an older one that was better proves nothing about today's data.
        if counts && !judgements.is_empty() {
            return Ok(decided(suite, run, &judgements));
        }
    }
    if reasons.is_empty() {
        reasons.push(format!("no finished run of suite \"{suite}\" measured {}@{}", version.prompt, version.version));
    }
    Ok(Err(reasons))
}

/// Why a target of a run says nothing of the version.
struct Uncounted {
    reason: String,
    /// Nor do the others: the target measured the version, and what it measured is not what would answer today.
    whole_run: bool,
}

impl From<String> for Uncounted {
    fn from(reason: String) -> Self {
        Uncounted { reason, whole_run: false }
    }
}

/// What a run that counts says: one target that misses is enough to refuse.
fn decided(suite: &str, run: &RunRecord, judgements: &[(&RunTarget, Vec<Verdict>)]) -> Proof {
    let missed: Vec<_> = judgements
        .iter()
        .flat_map(|(target, verdicts)| verdicts.iter().map(move |verdict| (target, verdict)))
        .filter(|(_, verdict)| !verdict.passed)
        .map(|(target, verdict)| format!("run {}, target \"{}\": {}", run.id, target.target, verdict.reason))
        .collect();
    if !missed.is_empty() {
        return Err(missed);
    }
    let targets: Vec<_> = judgements.iter().map(|(target, _)| target.target.as_str()).collect();
    let verdicts: Vec<_> = judgements.iter().flat_map(|(_, verdicts)| verdicts).collect();
    Ok(json!({"suite": suite, "run": run.id, "targets": targets, "split": run.split, "verdicts": verdicts}))
}

impl<'v> Judged<'v> {
    fn of(store: &Store, version: &'v PromptVersion, prompt: &'v Prompt) -> Self {
        let named = prompt.front.model.as_deref().filter(|model| model.contains('/'));
        let with_adapter = named.and_then(|named| Some((named, named.strip_prefix("local/")?.split_once(':')?)));
        let Some((named, (local, adapter))) = with_adapter else {
            return Judged { version, prompt, model: named, adapter: Ok(None) };
        };
        let model = named.split_once(':').map(|(model, _)| model);
        let adapter = adapters::get(store.db.as_ref(), local, adapter).map(|found| Some(found.digest));
        Judged { version, prompt, model, adapter: adapter.map_err(|error| error.to_string()) }
    }

    /// The verdicts of the suite's own gate, as it stood in the run; an error says why the run does not count.
    fn by(&self, store: &Store, run: &RunRecord, target: &RunTarget) -> Result<Vec<Verdict>, Uncounted> {
        let unreadable = |what: &str| format!("the {what} of run {} cannot be read", run.id);
        let manifest: Manifest = serde_json::from_value(target.manifest.clone()).map_err(|_| unreadable("manifest"))?;
        self.was_sent(run, target, &manifest)?;
        let measured = Measured { model: &manifest.model, run: &run.id, target: &target.target, began_at: run.created_at };
        if let Some(reason) = of_another_model(store.db.as_ref(), measured).map_err(|error| error.to_string())? {
            return Err(Uncounted { reason, whole_run: true });
        }
        let suite = suite_of(store, run).map_err(|_| unreadable("suite"))?;
        let split = suite.split.clone().unwrap_or_else(|| "all".into());
        if run.split != split {
            return Err(format!("run {} was on split \"{}\", and the suite's is \"{split}\"", run.id, run.split).into());
        }
        let asked: Vec<_> = run.config["targets"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(left) = suite.targets.iter().find(|known| !asked.contains(&known.name.as_str()) && self.may_be_of(known)) {
            return Err(format!("run {} left target \"{}\" out, which measures the prompt, too", run.id, left.name).into());
        }
        let conditions = suite.gate.iter().filter(|condition| condition.target.as_ref().is_none_or(|named| *named == target.target));
        let thresholds = conditions.map(|condition| condition.condition.check(&target.metrics));
        let verdicts: Vec<_> = thresholds.chain(demanded(run, &target.target)).collect();
        if verdicts.is_empty() {
            return Err(format!(
                "the gate of suite \"{}\" asks nothing of target \"{}\"; add a condition to `gate`",
                suite.name, target.target
            )
            .into());
        }
        Ok(verdicts)
    }

    /// Whether a target asked what a call of the version asks: the same prompt, model, adapter and parameters.
    fn was_sent(&self, run: &RunRecord, target: &RunTarget, manifest: &Manifest) -> Result<(), String> {
        let (run, target) = (&run.id, &target.target);
        if manifest.prompt.as_ref().is_none_or(|sent| sent.digest != self.version.digest || sent.name != self.version.prompt) {
            return Err(format!("run {run} measured another prompt with the same text"));
        }
        if let (Some(model), Some(named)) = (self.model, &self.prompt.front.model) {
            let differs =
                |what: &str| format!("run {run} measured the prompt on {what}, and the prompt names {named} (target \"{target}\")");
            if model != manifest.model {
                return Err(differs(&manifest.model));
            }
            if *self.adapter.as_ref().map_err(Clone::clone)? != manifest.adapter {
                return Err(differs(
                    &manifest.adapter.map_or(format!("{model} without an adapter"), |digest| format!("{model} with adapter {digest}")),
                ));
            }
        }
        let own = &self.prompt.front.config;
        let other = manifest.parameters.iter().find(|(name, value)| own.get(*name) != Some(value)).map(|(name, _)| name);
        let other = other.or_else(|| own.keys().find(|name| !manifest.parameters.contains_key(*name)));
        other.map_or(Ok(()), |name| {
            Err(format!(
                "run {run} measured the prompt with another \"{name}\" than its own config has (target \"{target}\"); put parameters into the \
                 prompt's config instead of the suite"
            ))
        })
    }

    /// Whether a target of a suite may measure this version, as far as its reference says.
    fn may_be_of(&self, target: &Target) -> bool {
        let Some(reference) = &target.prompt else { return false };
        if let Some(file) = reference.strip_suffix(".prompt") {
            return Path::new(file).file_name().is_some_and(|name| name.to_string_lossy() == self.version.prompt.as_str());
        }
        let (name, selector) = reference.split_once('@').map_or((reference.as_str(), None), |(name, word)| (name, Some(word)));
        if let Ok(digest) = selector.unwrap_or(name).parse::<Digest>() {
            return digest == self.version.digest;
        }
        name == self.version.prompt
            && selector.and_then(|word| word.parse::<i64>().ok()).is_none_or(|number| number == self.version.version)
    }
}

/// What became of the demands of a run's gate on a target, as thresholds of one.
fn demanded(run: &RunRecord, target: &str) -> Vec<Verdict> {
    let all: Vec<Demanded> = serde_json::from_value(run.summary["gate"]["demands"].clone()).unwrap_or_default();
    let verdict = |demand: Demanded| Verdict {
        condition: Condition { metric: demand.demand, on: Measure::Mean, bound: Bound::AtLeast(1.0) },
        value: Some(f64::from(u8::from(demand.passed))),
        passed: demand.passed,
        reason: demand.reason,
    };
    all.into_iter().filter(|demand| demand.target == target).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::adapters::NewAdapter;

    const SOURCE: &str = "---\nmodel: local/m:ann\n---\n{{message}}";

    #[test]
    fn a_prompt_that_names_an_adapter_is_proven_by_runs_with_that_adapter() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path()).expect("opens");
        let prompt = Prompt::parse("p", SOURCE).expect("parses");
        let (author, message) = (String::new(), String::new());
        let version = PromptVersion {
            prompt: "p".into(),
            version: 1,
            digest: prompt.digest,
            source: SOURCE.into(),
            author,
            message,
            created_at: 0,
            parent: None,
        };
        let (ann, bob) = (Digest::of("ann"), Digest::of("bob"));
        let sent = |adapter: Option<Digest>| {
            let manifest = json!({"model": "local/m", "model_digest": null, "adapter": adapter, "prompt": {"name": "p", "digest": prompt.digest},
                "parameters": {}});
            let manifest: Manifest = serde_json::from_value(manifest.clone()).expect("a manifest");
            let target = RunTarget { target: "t".into(), release: ann, manifest: Value::Null, metrics: Value::Null };
            Judged::of(&store, &version, &prompt).was_sent(&run(), &target, &manifest)
        };
        assert!(sent(Some(ann)).is_err_and(|reason| reason.contains("ann")), "it is not stored");
        let new = NewAdapter {
            model: "m".into(),
            name: "ann".into(),
            digest: ann,
            model_digest: ann,
            weights: ann,
            config: Value::Null,
            provenance: Value::Null,
        };
        adapters::insert(store.db.as_ref(), &new).expect("stored");
        assert_eq!(sent(Some(ann)), Ok(()));
        assert!(sent(None).is_err_and(|reason| reason.contains("without an adapter")));
        assert!(sent(Some(bob)).is_err_and(|reason| reason.contains("with adapter")));
    }

    fn run() -> RunRecord {
        let (suite, dataset, split, status) = (String::new(), String::new(), String::new(), runs::FINISHED.to_string());
        let (suite_digest, dataset_digest) = (Digest::of("s"), Digest::of("d"));
        let (config, summary, id) = (Value::Null, Value::Null, "run_1".to_string());
        let (scorers_digest, created_at, finished_at) = (None, 0, None);
        RunRecord {
            id,
            suite,
            suite_digest,
            scorers_digest,
            dataset,
            dataset_digest,
            split,
            status,
            config,
            summary,
            created_at,
            finished_at,
        }
    }
}
