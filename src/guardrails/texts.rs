//! Every text of a request or a reply that people or models wrote, with the place where it stands. Names, ids and encoded data are no
//! texts; JSON inside a text (the arguments of a tool) is read, so that what it hides behind escapes is found and what is put in its
//! place leaves it JSON.

use crate::types::chat::{ChatRequest, ChatResponse, Choice, Content, Message};
use crate::types::json;
use serde_json::{Map, Value};

/// Fields whose texts are names, ids, or data in an encoding.
const NO_TEXTS: &[&str] = &[
    "type",
    "id",
    "call_id",
    "tool_call_id",
    "tool_use_id",
    "data",
    "file_data",
    "file_id",
    "signature",
    "encrypted_content",
    "format",
    "detail",
    "media_type",
    "cache_control",
    "role",
];
/// Fields that may hold an image, a sound or a file as a `data:` URL.
const MEDIA: &[&str] = &["url", "image_url", "audio_url", "video_url", "file_url"];
/// Fields whose text is JSON.
const JSON_TEXTS: &[&str] = &["arguments", "partial_json"];
/// Fields of a request besides its messages that hold what people wrote.
const FIELDS: &[&str] = &["prediction", "user", "safety_identifier", "anthropic"];
const MAX_JSON_VALUES: usize = 100_000;

/// What is done to a text: the place where it stands, and the text, which may be changed. True for a change.
pub type Each<'e> = dyn FnMut(&str, &mut String) -> bool + 'e;

/// Visits the texts of a request. True when one was changed.
pub fn of_request(request: &mut ChatRequest, each: &mut Each<'_>) -> bool {
    let mut changed = false;
    for (at, message) in request.messages.iter_mut().enumerate() {
        changed |= of_message(&format!("messages[{at}]"), message, each);
    }
    for field in FIELDS {
        if let Some(value) = request.extra.get_mut(*field) {
            changed |= of_value(field, value, each);
        }
    }
    if let Some(variables) = request.extra.get_mut("prompt").and_then(|prompt| prompt.get_mut("variables")) {
        changed |= of_variables("prompt.variables", variables, each);
    }
    // Parts under names that callers made up.
    let media = request.extra.get_mut("prompt").and_then(|prompt| prompt.get_mut("media")).and_then(Value::as_object_mut);
    for (name, part) in media.into_iter().flatten() {
        changed |= of_value(&format!("prompt.variables.{name}"), part, each);
    }
    if let Some(metadata) = request.extra.get_mut("metadata") {
        changed |= of_variables("metadata", metadata, each);
    }
    changed
}

/// Visits everything in what callers give names of their own: a variable called `data` is a text like any other.
pub fn of_variables(place: &str, variables: &mut Value, each: &mut Each<'_>) -> bool {
    let Value::Object(fields) = variables else { return inside(place, variables, each) };
    let mut changed = false;
    for (name, value) in fields {
        changed |= inside(&format!("{place}.{name}"), value, each);
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
        Some(Content::Text(text)) if text.starts_with(['{', '[']) => Some(of_json(&format!("{place}.content"), text, each)),
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
    let mut changed = false;
    for (name, value) in fields.iter_mut().filter(|(name, _)| !NO_TEXTS.contains(&name.as_str())) {
        let place = format!("{place}.{name}");
        changed |= match value {
            Value::String(text) if JSON_TEXTS.contains(&name.as_str()) => of_json(&place, text, each),
            // An address is a text.
            Value::String(text) if MEDIA.contains(&name.as_str()) && is_encoded(text) => false,
            value => of_value(&place, value, each),
        };
    }
    changed
}

/// Whether a text is a `data:` URL (RFC 2397) with nothing readable in it: a media type and base64.
fn is_encoded(text: &str) -> bool {
    let Some((media_type, data)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) else { return false };
    let of_type = |byte: u8| byte.is_ascii_alphanumeric() || b"/+-.;=".contains(&byte);
    let of_data = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte);
    media_type.bytes().all(of_type) && data.bytes().all(of_data)
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
        assert_eq!((&done["prompt"]["variables"]["x"], &done["stop"]), (&json!("Y"), &json!("s")));
        assert!(places.contains(&"messages[0].content[0].text".to_string()), "{places:?}");
        assert!(places.contains(&"messages[1].tool_calls[0].function.arguments".to_string()), "{places:?}");
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
