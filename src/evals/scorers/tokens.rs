//! `tokens`: tokens that the answer has, as the provider counted them. Options: `of`: `output` (the default), `input` or `total`; `max`:
//! then it is 1 for an answer within the limit and 0 for a longer one.

use super::{Case, Options, Pure, Scale, Scored, Scorer, limit};

struct Tokens {
    name: String,
    of: &'static str,
    max: Option<f64>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let (of, max) = (options.choice("of", &["output", "input", "total"])?, options.number("max", 0.0)?);
    options.finish()?;
    Ok(Box::new(Tokens { name, of, max }))
}

impl Pure for Tokens {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        if self.max.is_some() { Scale::Pass } else { Scale::Less("tokens") }
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let (input, output) = (case.reply.input_tokens, case.reply.output_tokens);
        let count = match self.of {
            "input" => input,
            "output" => output,
            _ => input + output,
        };
        // No answer has no tokens at all: nobody counted.
        limit((input + output > 0).then_some(count as f64), self.max, "the tokens were not counted")
    }
}
