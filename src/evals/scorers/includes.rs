//! `includes`: the answer contains a text. Options: `value` (the sample's target without it), `ignore_case: true`.

use super::{Case, Options, Scorer, target_text, value};

struct Includes {
    name: String,
    wanted: Option<String>,
    ignore_case: bool,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let (wanted, ignore_case) = (options.text("value")?, options.flag("ignore_case")?);
    options.finish()?;
    Ok(Box::new(Includes { name, wanted, ignore_case }))
}

impl Scorer for Includes {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score(&self, case: Case<'_>) -> Vec<f64> {
        let wanted = self.wanted.clone().unwrap_or_else(|| target_text(case.target));
        let found =
            if self.ignore_case { case.output.to_lowercase().contains(&wanted.to_lowercase()) } else { case.output.contains(&wanted) };
        vec![value(found)]
    }
}
