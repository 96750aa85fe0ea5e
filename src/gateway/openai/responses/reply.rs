//! A chat completion written as a response object.

use super::seal;
use crate::types::chat::{ChatResponse, Choice, Usage};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use crate::types::told::NamedPrompt;
use serde_json::{Map, Value, json};

/// Fields that a response repeats from its request, with their values where the request had none.
const ECHOED: &[(&str, &str)] = &[
    ("background", "false"),
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("max_tool_calls", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("previous_response_id", "null"),
    ("prompt", "null"),
    ("reasoning", "{\"effort\": null, \"summary\": null}"),
    ("safety_identifier", "null"),
    ("service_tier", "\"default\""),
    ("temperature", "1.0"),
    ("text", "{\"format\": {\"type\": \"text\"}}"),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("top_p", "1.0"),
    ("truncation", "\"disabled\""),
    ("user", "null"),
];

/// Everything of a response that is known before it is answered.
#[derive(Clone)]
pub(super) struct Frame {
    id: String,
    created_at: i64,
    /// What the caller calls the model.
    pub(super) asked_model: String,
    echoed: Map<String, Value>,
}

impl Frame {
    pub(super) fn new(mut request: Map<String, Value>, asked_model: &str) -> Self {
        let mut echoed = Map::new();
        for (name, default) in ECHOED {
            let default = || serde_json::from_str(default).expect("the defaults of this file are JSON");
            echoed.insert((*name).into(), request.shift_remove(*name).unwrap_or_else(default));
        }
        for tool in echoed.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            // Fields that a function always has in a response.
            tool.entry("parameters").or_insert(Value::Null);
            tool.entry("strict").or_insert(false.into());
        }
        Frame { id: new_id("resp"), created_at: now_ms() / 1000, asked_model: asked_model.into(), echoed }
    }

    /// The response object in one of its states.
    pub(super) fn object(&self, status: &str, model: &str, output: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::from_iter([
            ("id".to_string(), json!(self.id)),
            ("object".to_string(), json!("response")),
            ("created_at".to_string(), json!(self.created_at)),
            ("status".to_string(), json!(status)),
            ("error".to_string(), Value::Null),
            ("incomplete_details".to_string(), Value::Null),
            ("model".to_string(), json!(model)),
            ("output".to_string(), output.into()),
            ("usage".to_string(), Value::Null),
            // Nothing is kept.
            ("store".to_string(), json!(false)),
        ]);
        object.extend(self.echoed.clone());
        object
    }

    /// The response object of an answer, by why it ended.
    pub(super) fn ended(&self, model: &str, finish: &str, output: Vec<Value>, usage: Option<&Usage>) -> Value {
        let reason = cut(finish);
        let mut object = self.object(if reason.is_some() { "incomplete" } else { "completed" }, model, output);
        if let Some(reason) = reason {
            object.insert("incomplete_details".into(), json!({"reason": reason}));
        } else {
            object.insert("completed_at".into(), json!(now_ms() / 1000));
        }
        object.insert("usage".into(), usage.map_or(Value::Null, self::usage));
        object.into()
    }

    /// Says which version of the prompt was rendered.
    pub(super) fn rendered(&mut self, prompt: Option<&NamedPrompt>) {
        if let (Some(prompt), Some(echoed)) = (prompt, self.echoed.get_mut("prompt").filter(|echoed| echoed.is_object())) {
            echoed["version"] = prompt.version.to_string().into();
        }
    }

    /// The response object of a whole answer.
    pub(super) fn of_chat(&self, response: &ChatResponse) -> Value {
        let nothing = Choice::default();
        let choice = response.choices.first().unwrap_or(&nothing);
        let finish = choice.finish_reason.as_deref().unwrap_or("stop");
        self.ended(&response.model, finish, self.output(choice), response.usage.as_ref())
    }

    fn output(&self, choice: &Choice) -> Vec<Value> {
        let extra = &choice.message.extra;
        let text = |name: &str| extra.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let calls = extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        let calls: Vec<_> = calls.map(|call| (call_id(call), call)).collect();
        let mut signed = seal::of_message(extra);
        signed.extend(calls.iter().filter_map(|(id, call)| seal::of_call(id, call)));
        let mut output = Vec::new();
        let summary = text("reasoning_content").or_else(|| text("reasoning"));
        if summary.is_some() || !signed.is_empty() {
            output.push(reasoning(&new_id("rs"), summary.unwrap_or_default(), &signed));
        }
        let mut parts = Vec::new();
        let said = choice.message.plain_text();
        if !said.is_empty() {
            parts.push(output_text(&said, logprobs(choice.extra.get("logprobs"))));
        }
        if let Some(refusal) = text("refusal") {
            parts.push(json!({"type": "refusal", "refusal": refusal}));
        }
        if parts.is_empty() && calls.is_empty() {
            parts.push(output_text("", Vec::new()));
        }
        if !parts.is_empty() {
            output.push(message(&new_id("msg"), "completed", parts));
        }
        for (id, call) in &calls {
            let text = |pointer: &str| call.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            output.push(function_call(&new_id("fc"), "completed", [id, text("/function/name"), text("/function/arguments")]));
        }
        // What was being written when the answer was cut.
        if choice.finish_reason.as_deref().and_then(cut).is_some()
            && let Some(last) = output.last_mut()
        {
            last["status"] = "incomplete".into();
        }
        output
    }
}

