//! What `generateContent` answers, read as a chat completion; each event of its stream is such an answer with what is new. Thoughts
//! become `reasoning_content`, a signature stays with its call or its message in `extra_content` (where Google's own OpenAI surface has
//! it), parts that chat completions do not know stay in `content_blocks`, and fields that are not read here keep their names.

use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Content, Delta, Message, Usage};
use crate::types::ids::new_id;
use crate::types::messages::{BLOCKS, NATIVE_REASON};
use crate::types::time::now_ms;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Reasons to stop that are a failure: what came before is no answer.
const FAILED: [&str; 5] =
    ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE"];
/// Fields of an answer that have another place in a chat completion.
const READ: [&str; 3] = ["candidates", "usageMetadata", "responseId"];
/// Fields of a candidate that have another place, or another name.
const READ_OF_CANDIDATE: [&str; 4] = ["content", "finishReason", "index", "logprobsResult"];
const RENAMED: [(&str, &str); 3] =
    [("safetyRatings", "safety_ratings"), ("citationMetadata", "citation_metadata"), ("groundingMetadata", "grounding_metadata")];
/// Counts that chat completions have another name for.
const COUNTS: [&str; 6] = [
    "promptTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "totalTokenCount",
];

/// The completion.
///
/// # Errors
/// What is missing in a body that is no answer, or why it failed.
pub(super) fn to_chat(answer: &Value, model: &str) -> Result<ChatResponse, String> {
    let mut reader = Reader::new(model);
    let mut choices: BTreeMap<u32, Choice> = BTreeMap::new();
    let mut extra = Map::new();
    for chunk in reader.event(answer)? {
        extra.extend(chunk.extra);
        for piece in chunk.choices {
            let choice = choices.entry(piece.index).or_insert_with(|| Choice { index: piece.index, ..Choice::default() });
            whole(choice, piece);
        }
    }
    if choices.is_empty() {
        return Err("the reply has no candidates".into());
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
    for list in ["tool_calls", BLOCKS] {
        for entry in extra.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            entry.as_object_mut().map(|entry| entry.shift_remove("index"));
        }
    }
    choice.finish_reason = piece.finish_reason.or(choice.finish_reason.take());
    choice.extra.extend(piece.extra);
}

/// Reads the answers of one reply in order.
pub(super) struct Reader {
    frame: ChatChunk,
    candidates: BTreeMap<u32, Candidate>,
    counts: Option<Value>,
    /// Fields of the answer that were handed out already; each event repeats them.
    told: Map<String, Value>,
    /// The prompt was refused.
    blocked: bool,
}

