//! `chrf`: overlap of runs of one to six characters with the target (Popović, WMT 2015), from 0 to 1, as sacreBLEU gives it (times 100):
//! recall counts twice (β = 2), white space does not count. Of several targets the best counts. Option `ignore_case: true`.

use super::grams::{grams, shared};
use super::seam::{Long, MANY_STEPS, apart};
use super::{Case, Options, Pure, Scored, Scorer};

#[derive(Clone)]
struct Chrf {
    name: String,
    ignore_case: bool,
}

/// Longest run of characters.
const ORDER: usize = 6;
/// Most bytes of a text: memory grows with it.
const MAX_BYTES: usize = 4_000_000;
/// β², with β = 2.
const BETA_SQUARED: f64 = 4.0;

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let ignore_case = options.flag("ignore_case")?;
    options.finish()?;
    Ok(Box::new(Chrf { name, ignore_case }))
}

impl Pure for Chrf {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let fold = |text: &str| -> Vec<char> {
            let text = if self.ignore_case { text.to_lowercase() } else { text.to_string() };
            text.chars().filter(|c| !c.is_whitespace()).collect()
        };
        if let (length @ MAX_BYTES.., _) | (_, length @ MAX_BYTES..) = case.lengths() {
            return Err(format!("a text of {length} bytes; at most {MAX_BYTES} are compared"));
        }
        let found = fold(case.output());
        Ok(case.targets()?.iter().map(|target| measure(&found, &fold(target))).fold(0.0, f64::max).into())
    }

    fn long(&self, case: &Case<'_>) -> Option<Long> {
        let (found, wanted) = case.lengths();
        (found.saturating_add(wanted).saturating_mul(ORDER) > MANY_STEPS).then(|| apart(self, case))
    }
}

/// F of the mean precision and the mean recall over the lengths that both texts have runs of.
fn measure(found: &[char], wanted: &[char]) -> f64 {
    let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
    for n in 1..=ORDER.min(found.len()).min(wanted.len()) {
        let hits = shared(&grams(found, n), &grams(wanted, n)) as f64;
        precision += hits / (found.len() + 1 - n) as f64;
        recall += hits / (wanted.len() + 1 - n) as f64;
        lengths += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / lengths, recall / lengths);
    (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{look, recorded};
    use serde_json::json;

    #[test]
    fn values_are_those_of_sacrebleu() {
        for case in recorded("chrf") {
            let output = case["output"].as_str().expect("a text");
            let found = look(&json!("chrf"), output, case["target"].clone()).expect("a score").values[0].expect("a value");
            let expected = case["sentence"].as_f64().expect("a number") / 100.0;
            assert!((found - expected).abs() < 1e-9, "{case}: {found}");
        }
        assert_eq!(look(&json!({"chrf": {"ignore_case": true}}), "ABC", json!("abc")).expect("a score").values, [Some(1.0)]);
    }
}
