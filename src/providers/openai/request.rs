//! A chat request as a service takes it: what other protocols' callers and Refit itself add is taken out or put where it belongs.

use super::OWN_FIELDS;
use crate::providers::compatible::{Quirks, Thoughts};
use crate::types::chat::{ChatRequest, Content, Message};
use serde_json::{Map, Value, json};

/// Fields of a message that another protocol's replies carry and this one's services refuse.
const OWN_MESSAGE_FIELDS: [&str; 3] = ["thinking_blocks", "content_blocks", "is_error"];

/// The body.
pub(super) fn body(mut request: ChatRequest, model: String, streamed: bool, quirks: &Quirks) -> ChatRequest {
    request.model = model;
    request.stream = streamed.then_some(true);
    request.stream_options = match streamed && !quirks.no_stream_options {
        // Usage is always asked for, for the log; the caller's other options stay.
        true => {
            let mut options = request.stream_options.take().unwrap_or_default();
            options.include_usage = Some(true);
            Some(options)
        }
        false => None,
    };
    if quirks.old_token_limit {
        request.max_tokens = request.token_limit();
        request.max_completion_tokens = None;
    }
    if quirks.random_seed
        && let Some(seed) = request.seed.take()
    {
        request.extra.insert("random_seed".into(), seed.into());
    }
    OWN_FIELDS.iter().for_each(|field| drop(request.extra.shift_remove(*field)));
    request.messages.iter_mut().for_each(|message| thoughts(message, quirks.thoughts));
    request.messages = results(std::mem::take(&mut request.messages));
    for message in &mut request.messages {
        OWN_MESSAGE_FIELDS.iter().for_each(|field| drop(message.extra.shift_remove(*field)));
        // Signatures are for Gemini alone, which some services have behind this protocol.
        if !request.model.contains("gemini") {
            without_signatures(message);
        }
    }
    if !quirks.cache_control {
        without_cache_control(&mut request);
    }
    request
}

fn without_signatures(message: &mut Message) {
    message.extra.shift_remove("extra_content");
    for call in message.extra.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        call.as_object_mut().map(|call| call.shift_remove("extra_content"));
    }
}

/// What a model thought before it called tools, for services that want it back.
fn thoughts(message: &mut Message, wanted: Thoughts) {
    match wanted {
        Thoughts::AsSent => {}
        Thoughts::Refused => drop(message.extra.shift_remove("reasoning_content")),
        Thoughts::WithCalls => {
            let calls = message.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
            if message.role != "assistant" || !calls || message.extra.get("reasoning_content").is_some_and(Value::is_string) {
                return;
            }
            let blocks = message.extra.get("thinking_blocks").and_then(Value::as_array).into_iter().flatten();
            let text: String = blocks.filter_map(|block| block.get("thinking").and_then(Value::as_str)).collect();
            if !text.is_empty() {
                message.extra.insert("reasoning_content".into(), text.into());
            }
        }
    }
}

/// Tools' messages hold texts alone: what else a result has follows in a user's message after the last of them. That a call failed is
/// said in the text.
fn results(messages: Vec<Message>) -> Vec<Message> {
    let mut written = Vec::with_capacity(messages.len());
    let mut beside = Vec::new();
    for mut message in messages {
        if message.role == "tool" {
            take_media(&mut message, &mut beside);
            if message.extra.get("is_error") == Some(&Value::Bool(true)) {
                mark_failed(&mut message);
            }
        } else {
            written.extend(media_message(&mut beside));
        }
        written.push(message);
    }
    written.extend(media_message(&mut beside));
    written
}

fn media_message(beside: &mut Vec<Value>) -> Option<Message> {
    let parts = std::mem::take(beside);
    (!parts.is_empty()).then(|| Message { role: "user".into(), content: Some(Content::Parts(parts)), extra: Map::new() })
}

