//! A provider without a model, for tests, examples and trying things out: `mock/echo` answers the last user message, `mock/fixed`
//! the text in the body's `mock.reply`, `mock/fail` an upstream error. `mock.delay_ms` waits before the reply (or its first chunk),
//! `mock.fail_after` breaks a stream after so many words. Usage counts words.

use super::{Call, ModelInfo, Piece, PieceStream, Provider, ProviderError, Reply};
use crate::types::Code;
use crate::types::chat::{ChatChunk, ChatRequest, ChatResponse, Choice, ChunkChoice, Delta, Message, Usage};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use serde_json::Value;
use std::time::Duration;

/// Words of a reply, all choices together: every key may call this provider, and its replies are made at once.
const MAX_WORDS: usize = 100_000;

/// The mock provider.
pub struct Mock;

/// What a call will be answered with.
struct Script {
    id: String,
    model: String,
    /// Words with the white space after them.
    words: Vec<String>,
    finish_reason: &'static str,
    usage: Usage,
    choices: u32,
    fail_after: Option<usize>,
}

impl Provider for Mock {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let script = play(&call).await?;
            let choice = |index| Choice {
                index,
                message: Message::text("assistant", script.words.concat()),
                finish_reason: Some(script.finish_reason.to_string()),
                ..Choice::default()
            };
            Ok(ChatResponse {
                id: script.id.clone(),
                object: "chat.completion".into(),
                created: now_ms() / 1000,
                model: script.model.clone(),
                choices: (0..script.choices).map(choice).collect(),
                usage: Some(script.usage),
                ..ChatResponse::default()
            }
            .into())
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let script = play(&call).await?;
            let pace = Duration::from_millis(option(&call.request, "chunk_delay_ms").unwrap_or(0));
            let chunks = chunks(&script, &call.model);
            let paced = stream::iter(chunks).then(move |chunk| async move {
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
                chunk.map(Piece::from)
            });
            Ok(paced.boxed())
        })
    }

    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        Box::pin(async move { Ok(prompt_words(&call.request)) })
    }

    fn models(&self) -> Vec<ModelInfo> {
        ["echo", "fixed", "fail"].map(|name| ModelInfo { name: name.into(), owner: "refit".into() }).to_vec()
    }
}

/// Waits as asked and makes the script.
async fn play(call: &Call) -> Result<Script, ProviderError> {
    let request = &call.request;
    let reply = match call.model.as_str() {
        "echo" => request.messages.iter().rev().find(|message| message.role == "user").map(Message::plain_text).unwrap_or_default(),
        "fixed" => mock_field(request, "reply").and_then(Value::as_str).unwrap_or("ok").to_string(),
        "fail" => String::new(),
        other => {
            let message = format!("the model \"mock/{other}\" does not exist; there are mock/echo, mock/fixed and mock/fail");
            return Err(ProviderError { param: Some("model".into()), ..ProviderError::new(Code::MODEL_NOT_FOUND, message) });
        }
    };
    tokio::time::sleep(Duration::from_millis(option(request, "delay_ms").unwrap_or(0))).await;
    if call.model == "fail" {
        return Err(ProviderError::new(Code::UPSTREAM, "mock/fail: failed, as it always does"));
    }
    let mut words: Vec<_> = reply.split_inclusive(char::is_whitespace).map(str::to_string).collect();
    let limit = request.token_limit().map_or(usize::MAX, |limit| limit as usize);
    let finish_reason = if words.len() > limit { "length" } else { "stop" };
    words.truncate(limit);
    let reply_words = words.concat().split_whitespace().count() as u64;
    let choices = request.n.unwrap_or(1);
    if words.len().saturating_mul(choices as usize) > MAX_WORDS {
        return Err(ProviderError::new(Code::INVALID_VALUE, format!("mock replies have at most {MAX_WORDS} words over all choices")));
    }
    Ok(Script {
        id: new_id("chatcmpl").replace('_', "-"),
        model: format!("mock/{}", call.model),
        words,
        finish_reason,
        usage: Usage::new(prompt_words(request), reply_words * u64::from(choices)),
        choices,
        fail_after: option(request, "fail_after").and_then(|n| usize::try_from(n).ok()),
    })
}

fn chunks(script: &Script, model: &str) -> Vec<Result<ChatChunk, ProviderError>> {
    let created = now_ms() / 1000;
    let chunk = |choices| ChatChunk {
        id: script.id.clone(),
        object: "chat.completion.chunk".into(),
        created,
        model: script.model.clone(),
        choices,
        ..ChatChunk::default()
    };
    let each = |delta: &Delta, finish: Option<&str>| {
        let choice =
            |index| ChunkChoice { index, delta: delta.clone(), finish_reason: finish.map(str::to_string), ..ChunkChoice::default() };
        Ok(chunk((0..script.choices).map(choice).collect()))
    };
    let content = |word: &String| each(&Delta { content: Some(word.clone()), ..Delta::default() }, None);
    let role = Delta { role: Some("assistant".into()), content: Some(String::new()), ..Delta::default() };
    let mut all = vec![each(&role, None)];
    all.extend(script.words.iter().take(script.fail_after.unwrap_or(usize::MAX)).map(content));
    if script.fail_after.is_some() {
        all.push(Err(ProviderError::new(Code::UPSTREAM, format!("mock/{model}: the stream broke, as asked"))));
        return all;
    }
    all.push(each(&Delta::default(), Some(script.finish_reason)));
    all.push(Ok(ChatChunk { usage: Some(script.usage.clone()), ..chunk(Vec::new()) }));
    all
}

fn prompt_words(request: &ChatRequest) -> u64 {
    request.messages.iter().map(|message| message.plain_text().split_whitespace().count() as u64).sum()
}

fn mock_field<'r>(request: &'r ChatRequest, name: &str) -> Option<&'r Value> {
    request.extra.get("mock")?.get(name)
}

fn option(request: &ChatRequest, name: &str) -> Option<u64> {
    mock_field(request, name).and_then(Value::as_u64)
}
