//! Every text of a request or a reply that people or models wrote, with the place where it stands. Names, ids and encoded data are no
//! texts; JSON inside a text (the arguments of a tool) is read, so that what it hides behind escapes is found and what is put in its
//! place leaves it JSON.

use crate::types::chat::{ChatRequest, ChatResponse, Choice, Content, Message, Stop};
use crate::types::json;
use crate::types::messages::SIDE;
use serde_json::{Map, Value};

/// Fields whose texts are names or ids, as long as they look like one.
const NAMES: &[&str] = &[
    "type",
    "id",
    "call_id",
    "tool_call_id",
    "tool_use_id",
    "file_id",
    "signature",
    "encrypted_content",
    "format",
    "detail",
    "media_type",
    "cache_control",
    "role",
];
/// Fields that may hold an image, a sound or a file in base64.
const DATA: &[&str] = &["data", "file_data"];
/// Fields that may hold an image, a sound or a file as a `data:` URL.
const MEDIA: &[&str] = &["url", "image_url", "audio_url", "video_url", "file_url"];
/// Fields whose text is JSON.
const JSON_TEXTS: &[&str] = &["arguments", "partial_json"];
/// Fields that hold JSON of a tool's own, in which no name has a meaning.
const FREE: &[&str] = &["input", "input_examples"];
/// Fields of a request that hold a choice among words, or numbers.
const SETTINGS: &[&str] = &["model", "reasoning_effort", "service_tier", "modalities", "verbosity", "logit_bias", "prompt_cache_retention"];
/// Fields of a request whose inner names are a protocol's. Every other one is taken for the caller's own.
const STRUCTURED: &[&str] = &[
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "response_format",
    "prediction",
    "user",
    "safety_identifier",
    "audio",
    "web_search_options",
    "thinking",
    "output_config",
    "generationConfig",
    "generation_config",
    "safetySettings",
    "toolConfig",
    "mock",
    SIDE,
];
const MAX_NAME_BYTES: usize = 64;
const MAX_JSON_VALUES: usize = 100_000;

/// What is done to a text: the place where it stands, and the text, which may be changed. True for a change.
pub type Each<'e> = dyn FnMut(&str, &mut String) -> bool + 'e;

/// Visits the texts of a request. True when one was changed.
pub fn of_request(request: &mut ChatRequest, each: &mut Each<'_>) -> bool {
    let mut changed = false;
    for (at, message) in request.messages.iter_mut().enumerate() {
        changed |= of_message(&format!("messages[{at}]"), message, each);
    }
    let stops = match &mut request.stop {
        None => &mut [],
        Some(Stop::One(text)) => std::slice::from_mut(text),
        Some(Stop::Many(texts)) => texts.as_mut_slice(),
    };
    for text in stops {
        changed |= each("stop", text);
    }
    if let Some(options) = &mut request.stream_options {
        changed |= of_fields("stream_options", &mut options.extra, each);
    }
    of_extra(&mut request.extra, each) || changed
}

/// Visits the variables of a prompt that is called by name, and its parts under names that callers made up.
fn of_prompt(prompt: &mut Value, each: &mut Each<'_>) -> bool {
    let mut changed = prompt.get_mut("variables").is_some_and(|variables| of_variables("prompt.variables", variables, each));
    for (name, part) in prompt.get_mut("media").and_then(Value::as_object_mut).into_iter().flatten() {
        changed |= of_value(&format!("prompt.variables.{name}"), part, each);
    }
    changed
}

/// Visits the fields of a request that its type does not name: they travel on, so that whatever they are called, they are looked at.
pub fn of_extra(extra: &mut Map<String, Value>, each: &mut Each<'_>) -> bool {
    let mut changed = of_names("body", extra, each);
    for (name, value) in extra.iter_mut().filter(|(name, _)| !SETTINGS.contains(&name.as_str())) {
        changed |= match name.as_str() {
            "prompt" => of_prompt(value, each),
            "metadata" => of_variables(name, value, each),
            structured if STRUCTURED.contains(&structured) => of_value(name, value, each),
            _ if is_unknown(name, value) => inside(name, value, each),
            _ => false,
        };
    }
    changed
}

