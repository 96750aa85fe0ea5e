//! `per_sample`: each sample brings its own scorer, in `metadata.scorer` (option `field`: another name), as a suite would have it. A sample
//! without one, or with one that cannot be read, is an error of its case.

use super::{Author, Case, Options, Scored, Scorer, Services, build_for};
use futures_util::future::BoxFuture;

struct PerSample {
    name: String,
    field: String,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    // A sample that names this scorer would lead to itself for ever.
    options.for_suites_only()?;
    let field = options.text("field")?.unwrap_or_else(|| "scorer".into());
    options.finish()?;
    Ok(Box::new(PerSample { name, field }))
}

impl Scorer for PerSample {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let spec = case.metadata.get(&self.field).ok_or_else(|| format!("the sample has no metadata.{}", self.field))?;
            let scorer = build_for(spec, Author::Sample).map_err(|(_, problem)| problem)?;
            let scored = scorer.score(case, services).await?;
            Ok(Scored { values: scored.values.into_iter().take(1).collect(), explanation: scored.explanation })
        })
    }
}
