//! `POST /v1/completions`, the older API: the prompt is sent as one user message, whatever the provider, and the reply written back
//! in the older shape. Several prompts in one call, token ids, `suffix` and `best_of` have no such counterpart and are refused.

use super::check;
use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::sse::{Encode, data};
use crate::gateway::{Gateway, answer};
use crate::inference::AnswerStream;
use crate::providers::Piece;
use crate::types::Failure;
use crate::types::chat::{ChatResponse, Choice};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

/// The handler.
pub async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let entry = Entry::of(&gateway, request, "completions")?;
    let (gateway, ask, check::Completion { chat, echo }) = entry.read(|fields, _| check::completion(fields)).await?;
    let encoder = Texts { wants_usage: chat.wants_usage(), echo: echo.clone(), begun: Vec::new() };
    let whole = move |answer: crate::inference::Answer| whole(&answer.response, echo.as_deref().unwrap_or(""));
    answer::chat(&gateway, ask, chat, whole, encoder).await.map_err(|ApiError(failure)| check::completion_names().told(failure).into())
}

fn whole(response: &ChatResponse, echo: &str) -> Value {
    let choice = |choice: &Choice| {
        json!({"text": format!("{echo}{}", choice.message.plain_text()), "index": choice.index,
            "logprobs": logprobs(choice.extra.get("logprobs")), "finish_reason": choice.finish_reason})
    };
    let mut body = json!({"id": response.id, "object": "text_completion", "created": response.created, "model": response.model,
        "choices": response.choices.iter().map(choice).collect::<Vec<_>>()});
    if let Some(usage) = &response.usage {
        body["usage"] = json!(usage);
    }
    if let Some(fingerprint) = response.extra.get("system_fingerprint") {
        body["system_fingerprint"] = fingerprint.clone();
    }
    body
}

/// A chat's logprobs as the older API has them: columns instead of rows.
fn logprobs(chat: Option<&Value>) -> Value {
    let Some(rows) = chat.and_then(|logprobs| logprobs.get("content")).and_then(Value::as_array) else { return Value::Null };
    let column = |name: &str| rows.iter().map(|row| row.get(name).cloned().unwrap_or(Value::Null)).collect::<Vec<_>>();
    let top = |row: &Value| {
        let tops = row.get("top_logprobs").and_then(Value::as_array).into_iter().flatten();
        let pair = |top: &Value| Some((top.get("token")?.as_str()?.to_string(), top.get("logprob")?.clone()));
        Value::Object(tops.filter_map(pair).collect::<Map<_, _>>())
    };
    let mut offset = 0;
    let offsets = rows.iter().map(|row| {
        let at = offset;
        offset += row.get("token").and_then(Value::as_str).map_or(0, |token| token.chars().count());
        at
    });
    json!({"text_offset": offsets.collect::<Vec<_>>(), "tokens": column("token"), "token_logprobs": column("logprob"),
        "top_logprobs": rows.iter().map(top).collect::<Vec<_>>()})
}

/// `data: {text_completion}` with what is new, `data: [DONE]`.
struct Texts {
    wants_usage: bool,
    echo: Option<String>,
    /// Choices that have been given their prompt.
    begun: Vec<u32>,
}

impl Encode for Texts {
    fn piece(&mut self, piece: Piece) -> String {
        let Some(chunk) = piece.chunk else { return String::new() };
        let mut choices = Vec::new();
        for choice in chunk.choices {
            let mut text = choice.delta.content.unwrap_or_default();
            if let Some(echo) = self.echo.as_ref().filter(|_| !self.begun.contains(&choice.index)) {
                text.insert_str(0, echo);
            }
            if !self.begun.contains(&choice.index) {
                self.begun.push(choice.index);
            }
            if !text.is_empty() || choice.finish_reason.is_some() {
                let logprobs = logprobs(choice.extra.get("logprobs"));
                choices.push(json!({"text": text, "index": choice.index, "logprobs": logprobs, "finish_reason": choice.finish_reason}));
            }
        }
        if choices.is_empty() {
            return String::new();
        }
        data(&json!({"id": chunk.id, "object": "text_completion", "created": chunk.created, "model": chunk.model, "choices": choices}))
    }

    fn end(&mut self, stream: &AnswerStream) -> String {
        let usage = stream.usage_chunk().filter(|_| self.wants_usage).map(|mut chunk| {
            chunk.object = "text_completion".into();
            data(&chunk)
        });
        format!("{}data: [DONE]\n\n", usage.unwrap_or_default())
    }

    fn failed(&mut self, failure: &Failure) -> String {
        let (param, message) = check::completion_names().words(failure);
        let code = failure.code();
        data(&json!({"error": {"message": message, "type": code.kind, "param": param, "code": code.name}}))
    }
}
