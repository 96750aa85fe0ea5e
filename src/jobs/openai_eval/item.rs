//! One item of a run: asked where the source says so, graded by every criterion, and written as an output item.

use super::ask::{Asker, NoAnswer};
use super::source::{Asking, Item};
use crate::evals::graders::{Grade, Grader, How, ModelGrader, template};
use crate::evals::scorers::cosine;
use crate::guardrails::schema::{Format, faults};
use crate::store::openai_evals::{EvalAnswerRow, EvalItemRow};
use crate::types::Code;
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What makes vectors for `cosine`.
const EMBEDDER: &str = "local/all-minilm-l6-v2";

/// Everything that items of a run share.
pub(super) struct Bench {
    graders: Vec<Grader>,
    asking: Option<Asking>,
    schema: Option<Format>,
    asker: Asker,
    /// Answers that are not graded yet: those that an earlier execution left, and those under way.
    ungraded: Mutex<HashMap<u64, (Value, Value)>>,
}

/// Why an item has no grade.
struct Trouble {
    code: String,
    message: String,
}

impl Bench {
    /// With the answers that an earlier execution left.
    pub(super) fn new(
        graders: Vec<Grader>,
        (asking, schema): (Option<Asking>, Option<Format>),
        asker: Asker,
        kept: Vec<EvalAnswerRow>,
    ) -> Self {
        let ungraded = kept.into_iter().map(|answer| (answer.number, (answer.sample, answer.shown))).collect();
        Bench { graders, asking, schema, asker, ungraded: Mutex::new(ungraded) }
    }

    /// Answers that nobody graded.
    pub(super) fn ungraded(&self) -> Vec<EvalAnswerRow> {
        let row = |(number, (sample, shown)): (&u64, &(Value, Value))| EvalAnswerRow {
            number: *number,
            sample: sample.clone(),
            shown: shown.clone(),
        };
        self.lock().iter().map(row).collect()
    }

