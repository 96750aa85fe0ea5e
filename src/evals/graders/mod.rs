//! The graders of OpenAI's Evals API (`testing_criteria`): `string_check`, `text_similarity`, `label_model` and `score_model`, read and
//! checked; those without a model grade at once, those with one say what to ask and read what was answered. `python` is refused: nobody
//! else's code runs inside the server.

mod fields;
pub mod messages;
mod model;
pub mod template;
mod text;

pub use model::ModelGrader;
pub use text::TextGrader;

use fields::Fields;
use serde_json::{Value, json};
use std::collections::HashSet;

/// Most criteria of an eval.
const MAX_CRITERIA: usize = 64;

/// One criterion.
#[derive(Debug, Clone)]
pub struct Grader {
    /// Name, unique in the eval.
    pub name: String,
    /// `type` as it was written.
    pub kind: String,
    /// How it grades.
    pub how: How,
}

/// How a criterion grades.
#[derive(Debug, Clone)]
pub enum How {
    /// Compares texts.
    Text(TextGrader),
    /// Compares what texts mean, by a model's vectors: cosine of the two, and the threshold.
    Meaning {
        /// What is graded, a template.
        input: String,
        /// What it is compared with, a template.
        reference: String,
        /// Passes from here on.
        threshold: f64,
    },
    /// Asks a model.
    Model(ModelGrader),
}

/// What a criterion said of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Grade {
    /// How good it is.
    pub score: f64,
    /// Whether that is good enough.
    pub passed: bool,
    /// What the model was asked and answered, for criteria that ask one.
    pub sample: Option<Value>,
}

impl Grader {
    /// Reads `testing_criteria`.
    ///
    /// # Errors
    /// The field's path, and what is wrong with it.
    pub fn read_all(criteria: &Value, has_sample: bool) -> Result<Vec<Grader>, (String, String)> {
        let at = "testing_criteria";
        let Some(list) = criteria.as_array().filter(|list| !list.is_empty()) else {
            return Err((at.into(), format!("{at}: expected a list of at least one criterion")));
        };
        if list.len() > MAX_CRITERIA {
            return Err((at.into(), format!("{at}: at most {MAX_CRITERIA} criteria are taken")));
        }
        let mut names = HashSet::new();
        let mut graders = Vec::with_capacity(list.len());
        for (i, criterion) in list.iter().enumerate() {
            let grader = Grader::read(Fields::new(criterion, format!("{at}[{i}]"), has_sample)?)?;
            if !names.insert(grader.name.clone()) {
                return Err((format!("{at}[{i}].name"), format!("{at}[{i}].name: \"{}\" stands twice", grader.name)));
            }
            graders.push(grader);
        }
        Ok(graders)
    }

    fn read(fields: Fields<'_>) -> Result<Grader, (String, String)> {
        let kind = fields.text("type")?;
        let how = match kind.as_str() {
            "string_check" => How::Text(TextGrader::string_check(&fields)?),
            "text_similarity" => text::similarity(&fields)?,
            "label_model" => How::Model(ModelGrader::label(&fields)?),
            "score_model" => How::Model(ModelGrader::score(&fields)?),
            "python" => {
                let problem = "python: code of callers is not run here; use string_check, text_similarity, label_model or score_model";
                return Err(fields.wrong("type", problem));
            }
            other => {
                let known = "string_check, text_similarity, label_model and score_model";
                return Err(fields.wrong("type", format!("\"{other}\" is no kind of criterion (there are {known})")));
            }
        };
        Ok(Grader { name: fields.text("name")?, kind, how })
    }
}

impl Grade {
    /// The entry of an output item's `results`.
    pub fn to_json(&self, grader: &Grader) -> Value {
        let mut result = json!({"name": grader.name, "type": grader.kind, "score": self.score, "passed": self.passed});
        if let Some(sample) = &self.sample {
            result["sample"] = sample.clone();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let check = json!({"type": "string_check", "name": "a", "input": "{{item.x}}", "reference": "y", "operation": "eq"});
        let with = |change: Value| {
            let mut one = check.clone();
            one.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
            Grader::read_all(&json!([check, one]), false).expect_err("refused")
        };
        assert!(Grader::read_all(&json!([check]), false).is_ok());
        assert_eq!(with(json!({})).0, "testing_criteria[1].name");
        assert_eq!(with(json!({"name": "b", "operation": "equals"})).0, "testing_criteria[1].operation");
        assert_eq!(with(json!({"name": "b", "input": "{{sample.output_text}}"})).0, "testing_criteria[1].input");
        assert_eq!(with(json!({"name": "b", "type": "python"})).0, "testing_criteria[1].type");
        assert_eq!(with(json!({"name": "b", "reference": 7})).0, "testing_criteria[1].reference");
        assert_eq!(Grader::read_all(&json!([]), false).expect_err("refused").0, "testing_criteria");
    }
}
