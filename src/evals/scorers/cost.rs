//! `cost`: micro-dollars that the answer cost; none where the price is not known. Option `max_usd`: then it is 1 for an answer within the
//! limit and 0 for a dearer one, which is an error where the price is not known.

use super::{Case, Options, Pure, Scale, Scored, Scorer, limit};

struct Cost {
    name: String,
    max_micro_usd: Option<f64>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let max_micro_usd = options.number("max_usd", 0.0)?.map(|usd| usd * 1e6);
    options.finish()?;
    Ok(Box::new(Cost { name, max_micro_usd }))
}

impl Pure for Cost {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        if self.max_micro_usd.is_some() { Scale::Pass } else { Scale::Less("micro-dollars") }
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        limit(case.reply.cost_micro_usd.map(|cost| cost as f64), self.max_micro_usd, "the cost is not known: the model has no price")
    }
}
