//! `exact_match`: the answer is the target, or one of a list of targets. Options: `json: true` compares parsed JSON, `ignore_case: true`.

use super::case::{parsed, same};
use super::{Case, Options, Pure, Scale, Scored, Scorer};

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

impl Pure for ExactMatch {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        if self.json {
            // A target that is JSON text means its content.
            let wanted = case.target.as_str().and_then(parsed);
            let wanted = wanted.as_ref().unwrap_or(case.target);
            return Ok(parsed(case.output()).is_some_and(|found| same(&found, wanted)).into());
        }
        let fold = |text: &str| if self.ignore_case { text.trim().to_lowercase() } else { text.trim().to_string() };
        let found = fold(case.output());
        Ok((fold(&case.target_text()) == found || case.targets().is_ok_and(|all| all.iter().any(|one| fold(one) == found))).into())
    }
}
