//! `includes`: the answer contains a text. Options: `value` (the sample's target without it), `any` (one of a list), `all` (every one of
//! a list), `ignore_case: true`.

use super::{Case, Options, Pure, Scale, Scored, Scorer};

struct Includes {
    name: String,
    wanted: Wanted,
    ignore_case: bool,
}

enum Wanted {
    /// The target, or one of its list.
    Target,
    Any(Vec<String>),
    All(Vec<String>),
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let wanted = match (options.text("value")?, options.texts("any")?, options.texts("all")?) {
        (None, None, None) => Wanted::Target,
        (Some(one), None, None) => Wanted::All(vec![one]),
        (None, Some(any), None) => Wanted::Any(any),
        (None, None, Some(all)) => Wanted::All(all),
        _ => return Err("give one of value, any and all".into()),
    };
    let ignore_case = options.flag("ignore_case")?;
    options.finish()?;
    Ok(Box::new(Includes { name, wanted, ignore_case }))
}

impl Pure for Includes {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let folded = self.ignore_case.then(|| case.output().to_lowercase());
        let output = folded.as_deref().unwrap_or(case.output());
        let has = |part: &String| if self.ignore_case { output.contains(&part.to_lowercase()) } else { output.contains(part.as_str()) };
        let passed = match &self.wanted {
            Wanted::Target => case.targets()?.iter().any(has),
            Wanted::Any(any) => any.iter().any(has),
            Wanted::All(all) => {
                let missing = all.iter().find(|part| !has(part));
                return Ok(match missing {
                    Some(part) if all.len() > 1 => Scored::from(false).because(format!("\"{part}\" is missing")),
                    missing => missing.is_none().into(),
                });
            }
        };
        Ok(passed.into())
    }
}
