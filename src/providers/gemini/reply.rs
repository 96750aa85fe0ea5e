//! What `generateContent` answers, read as a chat completion; each event of its stream is such an answer with what is new. Thoughts
//! become `reasoning_content`, a function call's signature stays with the call, and parts that chat completions do not know stay in
//! `content_blocks`.

use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Content, Delta, Message, Usage};
use crate::types::ids::new_id;
use crate::types::messages::NATIVE_REASON;
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The completion.
///
/// # Errors
/// What is missing in a body that is no answer.
pub(super) fn to_chat(answer: &Value, model: &str) -> Result<ChatResponse, String> {
    let mut reader = Reader::new(model);
    let mut choices: BTreeMap<u32, Choice> = BTreeMap::new();
    for chunk in reader.event(answer) {
        for piece in chunk.choices {
            let choice = choices.entry(piece.index).or_insert_with(|| Choice { index: piece.index, ..Choice::default() });
            whole(choice, piece);
        }
    }
    if choices.is_empty() {
        return Err("the reply has no candidates".into());
    }
    let mut extra = Map::new();
    for field in ["promptFeedback", "modelVersion"] {
        if let Some(value) = answer.get(field) {
            extra.insert(field.into(), value.clone());
        }
    }
    let usage = reader.usage();
    Ok(ChatResponse {
        id: reader.frame.id,
        object: "chat.completion".into(),
        created: reader.frame.created,
        model: reader.frame.model,
        choices: choices.into_values().collect(),
        usage,
        extra,
    })
}

fn whole(choice: &mut Choice, piece: ChunkChoice) {
    let Message { role, content, extra } = &mut choice.message;
    *role = "assistant".into();
    if let Some(text) = piece.delta.content
        && !(text.is_empty() && piece.delta.extra.contains_key("tool_calls"))
    {
        *content = Some(Content::Text(text));
    }
    extra.extend(piece.delta.extra);
    // Positions are a stream's.
    for call in extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        call.as_object_mut().map(|call| call.shift_remove("index"));
    }
    choice.finish_reason = piece.finish_reason.or(choice.finish_reason.take());
    choice.extra.extend(piece.extra);
}

/// Reads the answers of one reply in order.
pub(super) struct Reader {
    frame: ChatChunk,
    /// Calls so far, a candidate.
    calls: BTreeMap<u32, u32>,
    counts: Option<Value>,
    whole: bool,
}

impl Reader {
    pub(super) fn new(model: &str) -> Self {
        let frame = ChatChunk {
            id: new_id("chatcmpl").replace('_', "-"),
            object: "chat.completion.chunk".into(),
            created: now_ms() / 1000,
            model: model.to_string(),
            ..ChatChunk::default()
        };
        Reader { frame, calls: BTreeMap::new(), counts: None, whole: false }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// One answer: a chunk with what its candidates add, and the counts, which each answer repeats.
    pub(super) fn event(&mut self, answer: &Value) -> Vec<ChatChunk> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        if let Some(id) = text("responseId") {
            self.frame.id = id.to_string();
        }
        if let Some(counts) = answer.get("usageMetadata") {
            self.counts = Some(counts.clone());
        }
        let candidates = answer.get("candidates").and_then(Value::as_array).into_iter().flatten();
        let mut choices: Vec<_> = candidates.map(|candidate| self.choice(candidate)).collect();
        // A prompt that was refused has no candidates, only a reason.
        if let Some(reason) = answer.pointer("/promptFeedback/blockReason").filter(|_| choices.is_empty()) {
            self.whole = true;
            let extra = Map::from_iter([(NATIVE_REASON.to_string(), reason.clone())]);
            let delta = Delta { content: Some(String::new()), ..Delta::default() };
            choices.push(ChunkChoice { delta, finish_reason: Some("content_filter".into()), extra, ..ChunkChoice::default() });
        }
        if choices.is_empty() && self.counts.is_none() {
            return Vec::new();
        }
        vec![ChatChunk { choices, usage: self.usage(), ..self.frame.clone() }]
    }

