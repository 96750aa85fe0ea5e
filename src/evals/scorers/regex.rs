//! `regex`: a pattern matches somewhere in the answer (`^` and `$` for all of it). Option: `pattern`. Linear time, whatever the pattern.

use super::{Case, Options, Pure, Scale, Scored, Scorer};

struct Regex {
    name: String,
    pattern: regex::Regex,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let pattern = options.pattern("pattern")?.ok_or("pattern is missing")?;
    options.finish()?;
    Ok(Box::new(Regex { name, pattern }))
}

impl Pure for Regex {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        Ok(self.pattern.is_match(case.output().trim_end()).into())
    }
}
