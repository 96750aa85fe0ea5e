//! `starts_with`: the answer begins with a text, white space around the answer aside. Options: `value`, a text or a list of which one is enough
//! (the sample's target without it), `ignore_case: true`.

use super::{Case, Options, Pure, Scored, Scorer};

struct StartsWith {
    name: String,
    wanted: Option<Vec<String>>,
    ignore_case: bool,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let (wanted, ignore_case) = (options.texts("value")?, options.flag("ignore_case")?);
    options.finish()?;
    Ok(Box::new(StartsWith { name, wanted, ignore_case }))
}

impl Pure for StartsWith {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let fold = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_string() };
        let output = fold(case.output().trim());
        let wanted = self.wanted.clone().map_or_else(|| case.targets(), Ok)?;
        Ok(wanted.iter().any(|part| output.starts_with(&fold(part))).into())
    }
}
