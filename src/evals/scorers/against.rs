//! `against`: another scorer, with a `target` of its own in the place of the sample's: `{against: {target: Paris, scorer: exact_match}}`.
//! For checks of single samples, and for what every answer is held against.

use super::{Asks, Case, Options, Scale, Scored, Scorer, Services, build_for};
use futures_util::future::BoxFuture;
use serde_json::Value;

struct Against {
    name: String,
    target: Value,
    scorer: Box<dyn Scorer>,
    metric: String,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let target = options.take("target").filter(|target| !target.is_null()).ok_or("target is missing")?;
    let scorer = build_for(&options.take("scorer").ok_or("scorer is missing")?, options.author.clone()).map_err(|(_, problem)| problem)?;
    options.finish()?;
    let metric = scorer.metrics().into_iter().next().unwrap_or_default();
    Ok(Box::new(Against { name, target, scorer, metric }))
}

impl Scorer for Against {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        self.scorer.scale(&self.metric)
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let case = Case { target: &self.target, ..*case };
            let Scored { values, explanation } = self.scorer.score(&case, services).await?;
            Ok(Scored { values: vec![values.first().copied().flatten()], explanation })
        })
    }

    fn runs_commands(&self) -> bool {
        self.scorer.runs_commands()
    }

    fn is_unpinned(&self) -> bool {
        self.scorer.is_unpinned()
    }

    fn compares_with(&self) -> Vec<String> {
        self.scorer.compares_with()
    }

    fn asks(&self) -> Vec<Asks> {
        self.scorer.asks()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{look, refused};
    use serde_json::json;

    #[test]
    fn the_target_is_its_own() {
        let value = |output: &str| {
            look(&json!({"against": {"target": "Paris", "scorer": "exact_match"}}), output, json!("Rome")).expect("a score").values
        };
        assert_eq!((value("Paris"), value("Rome")), (vec![Some(1.0)], vec![Some(0.0)]));
        assert!(refused(json!({"against": {"scorer": "exact_match"}})).contains("target is missing"));
    }
}