    /// Items whose outcome is stored.
    pub(super) fn graded(&self, numbers: &[u64]) {
        let mut ungraded = self.lock();
        numbers.iter().for_each(|number| drop(ungraded.remove(number)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Value, Value)>> {
        self.ungraded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome of an item; none where the run was halted before there was one.
    pub(super) async fn outcome(&self, number: u64, item: Item) -> Option<EvalItemRow> {
        let mut space = json!({"item": item.item});
        let mut told = json!({});
        let kept = self.lock().get(&number).cloned();
        let found = match kept {
            // It was asked before, and only its grades are missing.
            Some(kept) => Ok(Some(kept)),
            None => self.sample(&space, item.sample).await,
        };
        if let (Some(_), Ok(Some(answered))) = (&self.asking, &found) {
            self.lock().insert(number, answered.clone());
        }
        let graded = match found {
            Err(NoAnswer::Halted) => return None,
            Err(NoAnswer::Failed(code, message)) => Err(Trouble { code, message }),
            Ok(sample) => {
                if let Some((sample, shown)) = sample {
                    space["sample"] = sample;
                    told = shown;
                }
                match self.grades(&space).await {
                    Err(NoAnswer::Halted) => return None,
                    Err(NoAnswer::Failed(code, message)) => Err(Trouble { code, message }),
                    Ok(results) => Ok(results),
                }
            }
        };
        let item = space["item"].take();
        let (status, results, error) = match graded {
            Ok(results) if results.iter().all(|result| result["passed"] == true) => ("pass", results, Value::Null),
            Ok(results) => ("fail", results, Value::Null),
            Err(trouble) => ("error", Vec::new(), json!({"code": trouble.code, "message": trouble.message})),
        };
        let sample = self.written(told, error);
        Some(EvalItemRow { number, status: status.into(), item, results: results.into(), sample, created_at: now_ms() })
    }

    /// What graders see as `sample`, and what is shown of it; none where there is none.
    async fn sample(&self, space: &Value, given: Option<Value>) -> Result<Option<(Value, Value)>, NoAnswer> {
        if let Some(format) = &self.schema {
            let text = space["item"].to_string();
            if let Some(fault) = faults(&text, format).first() {
                let message = format!("item{}: does not fit item_schema: {}", fault.path, fault.message);
                return Err(NoAnswer::Failed("invalid_item".into(), message));
            }
        }
        let Some(asking) = &self.asking else {
            return Ok(given.map(|given| {
                let sample = seen(&given);
                let shown = json!({"input": [], "output": [{"role": "assistant", "content": sample["output_text"]}]});
                (sample, shown)
            }));
        };
        let request = asking.request(space).map_err(|message| NoAnswer::Failed("invalid_item".into(), message))?;
        let reply = self.asker.chat(&request).await?;
        let sample = seen(&reply);
        let shown = shown(&request, &reply);
        Ok(Some((sample, shown)))
    }

    async fn grades(&self, space: &Value) -> Result<Vec<Value>, NoAnswer> {
        let mut results = Vec::with_capacity(self.graders.len());
        for grader in &self.graders {
            let named = |message: String| NoAnswer::Failed("grader_error".into(), format!("criterion \"{}\": {message}", grader.name));
            let grade = match &grader.how {
                How::Text(text) => text.grade(space).await.map_err(named)?,
                How::Meaning { input, reference, threshold } => {
                    let texts = [template::render(input, space).map_err(named)?, template::render(reference, space).map_err(named)?];
                    self.meaning(&texts, *threshold).await.map_err(|error| of_grader(error, &named))?
                }
                How::Model(model) => self.judged(model, space).await.map_err(|error| of_grader(error, &named))?,
            };
            results.push(grade.to_json(grader));
        }
        Ok(results)
    }

    async fn meaning(&self, texts: &[String; 2], threshold: f64) -> Result<Grade, NoAnswer> {
        // Providers refuse empty texts.
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Ok(Grade { score: 0.0, passed: threshold <= 0.0, sample: None });
        }
        let vectors = self.asker.embed(EMBEDDER, &[&texts[0], &texts[1]]).await.map_err(may_not_embed)?;
        let score = cosine(&vectors[0], &vectors[1]);
        let score = score.ok_or_else(|| NoAnswer::Failed("grader_error".into(), "the vectors cannot be compared".into()))?;
        Ok(Grade { score, passed: score >= threshold, sample: None })
    }

    async fn judged(&self, model: &ModelGrader, space: &Value) -> Result<Grade, NoAnswer> {
        let failed = |message: String| NoAnswer::Failed("grader_error".into(), message);
        let mut request = model.request(space, true).map_err(failed)?;
        let reply = match self.asker.chat(&request).await {
            // A provider that knows no formats is asked in words alone.
            Err(NoAnswer::Failed(_, message)) if message.contains("response_format") => {
                request = model.request(space, false).map_err(failed)?;
                self.asker.chat(&request).await?
            }
            other => other?,
        };
        let answer = reply.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap_or_default();
        let grade = model.read(answer).map_err(failed)?;
        Ok(ModelGrader::grade(grade, shown(&request, &reply)))
    }

    /// An output item's `sample`: what was asked and answered, with the parameters as numbers, whether or not they were set.
    fn written(&self, told: Value, error: Value) -> Value {
        let set = |name: &str| self.asking.as_ref().and_then(|asking| asking.sampling(name)).filter(|value| value.is_number()).cloned();
        let mut sample = json!({
            "input": [], "output": [], "finish_reason": "", "model": self.asking.as_ref().map_or("", Asking::model),
            "usage": {"total_tokens": 0, "completion_tokens": 0, "prompt_tokens": 0, "cached_tokens": 0},
            "temperature": set("temperature").unwrap_or_else(|| json!(1.0)), "top_p": set("top_p").unwrap_or_else(|| json!(1.0)),
            "max_completion_tokens": set("max_completion_tokens").unwrap_or_else(|| json!(0)), "seed": set("seed").unwrap_or_else(|| json!(0)),
        });
        let (Value::Object(sample_fields), Value::Object(told)) = (&mut sample, told) else { return sample };
        sample_fields.extend(told);
        sample_fields.insert("error".into(), error);
        sample
    }
}

/// Why there are no vectors, with what to do about it: it is the key of the run that asks for them.
fn may_not_embed(error: NoAnswer) -> NoAnswer {
    match error {
        NoAnswer::Failed(code, message) if [Code::FORBIDDEN.name, Code::MODEL_NOT_FOUND.name].contains(&code.as_str()) => {
            let why = "cosine calls this model with the key that made the run; the key must be allowed to call it, and it must be stored";
            NoAnswer::Failed(
                code,
                format!("{EMBEDDER}: {message} ({why}: refit key update --route {EMBEDDER}, refit model pull all-minilm-l6-v2)"),
            )
        }
        error => error,
    }
}

fn of_grader(error: NoAnswer, named: &dyn Fn(String) -> NoAnswer) -> NoAnswer {
    match error {
        NoAnswer::Failed(_, message) => named(message),
        NoAnswer::Halted => NoAnswer::Halted,
    }
}

/// A completion as templates see it: its own fields, and `output_text`, `output_json`, `output_tools`.
fn seen(completion: &Value) -> Value {
    let mut sample = completion.as_object().cloned().unwrap_or_default();
    let message = completion.pointer("/choices/0/message");
    let text = message.and_then(|message| message["content"].as_str());
    let text = text.or_else(|| completion["output_text"].as_str()).unwrap_or_default().to_string();
    let derived = [
        ("output_json", serde_json::from_str::<Value>(&text).unwrap_or_default()),
        (
            "output_tools",
            message.map(|message| message["tool_calls"].clone()).filter(|calls| calls.is_array()).unwrap_or_else(|| json!([])),
        ),
        ("output_text", Value::String(text)),
    ];
    for (name, value) in derived {
        if sample.get(name).is_none_or(Value::is_null) {
            sample.insert(name.into(), value);
        }
    }
    Value::Object(sample)
}

/// What is shown of a call: texts, why it ended, what it used.
fn shown(request: &Value, reply: &Value) -> Value {
    let text = |content: &Value| {
        content.as_str().map_or_else(|| if content.is_null() { String::new() } else { content.to_string() }, String::from)
    };
    let message = |message: &Value| json!({"role": message["role"], "content": text(&message["content"])});
    let input: Vec<Value> = request["messages"].as_array().into_iter().flatten().map(message).collect();
    let answer = &reply["choices"][0]["message"];
    let mut output = message(answer);
    if answer["tool_calls"].is_array() {
        output["tool_calls"] = answer["tool_calls"].clone();
    }
    let number = |pointer: &str| reply.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let usage = Map::from_iter([
        ("total_tokens".to_string(), number("/usage/total_tokens").into()),
        ("completion_tokens".to_string(), number("/usage/completion_tokens").into()),
        ("prompt_tokens".to_string(), number("/usage/prompt_tokens").into()),
        ("cached_tokens".to_string(), number("/usage/prompt_tokens_details/cached_tokens").into()),
    ]);
    json!({"input": input, "output": [output], "finish_reason": reply["choices"][0]["finish_reason"].as_str().unwrap_or_default(),
        "model": reply["model"].as_str().unwrap_or_default(), "usage": usage})
}