/// Fields of a request that nobody here knows, and that may hold what a model reads.
pub fn unknown(extra: &mut Map<String, Value>) -> impl Iterator<Item = (&str, &mut Value)> {
    extra.iter_mut().map(|(name, value)| (name.as_str(), value)).filter(|(name, value)| is_unknown(name, value))
}

/// A number or a switch by itself is a setting.
fn is_unknown(name: &str, value: &Value) -> bool {
    let known = ["prompt", "metadata"].contains(&name) || SETTINGS.contains(&name) || STRUCTURED.contains(&name);
    !known && (value.is_string() || value.is_array() || value.is_object())
}

/// Visits everything in what callers give names of their own: a variable called `data` is a text like any other, and so is its name.
pub fn of_variables(place: &str, variables: &mut Value, each: &mut Each<'_>) -> bool {
    let Value::Object(fields) = variables else { return inside(place, variables, each) };
    let mut changed = false;
    for (mut name, mut value) in std::mem::take(fields) {
        changed |= each(place, &mut name);
        changed |= inside(&format!("{place}.{name}"), &mut value, each);
        fields.insert(name, value);
    }
    changed
}

/// Visits the texts of a reply. True when one was changed.
pub fn of_reply(reply: &mut ChatResponse, each: &mut Each<'_>) -> bool {
    let mut changed = false;
    for choice in &mut reply.choices {
        changed |= of_choice(choice, each);
    }
    changed
}

fn of_choice(choice: &mut Choice, each: &mut Each<'_>) -> bool {
    let place = format!("choices[{}].message", choice.index);
    // Structured replies stay JSON.
    let structured = match &mut choice.message.content {
        Some(Content::Text(text)) if text.trim_start().starts_with(['{', '[']) => Some(of_json(&format!("{place}.content"), text, each)),
        _ => None,
    };
    let changed = match structured {
        Some(changed) => of_fields(&place, &mut choice.message.extra, each) || changed,
        None => of_message(&place, &mut choice.message, each),
    };
    if changed {
        // They spell the text out, token by token.
        choice.extra.shift_remove("logprobs");
    }
    changed
}

/// Visits the texts of a message.
pub fn of_message(place: &str, message: &mut Message, each: &mut Each<'_>) -> bool {
    let content = format!("{place}.content");
    let changed = match &mut message.content {
        None => false,
        Some(Content::Text(text)) => each(&content, text),
        Some(Content::Parts(parts)) => of_items(&content, parts, each),
    };
    of_fields(place, &mut message.extra, each) || changed
}

/// Visits every text of a value.
pub fn of_value(place: &str, value: &mut Value, each: &mut Each<'_>) -> bool {
    match value {
        Value::String(text) => each(place, text),
        Value::Array(items) => of_items(place, items, each),
        Value::Object(fields) => of_fields(place, fields, each),
        _ => false,
    }
}

fn of_items(place: &str, items: &mut [Value], each: &mut Each<'_>) -> bool {
    let mut changed = false;
    for (at, item) in items.iter_mut().enumerate() {
        changed |= of_value(&format!("{place}[{at}]"), item, each);
    }
    changed
}

fn of_fields(place: &str, fields: &mut Map<String, Value>, each: &mut Each<'_>) -> bool {
    let mut changed = of_names(place, fields, each);
    let says_text = fields.get("type").is_some_and(|kind| kind == "text");
    for (name, value) in fields.iter_mut() {
        let place = format!("{place}.{name}");
        changed |= match (name.as_str(), value) {
            (name, Value::String(text)) if JSON_TEXTS.contains(&name) => of_json(&place, text, each),
            (name, Value::String(text)) if NAMES.contains(&name) && is_name(text) => false,
            (name, Value::String(text)) if DATA.contains(&name) && !says_text && (is_base64(text) || is_encoded(text)) => false,
            // An address is a text.
            (name, Value::String(text)) if MEDIA.contains(&name) && is_encoded(text) => false,
            (name, value) if FREE.contains(&name) => inside(&place, value, each),
            (_, value) => of_value(&place, value, each),
        };
    }
    changed
}

/// Visits names of fields that no protocol would give: whatever is written there travels on, too.
fn of_names(place: &str, fields: &mut Map<String, Value>, each: &mut Each<'_>) -> bool {
    let is_usual = |name: &String| {
        let of_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        name.len() <= MAX_NAME_BYTES && name.bytes().all(of_word) && !name.bytes().all(|byte| byte.is_ascii_digit())
    };
    if fields.keys().all(is_usual) {
        return false;
    }
    let mut changed = false;
    for (mut name, value) in std::mem::take(fields) {
        changed |= !is_usual(&name) && each(place, &mut name);
        fields.insert(name, value);
    }
    changed
}

