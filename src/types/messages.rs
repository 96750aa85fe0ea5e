//! What both sides of Anthropic's Messages protocol need: its versions, and the words that it has for what chat completions call
//! otherwise. (Messages API reference.)

use super::chat::Usage;
use serde_json::{Map, Value, json};

/// Versions of the protocol, the default first. From the second on, `temperature`, `top_p` and `top_k` are refused.
pub const VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];
/// Parameters that version 2026-10-21 took away.
pub const SAMPLING: [&str; 3] = ["temperature", "top_p", "top_k"];
/// Field of a choice that keeps the provider's own word for why it ended.
pub const NATIVE_REASON: &str = "native_finish_reason";

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
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_survives_the_round_trip_with_cached_tokens_counted_once() {
        let counts = json!({"input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7, "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 2}});
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
}
