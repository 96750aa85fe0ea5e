//! `starts_with`, `ends_with`: the answer begins or ends with a text, white space around the answer aside. Options: `value`, a text or a
//! list of which one is enough (the sample's target without it), `ignore_case: true`.

use super::{Case, Options, Pure, Scale, Scored, Scorer};

struct Affix {
    name: String,
    wanted: Option<Vec<String>>,
    ignore_case: bool,
    /// Whether the answer has a text where it belongs.
    stands: fn(&str, &str) -> bool,
}

pub(super) fn starts_with(name: String, options: Options) -> Result<Box<dyn Scorer>, String> {
    build(name, options, |output, part| output.starts_with(part))
}

pub(super) fn ends_with(name: String, options: Options) -> Result<Box<dyn Scorer>, String> {
    build(name, options, |output, part| output.ends_with(part))
}

fn build(name: String, mut options: Options, stands: fn(&str, &str) -> bool) -> Result<Box<dyn Scorer>, String> {
    let (wanted, ignore_case) = (options.texts("value")?, options.flag("ignore_case")?);
    options.finish()?;
    Ok(Box::new(Affix { name, wanted, ignore_case, stands }))
}

impl Pure for Affix {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let fold = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_string() };
        let output = fold(case.output().trim());
        let wanted = self.wanted.clone().map_or_else(|| case.targets(), Ok)?;
        Ok(wanted.iter().any(|part| (self.stands)(&output, &fold(part))).into())
    }
}
