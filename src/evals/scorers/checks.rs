//! `checks`: what a sample itself demands. Its `metadata.checks` is a scorer as a suite would have it, or a list of them, all of which
//! must hold; of a sample without any it says nothing. Option `at`: a JSON pointer to another place (`/metadata/checks` without it).
//! Each sample's scorers are made once. They look at their main metric; what they add up over a run is not told.

use super::{Author, Case, Options, Scale, Scored, Scorer, Services, build_for};
use crate::types::Digest;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct Checks {
    name: String,
    at: String,
    kept: Mutex<HashMap<Digest, Arc<dyn Scorer>>>,
}

/// Scorers that are kept: of more different ones the memory begins anew.
const MAX_KEPT: usize = 4_096;
const AT: &str = "/metadata/checks";

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    // A sample whose checks are its checks would lead to itself for ever.
    options.for_suites_only()?;
    let at = options.text("at")?.unwrap_or_else(|| AT.into());
    options.finish()?;
    if !["/metadata/", "/target", "/input/"].iter().any(|root| at.starts_with(root)) {
        return Err(format!("at must begin with /metadata/, /target or /input/, not {at:?}"));
    }
    Ok(Box::new(Checks { name, at, kept: Mutex::default() }))
}

impl Checks {
    fn of(&self, spec: &Value) -> Result<Arc<dyn Scorer>, String> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = Digest::of_json(spec);
        if let Some(kept) = lock().get(&digest) {
            return Ok(kept.clone());
        }
        let whole = if spec.is_array() { json!({"all": spec}) } else { spec.clone() };
        let scorer: Arc<dyn Scorer> = build_for(&whole, Author::Sample).map_err(|(_, problem)| format!("{}: {problem}", self.at))?.into();
        let mut kept = lock();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(digest, scorer.clone());
        Ok(scorer)
    }
}

impl Scorer for Checks {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let Some(spec) = case.part(&self.at).filter(|spec| !spec.is_null()) else {
                return Ok(Scored { values: vec![None], explanation: None });
            };
            let scorer = self.of(spec)?;
            let Scored { values, explanation } = scorer.score(case, services).await?;
            Ok(Scored { values: vec![values.first().copied().flatten()], explanation })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused;
    use super::super::texts::Nobody;
    use super::super::{Case, build};
    use crate::datasets::Sample;
    use crate::evals::Reply;
    use futures_util::FutureExt;
    use serde_json::{Value, json};

    fn look(checks: Value, output: &str) -> Result<Option<f64>, String> {
        let sample: Sample =
            serde_json::from_value(json!({"id": "s", "input": {}, "target": null, "metadata": {"checks": checks}})).expect("a sample");
        let reply = Reply { output: output.into(), ..Reply::default() };
        let scorer = build(&json!("checks")).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        let scored = scorer.score(&Case::new(&sample, &reply), &Nobody).now_or_never().expect("only computes");
        scored.map(|scored| scored.values[0])
    }

    #[test]
    fn each_sample_has_scorers_of_its_own() {
        assert_eq!(look(json!([{"includes": "cat"}, {"not": {"includes": "dog"}}]), "a cat"), Ok(Some(1.0)));
        assert_eq!(look(json!([{"includes": "cat"}, {"not": {"includes": "dog"}}]), "a cat and a dog"), Ok(Some(0.0)));
        assert_eq!(look(json!({"includes": "cat"}), "a bird"), Ok(Some(0.0)));
        assert_eq!(look(json!(null), "a bird"), Ok(None), "it says nothing of a sample without checks");
    }

    #[test]
    fn what_is_no_scorer_is_an_error_and_no_zero() {
        assert!(look(json!([{"inclodes": "cat"}]), "a cat").is_err_and(|problem| problem.contains("did you mean \"includes\"?")));
        for code in [json!({"command": ["true"]}), json!({"wasm": "/etc/hostname"}), json!("checks")] {
            for spec in [code.clone(), json!({"not": code}), json!({"against": {"target": 1, "scorer": code}}), json!([{"any": [code]}])] {
                assert!(look(spec.clone(), "x").is_err_and(|problem| problem.contains("may not bring this scorer")), "{spec}");
            }
        }
        assert!(look(json!([{"command": {"run": ["true"]}}]), "a cat").is_err_and(|problem| problem.contains("may not bring this scorer")));
        assert!(refused(json!({"checks": {"at": "/output"}})).contains("must begin with"));
    }
}
