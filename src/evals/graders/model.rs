//! Criteria that ask a model: `label_model` chooses one of some labels, `score_model` gives a number. The model is asked for JSON of a
//! schema; where its provider refuses formats it is asked once more in words alone.

use super::fields::Fields;
use super::{Grade, messages};
use serde_json::{Map, Value, json};

/// What `sampling_params` may hold.
const SAMPLING: [&str; 5] = ["temperature", "top_p", "seed", "max_completion_tokens", "reasoning_effort"];

/// Asks a model.
#[derive(Debug, Clone)]
pub struct ModelGrader {
    model: String,
    input: Vec<Value>,
    sampling: Map<String, Value>,
    answer: Answer,
}

#[derive(Debug, Clone)]
enum Answer {
    Label { labels: Vec<String>, passing: Vec<String> },
    Number { range: [f64; 2], threshold: f64 },
}

impl ModelGrader {
    pub(super) fn label(fields: &Fields<'_>) -> Result<Self, (String, String)> {
        let (labels, passing) = (fields.texts("labels")?, fields.texts("passing_labels")?);
        if let Some(unknown) = passing.iter().find(|label| !labels.contains(label)) {
            return Err(fields.wrong("passing_labels", format!("\"{unknown}\" is not among the labels")));
        }
        ModelGrader::new(fields, Answer::Label { labels, passing })
    }

    pub(super) fn score(fields: &Fields<'_>) -> Result<Self, (String, String)> {
        let range = match fields.get("range") {
            None => [0.0, 1.0],
            Some(value) => {
                let ends: Option<Vec<f64>> = value.as_array().map(|ends| ends.iter().filter_map(Value::as_f64).collect());
                match ends.as_deref() {
                    Some([low, high]) if low < high => [*low, *high],
                    _ => return Err(fields.wrong("range", "expected two numbers, the smaller one first")),
                }
            }
        };
        let threshold = fields.number("pass_threshold")?.unwrap_or((range[0] + range[1]) / 2.0);
        ModelGrader::new(fields, Answer::Number { range, threshold })
    }

    fn new(fields: &Fields<'_>, answer: Answer) -> Result<Self, (String, String)> {
        let sampling = match fields.get("sampling_params") {
            None => Map::new(),
            Some(Value::Object(params)) => {
                if let Some(unknown) = params.keys().find(|name| !SAMPLING.contains(&name.as_str())) {
                    return Err(fields.wrong("sampling_params", format!("\"{unknown}\" is not known ({})", SAMPLING.join(", "))));
                }
                params.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
            }
            Some(_) => return Err(fields.wrong("sampling_params", "expected an object")),
        };
        Ok(ModelGrader { model: fields.text("model")?, input: fields.messages("input")?, sampling, answer })
    }