    fn choice(&mut self, candidate: &Value) -> ChunkChoice {
        let index = candidate.get("index").and_then(Value::as_u64).and_then(|index| u32::try_from(index).ok()).unwrap_or(0);
        let parts = candidate.pointer("/content/parts").and_then(Value::as_array).into_iter().flatten();
        let (mut text, mut thoughts, mut calls, mut others) = (String::new(), String::new(), Vec::new(), Vec::new());
        for part in parts {
            match (part.get("text").and_then(Value::as_str), part.get("functionCall")) {
                (Some(words), _) if part["thought"] == true => thoughts.push_str(words),
                (Some(words), _) => text.push_str(words),
                (_, Some(call)) => calls.push(self.call(index, call, part.get("thoughtSignature"))),
                _ => others.push(part.clone()),
            }
        }
        let called = self.calls.contains_key(&index);
        let mut delta = Delta { content: Some(text), ..Delta::default() };
        if !thoughts.is_empty() {
            delta.extra.insert("reasoning_content".into(), thoughts.into());
        }
        for (name, list) in [("tool_calls", calls), ("content_blocks", others)] {
            if !list.is_empty() {
                delta.extra.insert(name.into(), list.into());
            }
        }
        let mut choice = ChunkChoice { index, delta, ..ChunkChoice::default() };
        if let Some(native) = candidate.get("finishReason").and_then(Value::as_str) {
            self.whole = true;
            choice.finish_reason = Some(if called && native == "STOP" { "tool_calls" } else { finish_reason(native) }.into());
            choice.extra.insert(NATIVE_REASON.into(), native.into());
        }
        for (theirs, ours) in
            [("safetyRatings", "safety_ratings"), ("citationMetadata", "citation_metadata"), ("groundingMetadata", "grounding_metadata")]
        {
            if let Some(value) = candidate.get(theirs) {
                choice.extra.insert(ours.into(), value.clone());
            }
        }
        if let Some(result) = candidate.get("logprobsResult") {
            choice.extra.insert("logprobs".into(), logprobs(result));
        }
        choice
    }

    fn call(&mut self, candidate: u32, call: &Value, signature: Option<&Value>) -> Value {
        let number = self.calls.entry(candidate).or_insert(0);
        let id = call.get("id").and_then(Value::as_str).map_or_else(|| new_id("call"), str::to_string);
        let arguments = call.get("args").map_or_else(|| "{}".to_string(), Value::to_string);
        let mut written =
            json!({"index": *number, "id": id, "type": "function", "function": {"name": call["name"], "arguments": arguments}});
        if let Some(signature) = signature {
            written["extra_content"] = json!({"google": {"thought_signature": signature}});
        }
        *number += 1;
        written
    }

    fn usage(&self) -> Option<Usage> {
        let counts = self.counts.as_ref()?;
        let count = |name: &str| counts.get(name).and_then(Value::as_u64);
        let thoughts = count("thoughtsTokenCount");
        let prompt = count("promptTokenCount").unwrap_or(0) + count("toolUsePromptTokenCount").unwrap_or(0);
        let mut usage = Usage::new(prompt, count("candidatesTokenCount").unwrap_or(0) + thoughts.unwrap_or(0));
        if let Some(cached) = count("cachedContentTokenCount") {
            usage.set_detail("prompt_tokens_details", "cached_tokens", cached);
        }
        if let Some(thoughts) = thoughts {
            usage.set_detail("completion_tokens_details", "reasoning_tokens", thoughts);
        }
        Some(usage)
    }
}

fn finish_reason(native: &str) -> &'static str {
    match native {
        "MAX_TOKENS" => "length",
        "SAFETY" | "RECITATION" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "MODEL_ARMOR" => "content_filter",
        image if image.starts_with("IMAGE_") => "content_filter",
        _ => "stop",
    }
}

/// `logprobsResult` in OpenAI's shape; the bytes of a token are those of its text.
fn logprobs(result: &Value) -> Value {
    let one = |candidate: &Value| {
        let token = candidate.get("token").and_then(Value::as_str).unwrap_or_default();
        json!({"token": token, "logprob": candidate.get("logProbability"), "bytes": token.as_bytes()})
    };
    let tops = result.get("topCandidates").and_then(Value::as_array);
    let chosen = result.get("chosenCandidates").and_then(Value::as_array).into_iter().flatten().enumerate();
    let content = chosen.map(|(i, candidate)| {
        let tops = tops.and_then(|tops| tops.get(i)).and_then(|top| top.get("candidates")).and_then(Value::as_array);
        let mut entry = one(candidate);
        entry["top_logprobs"] = tops.into_iter().flatten().map(one).collect::<Vec<_>>().into();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