/// What has been read of one candidate.
#[derive(Default)]
struct Candidate {
    calls: u32,
    parts: u32,
    signed: bool,
    finished: bool,
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
        Reader { frame, candidates: BTreeMap::new(), counts: None, told: Map::new(), blocked: false }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.blocked || (!self.candidates.is_empty() && self.candidates.values().all(|candidate| candidate.finished))
    }

    /// One answer: a chunk with what its candidates add, and the counts, which each answer repeats.
    ///
    /// # Errors
    /// Why a candidate failed.
    pub(super) fn event(&mut self, answer: &Value) -> Result<Vec<ChatChunk>, String> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        if let Some(id) = text("responseId") {
            self.frame.id = id.to_string();
        }
        if let Some(counts) = answer.get("usageMetadata") {
            self.counts = Some(counts.clone());
        }
        let candidates = answer.get("candidates").and_then(Value::as_array).into_iter().flatten();
        let mut choices = candidates.map(|candidate| self.choice(candidate)).collect::<Result<Vec<_>, _>>()?;
        // A prompt that was refused has no candidates, only a reason.
        if let Some(reason) = answer.pointer("/promptFeedback/blockReason").filter(|_| choices.is_empty()) {
            self.blocked = true;
            let extra = Map::from_iter([(NATIVE_REASON.to_string(), reason.clone())]);
            let delta = Delta { content: Some(String::new()), ..Delta::default() };
            choices.push(ChunkChoice { delta, finish_reason: Some("content_filter".into()), extra, ..ChunkChoice::default() });
        }
        if choices.is_empty() && self.counts.is_none() {
            return Ok(Vec::new());
        }
        let fields = answer.as_object().into_iter().flatten().filter(|(name, _)| !READ.contains(&name.as_str()));
        let new = fields.filter(|(name, value)| self.told.get(*name) != Some(value));
        let extra: Map<_, _> = new.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.told.extend(extra.clone());
        Ok(vec![ChatChunk { choices, usage: self.usage(), extra, ..self.frame.clone() }])
    }

    fn choice(&mut self, candidate: &Value) -> Result<ChunkChoice, String> {
        let index = candidate.get("index").and_then(Value::as_u64).and_then(|index| u32::try_from(index).ok()).unwrap_or(0);
        let so_far = self.candidates.entry(index).or_default();
        let mut choice = ChunkChoice { index, delta: delta(candidate, so_far), ..ChunkChoice::default() };
        if let Some(native) = candidate.get("finishReason").and_then(Value::as_str) {
            if FAILED.contains(&native) {
                let why = candidate.get("finishMessage").and_then(Value::as_str);
                return Err(
                    why.map_or_else(|| format!("the reply ended with {native}"), |why| format!("the reply ended with {native}: {why}"))
                );
            }
            so_far.finished = true;
            choice.finish_reason = Some(if so_far.calls > 0 && native == "STOP" { "tool_calls" } else { finish_reason(native) }.into());
            choice.extra.insert(NATIVE_REASON.into(), native.into());
        }
        for (name, value) in candidate.as_object().into_iter().flatten().filter(|(name, _)| !READ_OF_CANDIDATE.contains(&name.as_str())) {
            let ours = RENAMED.iter().find(|(theirs, _)| theirs == name).map_or(name.as_str(), |(_, ours)| ours);
            choice.extra.insert(ours.into(), value.clone());
        }
        if let Some(result) = candidate.get("logprobsResult") {
            choice.extra.insert("logprobs".into(), logprobs(result));
        }
        Ok(choice)
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
        let others = counts.as_object().into_iter().flatten().filter(|(name, _)| !COUNTS.contains(&name.as_str()));
        usage.extra.extend(others.map(|(name, value)| (name.clone(), value.clone())));
        Some(usage)
    }
}

/// What a candidate's parts add to its message.
fn delta(candidate: &Value, so_far: &mut Candidate) -> Delta {
    let parts = candidate.pointer("/content/parts").and_then(Value::as_array).into_iter().flatten();
    let (mut text, mut thoughts, mut calls, mut others) = (String::new(), String::new(), Vec::new(), Vec::new());
    let mut signature = None;
    for part in parts {
        match (part.get("text").and_then(Value::as_str), part.get("functionCall")) {
            (Some(words), _) => {
                signature = signature.or_else(|| part.get("thoughtSignature"));
                if part["thought"] == true { &mut thoughts } else { &mut text }.push_str(words);
            }
            (_, Some(call)) => calls.push(self::call(call, part.get("thoughtSignature"), so_far)),
            _ => {
                let Value::Object(mut part) = part.clone() else { continue };
                part.insert("index".into(), so_far.parts.into());
                so_far.parts += 1;
                others.push(Value::Object(part));
            }
        }
    }
    let mut delta = Delta { content: Some(text), ..Delta::default() };
    if !thoughts.is_empty() {
        delta.extra.insert("reasoning_content".into(), thoughts.into());
    }
    // Once a message: SDKs put the texts of a stream together.
    if let Some(signature) = signature.filter(|_| !std::mem::replace(&mut so_far.signed, true)) {
        delta.extra.insert("extra_content".into(), signed(signature));
    }
    for (name, list) in [("tool_calls", calls), (BLOCKS, others)] {
        if !list.is_empty() {
            delta.extra.insert(name.into(), list.into());
        }
    }
    delta
}

fn call(call: &Value, signature: Option<&Value>, so_far: &mut Candidate) -> Value {
    let id = call.get("id").and_then(Value::as_str).map_or_else(|| new_id("call"), str::to_string);
    let arguments = call.get("args").map_or_else(|| "{}".to_string(), Value::to_string);
    let function = json!({"name": call["name"], "arguments": arguments});
    let mut written = json!({"index": so_far.calls, "id": id, "type": "function", "function": function});
    if let Some(signature) = signature {
        written["extra_content"] = signed(signature);
    }
    so_far.calls += 1;
    written
}

fn signed(signature: &Value) -> Value {
    json!({"google": {"thought_signature": signature}})
}

fn finish_reason(native: &str) -> &'static str {
    match native {
        "MAX_TOKENS" => "length",
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "LANGUAGE"
        | "ESCALATION"
        | "PUP_LIMITED_DISABLED" => "content_filter",
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
