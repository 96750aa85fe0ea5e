//! What both sides of Anthropic's Messages protocol need: its versions, and the words that it has for what chat completions call
//! otherwise. (Messages API reference.)

use super::chat::{Message, Usage};
use serde_json::{Map, Value, json};

/// Versions of the protocol, the default first. From the second on, `temperature`, `top_p` and `top_k` are refused.
pub const VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];
/// Parameters that version 2026-10-21 took away.
pub const SAMPLING: [&str; 3] = ["temperature", "top_p", "top_k"];
/// Field of a choice that keeps the provider's own word for why it ended.
pub const NATIVE_REASON: &str = "native_finish_reason";
/// Field of a chat request that keeps what only this protocol has, for a provider that speaks it; no other provider is sent it.
pub const SIDE: &str = "anthropic";
/// Field of a chat message that holds all of its blocks in order, where text, thinking and calls alone do not say everything.
pub const BLOCKS: &str = "content_blocks";
/// Begins the data of a block that carries a signature of Gemini's.
const GEMINI: &str = "gemini:";

/// Whether a version takes [`SAMPLING`] parameters.
pub fn takes_sampling(version: &str) -> bool {
    version == VERSIONS[0]
}

/// `stop_reason` as `finish_reason`.
pub fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// `finish_reason` as `stop_reason`; the provider's own word wins where it is one of the protocol's.
pub fn stop_reason(finish_reason: &str, native: Option<&str>) -> &'static str {
    const OWN: [&str; 5] = ["end_turn", "stop_sequence", "pause_turn", "refusal", "model_context_window_exceeded"];
    if let Some(own) = native.and_then(|native| OWN.iter().find(|own| **own == native)) {
        return own;
    }
    match finish_reason {
        "length" => "max_tokens",
        "tool_calls" | "function_call" => "tool_use",
        "content_filter" => "refusal",
        _ => "end_turn",
    }
}

/// A block that carries a signature of Gemini's through this protocol, whose clients send such blocks back as they are. `call` is the
/// id of the call that is signed, empty for a text.
pub fn signature_block(call: &str, signature: &str) -> Value {
    json!({"type": "redacted_thinking", "data": format!("{GEMINI}{call}:{signature}")})
}

/// The call and the signature of a [`signature_block`].
pub fn signature_of(block: &Value) -> Option<(&str, &str)> {
    // Signatures are base64, which has no colon; ids may have one.
    block.get("data")?.as_str()?.strip_prefix(GEMINI)?.rsplit_once(':')
}

/// Whether a thinking block is none of Anthropic's: it has no signature, or another provider's. Their service refuses it.
pub fn is_foreign(block: &Value) -> bool {
    let text = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "thinking" => text("signature").is_empty(),
        "redacted_thinking" => text("data").starts_with(GEMINI),
        _ => false,
    }
}

/// Whether a chat message says all of these blocks: thinking, then text without citations, then plain calls.
pub fn fits_chat<'a>(blocks: impl IntoIterator<Item = &'a Value>) -> bool {
    let mut phase = 0;
    blocks.into_iter().all(|block| {
        let cited = block.get("citations").and_then(Value::as_array).is_some_and(|citations| !citations.is_empty());
        let by_code = block.pointer("/caller/type").is_some_and(|caller| caller != "direct");
        let at = match block.get("type").and_then(Value::as_str) {
            Some("thinking" | "redacted_thinking") => 0,
            Some("text") if !cited => 1,
            Some("tool_use") if !by_code => 2,
            _ => return false,
        };
        at >= std::mem::replace(&mut phase, at)
    })
}

/// The blocks of a chat message's [`BLOCKS`], without their positions; none where they are another provider's parts, or no longer say
/// what the message says: its text and calls may have been edited since.
pub fn blocks_of(message: &Message) -> Option<Vec<Value>> {
    let mut blocks = message.extra.get(BLOCKS)?.as_array()?.clone();
    let of_type = |kind: &'static str| move |block: &&Value| block["type"] == kind;
    let text: String = blocks.iter().filter(of_type("text")).filter_map(|block| block.get("text")?.as_str()).collect();
    let ids: Vec<_> = blocks.iter().filter(of_type("tool_use")).map(|block| block.get("id")).collect();
    let calls = message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    let typed = blocks.iter().all(|block| block.get("type").is_some_and(Value::is_string));
    if !typed || text != message.plain_text() || !ids.into_iter().eq(calls.map(|call| call.get("id"))) {
        return None;
    }
    blocks.iter_mut().filter_map(Value::as_object_mut).for_each(|block| drop(block.shift_remove("index")));
    Some(blocks)
}

/// Counts that chat completions have another name for.
const COUNTS: [&str; 5] =
    ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens_details"];