/// Why a response is incomplete, by why its answer ended.
pub(super) fn cut(finish: &str) -> Option<&'static str> {
    match finish {
        "length" => Some("max_output_tokens"),
        "content_filter" => Some("content_filter"),
        _ => None,
    }
}

/// The id of a call; one of our own where the provider gave none, because its output has to name it.
pub(super) fn call_id(call: &Value) -> String {
    let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
    id.map_or_else(|| new_id("call"), str::to_string)
}

/// A reasoning item. What is signed comes sealed, asked for or not: nothing is kept here, and the next turn needs it.
pub(super) fn reasoning(id: &str, summary: &str, signed: &[Value]) -> Value {
    let parts = if summary.is_empty() { Vec::new() } else { vec![json!({"type": "summary_text", "text": summary})] };
    let mut item = json!({"id": id, "type": "reasoning", "summary": parts});
    if let Some(sealed) = seal::sealed(signed) {
        item["encrypted_content"] = sealed.into();
    }
    item
}

/// A message item.
pub(super) fn message(id: &str, status: &str, parts: Vec<Value>) -> Value {
    json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": parts})
}

/// A text part.
pub(super) fn output_text(text: &str, logprobs: Vec<Value>) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

/// A function call item; `call` is its id, name and arguments.
pub(super) fn function_call(id: &str, status: &str, call: [&str; 3]) -> Value {
    json!({"id": id, "type": "function_call", "status": status, "call_id": call[0], "name": call[1], "arguments": call[2]})
}

/// A chat's logprobs as a text part has them.
pub(super) fn logprobs(chat: Option<&Value>) -> Vec<Value> {
    let rows = chat.and_then(|logprobs| logprobs.get("content")).and_then(Value::as_array);
    let bytes = |row: &Value| match row.get("bytes") {
        Some(bytes @ Value::Array(_)) => bytes.clone(),
        _ => json!(row.get("token").and_then(Value::as_str).unwrap_or_default().as_bytes()),
    };
    let one = |row: &Value| json!({"token": row["token"], "logprob": row["logprob"], "bytes": bytes(row)});
    let whole = |row: &Value| {
        let mut written = one(row);
        let tops = row.get("top_logprobs").and_then(Value::as_array).into_iter().flatten();
        written["top_logprobs"] = tops.map(one).collect::<Vec<_>>().into();
        written
    };
    rows.into_iter().flatten().map(whole).collect()
}

fn usage(usage: &Usage) -> Value {
    let written = usage.detail("prompt_tokens_details", "cache_creation_tokens");
    let written = written.or_else(|| usage.detail("prompt_tokens_details", "cache_write_tokens")).unwrap_or(0);
    json!({"input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens().unwrap_or(0), "cache_write_tokens": written},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens().unwrap_or(0)},
        "total_tokens": usage.total_tokens})
}
