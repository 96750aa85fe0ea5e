//! `exact_match`: the answer is the target. Options: `json: true` compares parsed JSON, `ignore_case: true`.

use super::{Case, Options, Scorer, parsed, same, target_text, value};

struct ExactMatch {
    name: String,
    json: bool,
    ignore_case: bool,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let (json, ignore_case) = (options.flag("json")?, options.flag("ignore_case")?);
    options.finish()?;
    Ok(Box::new(ExactMatch { name, json, ignore_case }))
}

impl Scorer for ExactMatch {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score(&self, case: Case<'_>) -> Vec<f64> {
        if self.json {
            // A target that is JSON text means its content.
            let wanted = case.target.as_str().and_then(parsed);
            let wanted = wanted.as_ref().unwrap_or(case.target);
            return vec![value(parsed(case.output).is_some_and(|found| same(&found, wanted)))];
        }
        let (found, wanted) = (case.output.trim(), target_text(case.target));
        let equal = if self.ignore_case { found.to_lowercase() == wanted.trim().to_lowercase() } else { found == wanted.trim() };
        vec![value(equal)]
    }
}