/// Counts of chat completions that this protocol has another name for.
const CHAT_DETAILS: [&str; 2] = ["prompt_tokens_details", "completion_tokens_details"];

/// Anthropic's counts as chat completions have them: there the prompt includes what came from and went into the cache.
pub fn usage_of_messages(counts: &Map<String, Value>) -> Usage {
    let count = |name: &str| counts.get(name).and_then(Value::as_u64);
    let (read, written) = (count("cache_read_input_tokens"), count("cache_creation_input_tokens"));
    let prompt = count("input_tokens").unwrap_or(0) + read.unwrap_or(0) + written.unwrap_or(0);
    let mut usage = Usage::new(prompt, count("output_tokens").unwrap_or(0));
    if let Some(read) = read {
        usage.set_detail("prompt_tokens_details", "cached_tokens", read);
    }
    if let Some(written) = written {
        usage.set_detail("prompt_tokens_details", "cache_creation_tokens", written);
    }
    let thinking = counts.get("output_tokens_details").and_then(|details| details.get("thinking_tokens")).and_then(Value::as_u64);
    if let Some(thinking) = thinking {
        usage.set_detail("completion_tokens_details", "reasoning_tokens", thinking);
    }
    let others = counts.iter().filter(|(name, value)| !COUNTS.contains(&name.as_str()) && !value.is_null());
    usage.extra.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    usage
}

/// The other way round.
pub fn usage_to_messages(usage: &Usage) -> Map<String, Value> {
    let read = usage.cached_tokens();
    let written = usage.detail("prompt_tokens_details", "cache_creation_tokens");
    let uncached = usage.prompt_tokens.saturating_sub(read.unwrap_or(0)).saturating_sub(written.unwrap_or(0));
    let mut counts = Map::from_iter([
        ("input_tokens".to_string(), json!(uncached)),
        ("cache_creation_input_tokens".to_string(), json!(written.unwrap_or(0))),
        ("cache_read_input_tokens".to_string(), json!(read.unwrap_or(0))),
        ("output_tokens".to_string(), json!(usage.completion_tokens)),
    ]);
    if let Some(thinking) = usage.reasoning_tokens() {
        counts.insert("output_tokens_details".into(), json!({"thinking_tokens": thinking}));
    }
    for (name, value) in usage.extra.iter().filter(|(name, _)| !CHAT_DETAILS.contains(&name.as_str())) {
        counts.entry(name).or_insert_with(|| value.clone());
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_survives_the_round_trip_with_cached_tokens_counted_once() {
        let counts = json!({"input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7, "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 2}, "service_tier": "standard", "server_tool_use": {"web_search_requests": 1}});
        let usage = usage_of_messages(counts.as_object().expect("an object"));
        assert_eq!(
            (usage.prompt_tokens, usage.total_tokens, usage.cached_tokens(), usage.reasoning_tokens()),
            (117, 122, Some(100), Some(2))
        );
        assert_eq!(Value::Object(usage_to_messages(&usage)), counts);
    }

    #[test]
    fn stop_reasons_survive_where_they_have_no_other_word() {
        for own in ["end_turn", "stop_sequence", "pause_turn", "refusal", "model_context_window_exceeded", "max_tokens", "tool_use"] {
            assert_eq!(stop_reason(finish_reason(own), Some(own)), own);
        }
        assert_eq!((stop_reason("stop", Some("STOP")), stop_reason("length", None)), ("end_turn", "max_tokens"));
    }

    #[test]
    fn a_signature_of_geminis_travels_in_a_block_and_is_told_apart() {
        let block = signature_block("call:1", "c2ln/+=");
        assert_eq!(signature_of(&block), Some(("call:1", "c2ln/+=")));
        assert!(is_foreign(&block) && is_foreign(&json!({"type": "thinking", "thinking": "x", "signature": ""})));
        let own = json!({"type": "redacted_thinking", "data": "gAAA"});
        assert!(!is_foreign(&own) && signature_of(&own).is_none());
    }

    #[test]
    fn blocks_count_only_while_they_say_what_the_message_says() {
        let blocks = json!([{"type": "text", "text": "a", "index": 0}, {"type": "thinking", "thinking": "t", "signature": "s", "index": 1},
            {"type": "tool_use", "id": "u", "name": "f", "input": {}, "index": 2}]);
        assert!(!fits_chat(blocks.as_array().expect("a list")));
        let mut message = Message::text("assistant", "a");
        message.extra.insert(BLOCKS.into(), blocks);
        assert!(blocks_of(&message).is_none(), "the call is missing");
        message.extra.insert("tool_calls".into(), json!([{"id": "u"}]));
        assert_eq!(blocks_of(&message).expect("the same")[1], json!({"type": "thinking", "thinking": "t", "signature": "s"}));
        message.content = None;
        assert!(blocks_of(&message).is_none(), "the text is gone");
    }
}
