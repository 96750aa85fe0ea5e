//! `edit_distance`: how near the answer is to the target: 1 less the share of characters that must be put in, taken out or changed
//! (Levenshtein over the longer length), 1 for equal texts. `edit_distance.edits` is their number. Of several targets the nearest counts.
//! Option: `ignore_case: true`.

use super::seam::{Long, MANY_STEPS, apart};
use super::{Case, Options, Pure, Scale, Scored, Scorer};

#[derive(Clone)]
struct EditDistance {
    name: String,
    ignore_case: bool,
}

/// Most characters of a text that are compared: time grows with the product, and with the number of targets.
const MAX_CHARS: usize = 50_000;
const MAX_CELLS: usize = MAX_CHARS * MAX_CHARS;

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let ignore_case = options.flag("ignore_case")?;
    options.finish()?;
    Ok(Box::new(EditDistance { name, ignore_case }))
}

impl Pure for EditDistance {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone(), format!("{}.edits", self.name)]
    }

    fn scale(&self, metric: &str) -> Scale {
        if metric == self.name { Scale::Share } else { Scale::Less("edits") }
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let fold = |text: &str| if self.ignore_case { text.trim().to_lowercase() } else { text.trim().to_string() };
        let (found, targets) = (fold(case.output()), case.targets()?);
        let length = found.chars().count();
        let cells: usize = targets.iter().map(|target| target.chars().count().saturating_mul(length)).sum();
        if cells > MAX_CELLS {
            return Err(format!("texts of more than {MAX_CHARS} characters, over all targets"));
        }
        let mut best: Option<(f64, f64)> = None;
        for target in targets.iter().map(|target| fold(target)) {
            let longer = length.max(target.chars().count());
            if longer > MAX_CHARS {
                return Err(format!("a text of more than {MAX_CHARS} characters"));
            }
            let edits = strsim::levenshtein(&found, &target) as f64;
            let near = if longer == 0 { 1.0 } else { 1.0 - edits / longer as f64 };
            best = best.filter(|(known, _)| *known >= near).or(Some((near, edits)));
        }
        let (near, edits) = best.ok_or("the sample has no target")?;
        Ok(vec![near, edits].into())
    }

    fn long(&self, case: &Case<'_>) -> Option<Long> {
        let (found, wanted) = case.lengths();
        (found.saturating_mul(wanted) > MANY_STEPS).then(|| apart(self, case))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::look;
    use serde_json::json;

    #[test]
    fn distance_is_levenshteins() {
        let values = |output: &str, target| look(&json!("edit_distance"), output, target).expect("a score").values;
        // Wagner & Fischer's textbook pair: three edits over seven letters.
        assert_eq!(values("sitting", json!("kitten")), [Some(1.0 - 3.0 / 7.0), Some(3.0)]);
        assert_eq!(values("", json!("")), [Some(1.0), Some(0.0)]);
        assert_eq!(values(" für\n", json!(["fur", "für"])), [Some(1.0), Some(0.0)]);
        assert_eq!(look(&json!({"edit_distance": {"ignore_case": true}}), "A", json!("a")).expect("a score").values[1], Some(0.0));
        assert!(look(&json!("edit_distance"), "a", json!(null)).is_err());
    }
}
