//! `regex`: a pattern matches somewhere in the answer (`^` and `$` for all of it). Option: `pattern`. Linear time, whatever the pattern.

use super::{Case, Options, Scorer, value};

struct Regex {
    name: String,
    pattern: regex::Regex,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let pattern = options.text("pattern")?.ok_or("pattern is missing")?;
    options.finish()?;
    let pattern = regex::Regex::new(&pattern).map_err(|error| format!("pattern: {}", error.to_string().replace('\n', " ")))?;
    Ok(Box::new(Regex { name, pattern }))
}

impl Scorer for Regex {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score(&self, case: Case<'_>) -> Vec<f64> {
        vec![value(self.pattern.is_match(case.output.trim_end()))]
    }
}
