//! What a chat request asks of the engine. Every field is honoured, refused by name, or one of those that change no answer here
//! ([`IGNORED`], listed in the documentation).

use super::format;
use crate::engine::penalties::Penalties;
use crate::engine::sampling::Sampling;
use crate::engine::tools::Tool;
use crate::types::chat::ChatRequest;
use crate::types::{Code, Failure};
use serde_json::{Map, Value};

/// Fields that are read here or by [`format`].
const HONOURED: [&str; 12] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
];
/// Fields that change no answer of a local model: what is kept where, who asks, how it is billed, and what other providers read.
const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "mock",
    "prompt",
    crate::types::messages::SIDE,
];
/// Fields that are fine as long as they ask for what a local model does anyway.
const NEUTRAL: [(&str, &[&str]); 2] = [("reasoning_effort", &["none"]), ("verbosity", &["medium"])];
/// As the OpenAI API has it.
const MAX_STOP: usize = 4;

/// A request, read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) sampling: Sampling,
    pub(super) choices: u32,
    pub(super) max_tokens: usize,
    pub(super) stop: Vec<String>,
    /// Log probabilities, with so many of the likeliest tokens beside each.
    pub(super) logprobs: Option<usize>,
    /// What may be called.
    pub(super) tools: Vec<Tool>,
    pub(super) format: format::Format,
}