    /// The chat request that grades what stands in a space of values; with a `response_format`, or in words alone.
    ///
    /// # Errors
    /// What could not be filled in.
    pub fn request(&self, space: &Value, with_format: bool) -> Result<Value, String> {
        let mut messages = messages::render(&self.input, space)?;
        messages.push(json!({"role": "system", "content": self.instruction()}));
        let mut request = json!({"model": self.model, "messages": messages});
        request.as_object_mut().into_iter().for_each(|fields| fields.extend(self.sampling.clone()));
        if with_format {
            request["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "grade", "strict": true, "schema": self.schema()}});
        }
        Ok(request)
    }

    fn instruction(&self) -> String {
        match &self.answer {
            Answer::Label { labels, .. } => {
                let labels: Vec<String> = labels.iter().map(|label| Value::from(label.as_str()).to_string()).collect();
                format!("Answer with JSON and nothing else: {{\"result\": LABEL}}, where LABEL is one of {}.", labels.join(", "))
            }
            Answer::Number { range: [low, high], .. } => {
                format!("Answer with JSON and nothing else: {{\"result\": NUMBER}}, where NUMBER is from {low} to {high}.")
            }
        }
    }

    fn schema(&self) -> Value {
        let result = match &self.answer {
            Answer::Label { labels, .. } => json!({"type": "string", "enum": labels}),
            Answer::Number { .. } => json!({"type": "number"}),
        };
        json!({"type": "object", "properties": {"result": result}, "required": ["result"], "additionalProperties": false})
    }

    /// Reads the model's answer: JSON as it was asked for, or the bare label or number.
    ///
    /// # Errors
    /// When it is neither: no grade is made up.
    pub fn read(&self, answer: &str) -> Result<(f64, bool), String> {
        let text = answer.trim();
        let parsed: Option<Value> = serde_json::from_str::<Value>(text.trim_start_matches("```json").trim_matches(['`', '\n', ' '])).ok();
        let result = parsed.as_ref().and_then(|parsed| parsed.get("result")).or(parsed.as_ref()).filter(|value| !value.is_object());
        let shown = || text.chars().take(80).collect::<String>();
        match &self.answer {
            Answer::Label { labels, passing } => {
                let said = result.and_then(Value::as_str).unwrap_or(text).trim().trim_end_matches('.').to_lowercase();
                let label = labels.iter().find(|label| label.to_lowercase() == said);
                let label = label.ok_or_else(|| format!("the model answered {:?}, which is none of the labels", shown()))?;
                let passed = passing.contains(label);
                Ok((f64::from(u8::from(passed)), passed))
            }
            Answer::Number { range: [low, high], threshold } => {
                let number = result.and_then(|value| value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()));
                let number = number.filter(|number| (*low..=*high).contains(number));
                let number = number.ok_or_else(|| format!("the model answered {:?}, which is no number from {low} to {high}", shown()))?;
                Ok((number, number >= *threshold))
            }
        }
    }

    /// A grade with what was asked and answered.
    pub fn grade((score, passed): (f64, bool), sample: Value) -> Grade {
        Grade { score, passed, sample: Some(sample) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Grader, How};
    use super::*;

    fn grader(criterion: Value) -> ModelGrader {
        let mut whole = json!({"name": "a", "model": "m/m", "input": [{"role": "user", "content": "Judge: {{item.a}}"}]});
        whole.as_object_mut().expect("an object").extend(criterion.as_object().expect("an object").clone());
        let How::Model(model) = Grader::read_all(&json!([whole]), false).expect("reads").remove(0).how else { panic!("no model") };
        model
    }

    #[test]
    fn labels_are_read_and_never_guessed() {
        let label = grader(json!({"type": "label_model", "labels": ["good", "not good"], "passing_labels": ["good"]}));
        for (answer, passed) in
            [("{\"result\": \"good\"}", true), ("Good.", true), ("```json\n{\"result\":\"not good\"}\n```", false), ("\"not good\"", false)]
        {
            assert_eq!(label.read(answer).map(|(_, passed)| passed), Ok(passed), "{answer}");
        }
        assert!(label.read("It is good, I think").is_err() && label.read("{}").is_err() && label.read("").is_err());
        let request = label.request(&json!({"item": {"a": "x"}}), true).expect("filled in");
        assert_eq!(request["messages"][0]["content"], "Judge: x");
        assert_eq!(request["response_format"]["json_schema"]["schema"]["properties"]["result"]["enum"][1], "not good");
    }

    #[test]
    fn numbers_must_be_in_their_range() {
        let score = grader(json!({"type": "score_model", "range": [1, 5], "pass_threshold": 4, "sampling_params": {"temperature": 0}}));
        assert_eq!(score.read("{\"result\": 4.5}"), Ok((4.5, true)));
        assert_eq!(score.read("3"), Ok((3.0, false)));
        assert!(score.read("{\"result\": 6}").is_err() && score.read("four").is_err());
        assert_eq!(score.request(&json!({"item": {"a": "x"}}), false).expect("filled in")["temperature"], 0);
    }
}
