//! Criteria that compare texts: `string_check`, and `text_similarity` by every measure but the meaning, which needs a model's vectors.
//! BLEU and ROUGE are those of the scorers; `fuzzy_match` and `gleu` are here.

use super::fields::Fields;
use super::{Grade, How, template};
use crate::evals::scorers;
use crate::evals::scorers::grams::{common, grams, shared};
use crate::evals::scorers::seam::MANY_STEPS;
use serde_json::{Value, json};

/// Characters of both texts, multiplied, that `fuzzy_match` takes: it takes time with the product.
const MAX_FUZZY: usize = 100_000_000;

/// Compares a text with another.
#[derive(Debug, Clone)]
pub struct TextGrader {
    input: String,
    reference: String,
    measure: Measure,
    /// Passes from here on.
    threshold: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Measure {
    Eq,
    Ne,
    /// The reference stands in the text.
    Like,
    /// The same whatever the case.
    Ilike,
    Fuzzy,
    Gleu,
    /// A scorer, as a suite would name it.
    Scorer(Value),
}

impl TextGrader {
    pub(super) fn string_check(fields: &Fields<'_>) -> Result<Self, (String, String)> {
        let measure = match fields.text("operation")?.as_str() {
            "eq" => Measure::Eq,
            "ne" => Measure::Ne,
            "like" => Measure::Like,
            "ilike" => Measure::Ilike,
            _ => return Err(fields.wrong("operation", "expected eq, ne, like or ilike")),
        };
        Ok(TextGrader { input: fields.template("input")?, reference: fields.template("reference")?, measure, threshold: 1.0 })
    }

    /// Grades what stands in a space of values (`item`, `sample`).
    ///
    /// # Errors
    /// What could not be filled in or compared.
    pub async fn grade(&self, space: &Value) -> Result<Grade, String> {
        let (found, wanted) = (template::render(&self.input, space)?, template::render(&self.reference, space)?);
        let score = self.measure.of(found, wanted).await?;
        Ok(Grade { score, passed: score >= self.threshold, sample: None })
    }
}

/// Reads a `text_similarity`.
pub(super) fn similarity(fields: &Fields<'_>) -> Result<How, (String, String)> {
    let (input, reference) = (fields.template("input")?, fields.template("reference")?);
    let threshold = fields.number("pass_threshold")?.ok_or_else(|| fields.wrong("pass_threshold", "expected a number"))?;
    let metric = fields.text("evaluation_metric")?;
    let rouge = |kind: String| Measure::Scorer(json!({"rouge": {"kinds": [kind]}}));
    let measure = match metric.as_str() {
        "cosine" => return Ok(How::Meaning { input, reference, threshold }),
        "fuzzy_match" => Measure::Fuzzy,
        "gleu" => Measure::Gleu,
        "bleu" => Measure::Scorer(json!("bleu")),
        "rouge_l" => rouge("rougeL".into()),
        "meteor" => {
            let problem = "meteor needs a dictionary of synonyms, which is not here; use rouge_l, gleu or cosine";
            return Err(fields.wrong("evaluation_metric", problem));
        }
        other => match other.strip_prefix("rouge_").and_then(|n| n.parse::<u32>().ok()).filter(|n| (1..=5).contains(n)) {
            Some(n) => rouge(format!("rouge{n}")),
            None => {
                let problem = "expected cosine, fuzzy_match, bleu, gleu, rouge_1 to rouge_5 or rouge_l";
                return Err(fields.wrong("evaluation_metric", problem));
            }
        },
    };
    Ok(How::Text(TextGrader { input, reference, measure, threshold }))
}

impl Measure {
    async fn of(&self, found: String, wanted: String) -> Result<f64, String> {
        let yes = |is: bool| Ok(f64::from(u8::from(is)));
        match self {
            Measure::Eq => yes(found == wanted),
            Measure::Ne => yes(found != wanted),
            Measure::Like => yes(found.contains(&wanted)),
            Measure::Ilike => yes(found.to_lowercase().contains(&wanted.to_lowercase())),
            Measure::Fuzzy if found.len().saturating_mul(wanted.len()) > MANY_STEPS => {
                let compared = tokio::task::spawn_blocking(move || fuzzy(&found, &wanted));
                compared.await.unwrap_or_else(|_| Err("it ended early".into()))
            }
            Measure::Fuzzy => fuzzy(&found, &wanted),
            Measure::Gleu => Ok(gleu(&found, &wanted)),
            Measure::Scorer(spec) => scorers::of_texts(spec, &found, &wanted).await,
        }
    }
}

/// The share of both texts that is left when as little as possible is put in and taken out: twice the longest common subsequence over
/// the sum of the lengths (RapidFuzz's `ratio`, between 0 and 1).
fn fuzzy(found: &str, wanted: &str) -> Result<f64, String> {
    let (a, b): (Vec<char>, Vec<char>) = (found.chars().collect(), wanted.chars().collect());
    if a.len().saturating_mul(b.len()) > MAX_FUZZY {
        return Err(format!("texts of {} and {} characters are too long for fuzzy_match", a.len(), b.len()));
    }
    if a.is_empty() && b.is_empty() {
        return Ok(1.0);
    }
    Ok(2.0 * common(&a, &b) as f64 / (a.len() + b.len()) as f64)
}

/// GLEU of Google's machine translation (Wu et al., 2016, arXiv 1609.08144): runs of one to four words that both have, over the more of
/// the two; 0 where there is none.
fn gleu(found: &str, wanted: &str) -> f64 {
    let (a, b): (Vec<&str>, Vec<&str>) = (found.split_whitespace().collect(), wanted.split_whitespace().collect());
    let (mut both, mut totals) = (0, [0, 0]);
    for n in 1..=4 {
        let (runs_a, runs_b) = (grams(&a, n), grams(&b, n));
        both += shared(&runs_a, &runs_b);
        totals = [totals[0] + runs_a.values().sum::<usize>(), totals[1] + runs_b.values().sum::<usize>()];
    }
    let most = totals[0].max(totals[1]);
    if most == 0 { 0.0 } else { both as f64 / most as f64 }
}

#[cfg(test)]
mod tests {
    use super::super::Grader;
    use super::*;
    use futures_util::FutureExt;

