//! `rouge`: overlap of words with the target (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), F-measure from 0 to 1,
//! as the `rouge-score` package gives it without stemming. Option `kinds`: of `rouge1` to `rouge5` and `rougeL` (without it `rouge1`, `rouge2` and
//! `rougeL`). The main metric is the last of them, ROUGE-L by default. Of several targets the best counts.

use super::grams::{common, grams, shared};
use super::seam::{Long, MANY_STEPS, apart};
use super::{Case, Options, Pure, Scored, Scorer};
use crate::types::error::did_you_mean;

#[derive(Clone)]
struct Rouge {
    name: String,
    kinds: Vec<&'static str>,
}

const KINDS: [&str; 6] = ["rouge1", "rouge2", "rouge3", "rouge4", "rouge5", "rougeL"];
/// Those that are told when a suite names none.
const USUAL: [&str; 3] = ["rouge1", "rouge2", "rougeL"];
/// Most words of a text that are compared for the longest common subsequence: time grows with the product, and with the number of targets.
const MAX_WORDS: usize = 20_000;
const MAX_CELLS: usize = MAX_WORDS * MAX_WORDS;
/// Bytes that a word has at least, with what parts it from the next.
const WORD_BYTES: usize = 2;

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let kinds = match options.texts("kinds")? {
        None => USUAL.to_vec(),
        Some(words) => words.iter().map(kind).collect::<Result<_, _>>()?,
    };
    options.finish()?;
    Ok(Box::new(Rouge { name, kinds }))
}

fn kind(word: &String) -> Result<&'static str, String> {
    let unknown = || format!("kinds: there is no \"{word}\"{} (kinds: {})", did_you_mean(word, KINDS), KINDS.join(", "));
    KINDS.into_iter().find(|known| known == word).ok_or_else(unknown)
}

impl Pure for Rouge {
    fn metrics(&self) -> Vec<String> {
        let others = self.kinds.iter().take(self.kinds.len() - 1).map(|kind| format!("{}.{kind}", self.name));
        std::iter::once(self.name.clone()).chain(others).collect()
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let found = words(case.output());
        let wanted: Vec<Vec<String>> = case.targets()?.iter().map(|target| words(target)).collect();
        if found.len().max(wanted.iter().map(Vec::len).max().unwrap_or(0)) > MAX_WORDS {
            return Err(format!("a text of more than {MAX_WORDS} words"));
        }
        if wanted.iter().map(|wanted| wanted.len() * found.len()).sum::<usize>() > MAX_CELLS {
            return Err(format!("texts of more than {MAX_WORDS} words, over all targets"));
        }
        let best = |kind: &&'static str| wanted.iter().map(|wanted| measure(kind, &found, wanted)).fold(0.0, f64::max);
        let mut values: Vec<f64> = self.kinds.iter().map(best).collect();
        values.rotate_right(1);
        Ok(values.into())
    }

    fn long(&self, case: &Case<'_>) -> Option<Long> {
        let (found, wanted) = case.lengths();
        ((found / WORD_BYTES).saturating_mul(wanted / WORD_BYTES) > MANY_STEPS).then(|| apart(self, case))
    }
}

/// Words as ROUGE has them: lower case, of the letters a to z and digits; all else parts them.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit()).filter(|word| !word.is_empty()).map(String::from).collect()
}

fn measure(kind: &str, found: &[String], wanted: &[String]) -> f64 {
    let (hits, of_found, of_wanted) = match kind {
        "rougeL" => (common(found, wanted), found.len(), wanted.len()),
        kind => {
            let n = kind.strip_prefix("rouge").and_then(|n| n.parse().ok()).unwrap_or(1);
            let (a, b) = (grams(found, n), grams(wanted, n));
            (shared(&a, &b), a.values().sum(), b.values().sum())
        }
    };
    if hits == 0 {
        return 0.0;
    }
    let (precision, recall) = (hits as f64 / of_found as f64, hits as f64 / of_wanted as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{look, recorded, refused};
    use serde_json::json;

    #[test]
    fn values_are_those_of_rouge_score() {
        for case in recorded("rouge") {
            let scored = look(&json!("rouge"), case["output"].as_str().expect("a text"), case["target"].clone()).expect("a score");
            for (value, field) in scored.values.iter().zip(["rougeL", "rouge1", "rouge2"]) {
                let (value, expected) = (value.expect("a value"), case[field].as_f64().expect("a number"));
                assert!((value - expected).abs() < 1e-12, "{field} of {case}: {value}");
            }
        }
    }

    #[test]
    fn of_several_targets_the_best_counts() {
        let scored = look(&json!({"rouge": {"kinds": ["rouge1"]}}), "a cat", json!(["dogs", "the cat"])).expect("a score");
        assert_eq!(scored.values, [Some(0.5)]);
        assert!(look(&json!("rouge"), "a", json!(null)).is_err());
        assert!(refused(json!({"rouge": {"kinds": ["rogue1"]}})).contains("did you mean \"rouge1\"?"));
    }
}