impl Asked {
    /// Reads a request.
    ///
    /// # Errors
    /// The field that is out of range, of the wrong type, or not supported by local models.
    pub(super) fn of(request: &ChatRequest) -> Result<Self, Failure> {
        let fields = Fields(&request.extra);
        fields.refuse_unknown()?;
        let stop: Vec<String> = request.stop.as_ref().map(|stop| stop.texts()).unwrap_or_default();
        if stop.len() > MAX_STOP {
            return Err(wrong("stop", format!("expected at most {MAX_STOP} texts, found {}", stop.len())));
        }
        let (tools, format) = format::read(&request.extra)?;
        Ok(Asked {
            sampling: fields.sampling(request)?,
            choices: request.n.unwrap_or(1),
            max_tokens: request.token_limit().map_or(usize::MAX, |limit| limit as usize),
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            logprobs: fields.logprobs()?,
            tools,
            format,
        })
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn refuse_unknown(&self) -> Result<(), Failure> {
        for (field, value) in self.0.iter().filter(|(_, value)| !value.is_null()) {
            let name = field.as_str();
            let is_neutral =
                NEUTRAL.iter().any(|(neutral, values)| *neutral == name && value.as_str().is_some_and(|value| values.contains(&value)));
            let is_empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
            let is_text = name == "modalities" && value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
            if !(HONOURED.contains(&name) || IGNORED.contains(&name) || is_neutral || is_empty || is_text) {
                return Err(Failure::on(Code::UNSUPPORTED, name, format!("local models do not support \"{name}\"")));
            }
        }
        Ok(())
    }

    fn number(&self, field: &'static str, (least, most): (f64, f64), default: f64) -> Result<f32, Failure> {
        let Some(value) = self.get(field) else { return Ok(default as f32) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        number
            .map(|number| number as f32)
            .ok_or_else(|| wrong(field, format!("expected a number from {least} to {most}, found {}", told(value))))
    }

    fn sampling(&self, request: &ChatRequest) -> Result<Sampling, Failure> {
        let top_k = match self.get("top_k") {
            None => 0,
            // As vLLM has it: −1 takes all.
            Some(value) if value.as_i64() == Some(-1) => 0,
            Some(value) => {
                let k = value.as_u64().and_then(|k| usize::try_from(k).ok());
                k.ok_or_else(|| wrong("top_k", format!("expected a whole number from 0, or -1 for all, found {}", told(value))))?
            }
        };
        let penalties = Penalties {
            repetition: self.number("repetition_penalty", (0.01, 100.0), 1.0)?,
            presence: self.number("presence_penalty", (-2.0, 2.0), 0.0)?,
            frequency: self.number("frequency_penalty", (-2.0, 2.0), 0.0)?,
            bias: self.bias()?,
        };
        Ok(Sampling {
            temperature: request.temperature.unwrap_or(1.0) as f32,
            top_p: request.top_p.unwrap_or(1.0) as f32,
            top_k,
            min_p: self.number("min_p", (0.0, 1.0), 0.0)?,
            penalties,
            seed: request.seed.map(|seed| seed as u64),
        })
    }

    /// Biases by token id; whether the vocabulary has the tokens is checked where the model is known.
    fn bias(&self) -> Result<Vec<(u32, f32)>, Failure> {
        let Some(value) = self.get("logit_bias") else { return Ok(Vec::new()) };
        let Value::Object(biases) = value else { return Err(wrong("logit_bias", "expected an object".into())) };
        let one = |(key, bias): (&String, &Value)| {
            let id = key.parse::<u32>().map_err(|_| wrong("logit_bias", "a key is not the id of a token".into()))?;
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            let bias = bias.ok_or_else(|| wrong("logit_bias", format!("the bias of {id} is not a number from -100 to 100")))?;
            Ok((id, bias as f32))
        };
        biases.iter().map(one).collect()
    }

    fn logprobs(&self) -> Result<Option<usize>, Failure> {
        let wanted = match self.get("logprobs") {
            None => false,
            Some(Value::Bool(wanted)) => *wanted,
            Some(other) => return Err(wrong("logprobs", format!("expected true or false, found {}", told(other)))),
        };
        let top = match self.get("top_logprobs") {
            None => 0,
            Some(_) if !wanted => return Err(wrong("top_logprobs", "\"logprobs\" must be true when this is set".into())),
            Some(value) => value
                .as_u64()
                .filter(|top| *top <= 20)
                .ok_or_else(|| wrong("top_logprobs", format!("expected a whole number from 0 to 20, found {}", told(value))))?,
        };
        Ok(wanted.then_some(top as usize))
    }
}

/// A value in a message: texts may be long or private.
fn told(value: &Value) -> String {
    match value {
        Value::Number(_) | Value::Bool(_) | Value::Null => value.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

pub(super) fn wrong(field: &str, problem: String) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Asked, Failure> {
        let mut base = json!({"model": "local/m", "messages": []});
        base.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        Asked::of(&serde_json::from_value(base).expect("a request"))
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_name() {
        for (body, field) in [
            (json!({"functions": [{}]}), "functions"),
            (json!({"reasoning_effort": "high"}), "reasoning_effort"),
            (json!({"verbosity": "low"}), "verbosity"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"web_search_options": {"a": 1}}), "web_search_options"),
            (json!({"guided_json": {"type": "object"}}), "guided_json"),
            (json!({"min_tokens": 4}), "min_tokens"),
        ] {
            let failure = read(body).expect_err("must be refused");
            assert_eq!((failure.param().as_deref(), failure.code().name), (Some(field), "unsupported"));
        }
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        for (body, field) in [
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"min_p": 1.1}), "min_p"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"presence_penalty": "1"}), "presence_penalty"),
            (json!({"frequency_penalty": 3}), "frequency_penalty"),
            (json!({"logit_bias": {"hello": 1}}), "logit_bias"),
            (json!({"logit_bias": {"5": 101}}), "logit_bias"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": false, "top_logprobs": 2}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        ] {
            let failure = read(body).expect_err("must be refused");
            assert_eq!((failure.param().as_deref(), failure.code().name), (Some(field), "invalid_value"));
        }
    }

    #[test]
    fn what_changes_no_answer_is_taken() {
        let harmless = json!({"tools": [], "functions": [], "n": 1, "logprobs": false, "presence_penalty": 0, "user": "u", "top_k": -1,
            "response_format": {"type": "text"}, "reasoning_effort": "none", "modalities": ["text"], "audio": null, "store": true});
        let asked = read(harmless).expect("taken");
        assert!(asked.sampling.penalties.is_neutral() && asked.logprobs.is_none() && asked.tools.is_empty());
        assert_eq!(read(json!({"logprobs": true})).expect("taken").logprobs, Some(0));
    }
}