fn take_media(message: &mut Message, beside: &mut Vec<Value>) {
    let Some(Content::Parts(parts)) = &mut message.content else { return };
    let is_text = |part: &Value| part.get("type").is_some_and(|kind| kind == "text");
    let (texts, media): (Vec<_>, Vec<_>) = std::mem::take(parts).into_iter().partition(is_text);
    *parts = texts;
    if media.is_empty() {
        return;
    }
    if parts.is_empty() {
        parts.push(json!({"type": "text", "text": "The result is in the next message of the user."}));
    }
    let call = message.extra.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
    beside.push(json!({"type": "text", "text": format!("From the result of the tool call {call}:")}));
    beside.extend(media);
}

fn mark_failed(message: &mut Message) {
    const MARK: &str = "Error: ";
    match &mut message.content {
        Some(Content::Text(text)) => text.insert_str(0, MARK),
        Some(Content::Parts(parts)) => {
            if let Some(Value::String(text)) = parts.first_mut().and_then(|part| part.get_mut("text")) {
                text.insert_str(0, MARK);
            }
        }
        None => message.content = Some(Content::Text(MARK.trim_end().into())),
    }
}

fn without_cache_control(request: &mut ChatRequest) {
    const NAME: &str = "cache_control";
    request.extra.shift_remove(NAME);
    for message in &mut request.messages {
        message.extra.shift_remove(NAME);
        if let Some(Content::Parts(parts)) = &mut message.content {
            parts.iter_mut().filter_map(Value::as_object_mut).for_each(|part| drop(part.shift_remove(NAME)));
        }
    }
    let tools = request.extra.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten();
    for tool in tools.filter_map(Value::as_object_mut) {
        tool.shift_remove(NAME);
        if let Some(Value::Object(function)) = tool.get_mut("function") {
            function.shift_remove(NAME);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: Value, quirks: Quirks) -> Value {
        let body = body(serde_json::from_value(request).expect("a request"), "m".into(), false, &quirks);
        serde_json::to_value(body).expect("JSON")
    }

    fn turn() -> Value {
        let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}});
        json!({"model": "up/m", "cache_control": {"type": "ephemeral"},
            "tools": [{"type": "function", "cache_control": {"type": "ephemeral"}, "function": {"name": "f", "cache_control": 1}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "c1"}, {"id": "c2"}],
                    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]},
                {"role": "tool", "tool_call_id": "c1", "is_error": true, "cache_control": {"type": "ephemeral"},
                    "content": [{"type": "text", "text": "boom"}, image]},
                {"role": "tool", "tool_call_id": "c2", "content": [image]},
                {"role": "user", "content": "and?"}]})
    }

    #[test]
    fn tools_answer_in_text_and_their_pictures_follow_from_the_user() {
        let body = written(turn(), Quirks::default());
        let roles: Vec<_> = body["messages"].as_array().into_iter().flatten().map(|message| message["role"].as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool", "user", "user"].map(Some));
        assert_eq!(
            body["messages"][2],
            json!({"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Error: boom"}]})
        );
        assert_eq!(body["messages"][3]["content"][0]["type"], "text");
        let parts = body["messages"][4]["content"].as_array().map(Vec::len);
        assert_eq!((parts, &body["messages"][4]["content"][1]["type"]), (Some(4), &json!("image_url")));
    }

    #[test]
    fn cache_control_stays_only_where_it_is_known() {
        assert!(!written(turn(), Quirks::default()).to_string().contains("cache_control"));
        let kept = written(turn(), Quirks { cache_control: true, ..Quirks::default() });
        assert_eq!(kept.to_string().matches("cache_control").count(), 5);
    }

    #[test]
    fn thoughts_go_back_where_they_are_wanted() {
        let of = |thoughts| written(turn(), Quirks { thoughts, ..Quirks::default() })["messages"][1].get("reasoning_content").cloned();
        assert_eq!(of(Thoughts::WithCalls), Some(json!("hm")));
        assert_eq!((of(Thoughts::AsSent), of(Thoughts::Refused)), (None, None));
        let sent = json!({"model": "m", "messages": [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]});
        let of =
            |thoughts| written(sent.clone(), Quirks { thoughts, ..Quirks::default() })["messages"][0].get("reasoning_content").cloned();
        assert_eq!((of(Thoughts::AsSent), of(Thoughts::Refused)), (Some(json!("hm")), None));
    }
}