/// Whether a text has the look of a name, an id or a signature: one word, and no address.
fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./+=:;,|~".contains(&byte))
}

/// Whether a text is base64 throughout, in either alphabet.
fn is_base64(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte))
}

/// Whether a text is a `data:` URL (RFC 2397) with nothing readable in it: a media type and base64.
fn is_encoded(text: &str) -> bool {
    let Some((media_type, data)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) else { return false };
    let of_type = |byte: u8| byte.is_ascii_alphanumeric() || b"/+-.;=".contains(&byte);
    media_type.bytes().all(of_type) && is_base64(data)
}

/// Visits the texts inside a text of JSON; a text that is none is visited as it is. Of a key that stands twice only the last value
/// is visited, so only that is left.
fn of_json(place: &str, text: &mut String, each: &mut Each<'_>) -> bool {
    let Ok((mut value, repeats)) = json::read_noting_repeats(text.as_bytes(), MAX_JSON_VALUES) else {
        return each(place, text);
    };
    let changed = inside(place, &mut value, each) || repeats;
    if changed {
        *text = value.to_string();
    }
    changed
}

/// Every text, number and key of JSON that a tool reads: no field has a meaning here. All are told with the place of the whole.
fn inside(place: &str, value: &mut Value, each: &mut Each<'_>) -> bool {
    match value {
        Value::String(text) => each(place, text),
        Value::Number(number) => {
            let mut text = number.to_string();
            let changed = each(place, &mut text);
            if changed {
                *value = text.into();
            }
            changed
        }
        Value::Array(items) => {
            let mut changed = false;
            for item in items {
                changed |= inside(place, item, each);
            }
            changed
        }
        Value::Object(fields) => {
            let mut changed = false;
            let taken = std::mem::take(fields);
            for (mut name, mut value) in taken {
                changed |= each(place, &mut name);
                changed |= inside(place, &mut value, each);
                fields.insert(name, value);
            }
            changed
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn upper(value: Value) -> (Value, Vec<String>) {
        let mut request: ChatRequest = serde_json::from_value(value).expect("a request");
        let mut places = Vec::new();
        of_request(&mut request, &mut |place, text| {
            places.push(place.to_string());
            *text = text.to_uppercase();
            true
        });
        (serde_json::to_value(request).expect("writes"), places)
    }

    #[test]
    fn texts_are_visited_and_names_ids_and_data_are_not() {
        let call = json!([{"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{\"k\":[\"v\",1]}"}}]);
        let (done, places) = upper(json!({"model": "m", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}]},
            {"role": "assistant", "content": null, "tool_calls": call},
            {"role": "tool", "tool_call_id": "call_a", "content": "r"}], "prompt": {"variables": {"x": "y"}}, "stop": "s"}));
        assert_eq!(
            done["messages"][0]["content"],
            json!([{"type": "text", "text": "A"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}])
        );
        assert_eq!(done["messages"][1]["tool_calls"][0]["function"]["arguments"], "{\"K\":[\"V\",\"1\"]}");
        assert_eq!(
            (&done["messages"][1]["tool_calls"][0]["id"], &done["messages"][2]["tool_call_id"]),
            (&json!("call_a"), &json!("call_a"))
        );
        assert_eq!((&done["prompt"]["variables"]["X"], &done["stop"]), (&json!("Y"), &json!("S")));
        assert!(places.contains(&"messages[0].content[0].text".to_string()), "{places:?}");
        assert!(places.contains(&"messages[1].tool_calls[0].function.arguments".to_string()), "{places:?}");
    }

    #[test]
    fn every_field_that_travels_on_is_visited_and_settings_stay() {
        let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}});
        let (done, places) = upper(json!({"model": "m", "messages": [], "tools": [tool], "metadata": {"k": "v"}, "top_k": 4,
            "reasoning_effort": "low", "a b": 1, "prompt_cache_key": "x", "thinking": {"type": "enabled", "budget_tokens": 9},
            "documents": [{"id": 5, "data": "x", "text": "y"}], "stream": true, "stream_options": {"include_usage": true, "more": "z"}}));
        assert_eq!(done["tools"][0]["function"], json!({"name": "F", "description": "D", "parameters": {"type": "object"}}));
        assert_eq!((&done["metadata"], &done["prompt_cache_key"], &done["A B"]), (&json!({"K": "V"}), &json!("X"), &json!(1)));
        assert_eq!(done["documents"], json!([{"ID": "5", "DATA": "X", "TEXT": "Y"}]));
        assert_eq!(done["stream_options"], json!({"include_usage": true, "more": "Z"}));
        let settings = (&done["reasoning_effort"], &done["top_k"], &done["thinking"]);
        assert_eq!(settings, (&json!("low"), &json!(4), &json!({"type": "enabled", "budget_tokens": 9})));
        assert!(places.contains(&"metadata.K".to_string()), "a place does not repeat what was found: {places:?}");
    }

    #[test]
    fn no_name_of_a_field_hides_what_is_in_it() {
        let of = |part: Value| {
            let message = json!({"role": "assistant", "content": [part]});
            upper(json!({"model": "m", "messages": [message]})).0["messages"][0]["content"][0].clone()
        };
        let source = |kind: &str, data: &str| json!({"type": "document", "source": {"type": kind, "data": data}});
        assert_eq!(of(source("base64", "aGVsbG8="))["source"]["data"], "aGVsbG8=");
        assert_eq!(of(source("text", "word"))["source"]["data"], "WORD");
        assert_eq!(of(source("base64", "no base64"))["source"]["data"], "NO BASE64");
        for (data, seen) in [("data:application/pdf;base64,aa", "data:application/pdf;base64,aa"), ("aa", "aa"), ("a b", "A B")] {
            assert_eq!(of(json!({"type": "file", "file": {"file_data": data}}))["file"]["file_data"], seen);
        }
        assert_eq!(
            of(json!({"type": "x", "data": {"id": "a b", "n": {"role": "c d"}}}))["data"],
            json!({"id": "A B", "n": {"role": "C D"}})
        );
        assert_eq!(
            of(json!({"type": "image_url", "detail": "low", "format": "a@b"})),
            json!({"type": "image_url", "detail": "low", "format": "A@B"})
        );
        for kind in ["tool_use", "server_tool_use"] {
            let seen = of(json!({"type": kind, "id": "u", "input": {"id": "a", "type": "b", "n": 1}}));
            assert_eq!(seen, json!({"type": kind, "id": "u", "input": {"ID": "A", "TYPE": "B", "N": "1"}}));
        }
    }

    #[test]
    fn json_behind_white_space_is_read_as_json() {
        let reply = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": " \n{\"n\": 1}"}}]});
        let mut reply: ChatResponse = serde_json::from_value(reply).expect("a reply");
        assert!(of_reply(&mut reply, &mut |_, text| {
            *text = format!("<{text}>");
            true
        }));
        assert_eq!(reply.text(), "{\"<n>\":\"<1>\"}");
    }

    #[test]
    fn nothing_passes_unseen_as_data_or_under_a_key_that_stands_twice() {
        let part = |part: Value| {
            upper(json!({"model": "m", "messages": [{"role": "user", "content": [part]}]})).0["messages"][0]["content"][0].clone()
        };
        for text in ["data:image/png;base64,aa", "data:;base64, mail a@b.c"] {
            assert_eq!(part(json!({"type": "text", "text": text}))["text"], text.to_uppercase());
        }
        for url in ["data:;base64,a@b.c", "data:a@b.c;base64,aa", "data:text/plain,a"] {
            assert_eq!(part(json!({"type": "image_url", "image_url": {"url": url}}))["image_url"]["url"], url.to_uppercase());
        }
        let untouched = |arguments: &str| {
            let mut text = arguments.to_string();
            (of_json("p", &mut text, &mut |_, _| false), text)
        };
        assert_eq!(untouched("{\"a\":  1}"), (false, "{\"a\":  1}".to_string()));
        assert_eq!(untouched("{\"a\": \"a@b.c\", \"a\": 1}"), (true, "{\"a\":1}".to_string()));
        let mut text = "\"a\\u0040b\"".to_string();
        assert!(of_json("p", &mut text, &mut |_, text| text == "a@b"), "escapes hide nothing at the top either: {text}");
    }
}
