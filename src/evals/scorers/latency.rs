//! `latency`: milliseconds to the whole answer; none where nobody measured them. Option `max_ms`: then it is 1 for an answer within the
//! limit and 0 for a later one, which is an error where it was not measured.

use super::{Case, Options, Pure, Scale, Scored, Scorer, limit};

struct Latency {
    name: String,
    max_ms: Option<f64>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let max_ms = options.number("max_ms", 0.0)?;
    options.finish()?;
    Ok(Box::new(Latency { name, max_ms }))
}

impl Pure for Latency {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        if self.max_ms.is_some() { Scale::Pass } else { Scale::Less("ms") }
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        // Stored outputs that came from elsewhere took no time here.
        limit(Some(case.reply.latency_ms).filter(|ms| *ms > 0.0), self.max_ms, "the latency is not known")
    }
}