    fn grade(criterion: Value, item: Value) -> Grade {
        let mut whole = json!({"name": "a", "input": "{{item.a}}", "reference": "{{item.b}}"});
        whole.as_object_mut().expect("an object").extend(criterion.as_object().expect("an object").clone());
        let graders = Grader::read_all(&json!([whole]), false).expect("reads");
        let How::Text(text) = &graders[0].how else { panic!("no text") };
        text.grade(&json!({"item": item})).now_or_never().expect("it waits for nothing").expect("grades")
    }

    #[test]
    fn strings_are_checked_as_the_operation_says() {
        let check = |operation: &str, a: &str, b: &str| {
            grade(json!({"type": "string_check", "operation": operation}), json!({"a": a, "b": b})).passed
        };
        assert!(check("eq", "x", "x") && !check("eq", "X", "x") && check("ne", "X", "x"));
        assert!(check("like", "the cat", "cat") && !check("like", "the Cat", "cat") && check("ilike", "the Cat", "cat"));
    }

    #[test]
    fn similarities_are_those_of_their_sources() {
        let score = |metric: &str, a: &str, b: &str| {
            let criterion = json!({"type": "text_similarity", "evaluation_metric": metric, "pass_threshold": 0.5});
            grade(criterion, json!({"a": a, "b": b})).score
        };
        // RapidFuzz: fuzz.ratio("this is a test", "this is a test!") is 96.55…; NLTK's sentence_gleu of its first example's words.
        assert!((score("fuzzy_match", "this is a test", "this is a test!") - 28.0 / 29.0).abs() < 1e-12);
        assert_eq!(score("fuzzy_match", "", ""), 1.0);
        // Runs in common: the, cat, the cat; of ten of the longer one.
        assert!((score("gleu", "the cat", "the cat sat down") - 0.3).abs() < 1e-12);
        assert_eq!(score("gleu", "", "x"), 0.0);
        assert!((score("rouge_1", "the cat", "the cat sat down") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(score("rouge_3", "the cat", "the cat"), 0.0);
        assert_eq!(score("rouge_l", "the cat", "the cat"), 1.0);
        assert!((score("bleu", "the cat sat on the mat", "the cat sat on the mat") - 1.0).abs() < 1e-12);
    }
}
