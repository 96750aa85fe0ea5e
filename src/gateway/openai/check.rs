//! A chat request's fields, checked before anything is done with them: types and ranges as the OpenAI API reference gives them, the
//! field at fault named as a path. Fields that are not in the table travel on as they are.

use super::names::Names;
use super::prompt;
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingRequest;
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};

/// What a field may hold. `null` always counts as absent.
enum Kind {
    Text,
    Switch,
    Number(f64, f64),
    Integer(i64, i64),
    Object,
    List,
    TextOrObject,
    Stop,
    Metadata,
    LogitBias,
}

const FIELDS: &[(&str, Kind)] = &[
    ("stream", Kind::Switch),
    ("stream_options", Kind::Object),
    ("temperature", Kind::Number(0.0, 2.0)),
    ("top_p", Kind::Number(0.0, 1.0)),
    ("presence_penalty", Kind::Number(-2.0, 2.0)),
    ("frequency_penalty", Kind::Number(-2.0, 2.0)),
    ("n", Kind::Integer(1, 128)),
    ("max_tokens", Kind::Integer(1, u32::MAX as i64)),
    ("max_completion_tokens", Kind::Integer(1, u32::MAX as i64)),
    ("top_logprobs", Kind::Integer(0, 20)),
    ("seed", Kind::Integer(i64::MIN, i64::MAX)),
    ("stop", Kind::Stop),
    ("logprobs", Kind::Switch),
    ("store", Kind::Switch),
    ("parallel_tool_calls", Kind::Switch),
    ("user", Kind::Text),
    ("reasoning_effort", Kind::Text),
    ("service_tier", Kind::Text),
    ("tools", Kind::List),
    ("tool_choice", Kind::TextOrObject),
    ("response_format", Kind::Object),
    ("metadata", Kind::Metadata),
    ("logit_bias", Kind::LogitBias),
    ("prompt", Kind::Object),
];

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
/// As the OpenAI API has it.
const MAX_TOOLS: usize = 128;
const MAX_MODEL_BYTES: usize = 256;

/// Checks a body and reads it.
///
/// # Errors
/// [`Code::MISSING_FIELD`] or [`Code::INVALID_VALUE`] with the field's path.
pub fn chat(mut fields: Map<String, Value>) -> Result<ChatRequest, Failure> {
    let is_litellm = prompt::is_litellm(&fields);
    let read = prompt::read(&mut fields).and_then(|()| read_chat(fields));
    read.map_err(|failure| if is_litellm { prompt::litellm_names().told(failure) } else { failure })
}

/// As [`chat`], where what is said of a prompt was read already.
///
/// # Errors
/// As [`chat`].
pub fn read_chat(mut fields: Map<String, Value>) -> Result<ChatRequest, Failure> {
    fields.retain(|_, value| !value.is_null());
    model(&fields)?;
    messages(&fields)?;
    checked(&fields, FIELDS)?;
    nested(&fields)?;
    // Whatever the table let through and the types do not take is still an answer, not a crash.
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| Failure::new(Code::INVALID_VALUE, format!("the body does not fit: {error}")))
}

/// An older completion as a chat request.
pub struct Completion {
    /// The request.
    pub chat: ChatRequest,
    /// The prompt, where the reply shall repeat it.
    pub echo: Option<String>,
}

/// Checks the body of an older completion and reads it.
///
/// # Errors
/// As [`chat`]; [`Code::UNSUPPORTED`] for what a chat cannot do.
pub fn completion(mut fields: Map<String, Value>) -> Result<Completion, Failure> {
    model(&fields)?;
    let unsupported = |field: &str, what: &str| Err(Failure::on(Code::UNSUPPORTED, field, format!("{field}: {what}")));
    let prompt = match fields.shift_remove("prompt") {
        None => return Err(missing("prompt", "a text is needed")),
        Some(Value::String(prompt)) => prompt,
        Some(Value::Array(prompts)) => match prompts.as_slice() {
            [Value::String(prompt)] => prompt.clone(),
            [Value::String(_), ..] => return unsupported("prompt", "one prompt a call is taken; send several calls"),
            _ => return unsupported("prompt", "a text is taken, no token ids"),
        },
        Some(other) => return Err(expected("prompt", "a text", &other)),
    };
    let echo = fields.shift_remove("echo");
    if let Some(value) = &echo {
        check("echo", &Kind::Switch, value)?;
    }
    if fields.shift_remove("suffix").is_some_and(|suffix| suffix != "") {
        return unsupported("suffix", "text cannot be inserted before a suffix here");
    }
    if fields.shift_remove("best_of").is_some_and(|best_of| best_of != 1) {
        return unsupported("best_of", "only 1 is taken");
    }
    match fields.shift_remove("logprobs") {
        None => {}
        Some(Value::Number(count)) if count.as_u64().is_some_and(|count| count <= 5) => {
            fields.insert("logprobs".into(), true.into());
            fields.insert("top_logprobs".into(), count.into());
        }
        Some(other) => return Err(expected("logprobs", "a whole number from 0 to 5", &other)),
    }
    let echo = (echo == Some(Value::Bool(true))).then(|| prompt.clone());
    fields.insert("messages".into(), serde_json::json!([{"role": "user", "content": prompt}]));
    let chat = read_chat(fields).map_err(|failure| completion_names().told(failure))?;
    Ok(Completion { chat, echo })
}

/// What the parts of an older completion's chat request are called in it.
pub fn completion_names() -> Names {
    let mut names = Names::default();
    for (chat, own) in [("messages", "prompt"), ("messages[0]", "prompt"), ("messages[0].content", "prompt")] {
        names.add(chat, own);
    }
    names.add("top_logprobs", "logprobs");
    names.add("max_completion_tokens", "max_tokens");
    names
}

/// Checks `metadata` alone, for a body in which it is not the chat request's.
///
/// # Errors
/// [`Code::INVALID_VALUE`].
pub fn metadata(fields: &Map<String, Value>) -> Result<(), Failure> {
    let given = fields.get("metadata").filter(|metadata| !metadata.is_null());
    given.map_or(Ok(()), |metadata| check("metadata", &Kind::Metadata, metadata))
}

const EMBEDDING_FIELDS: &[(&str, Kind)] =
    &[("dimensions", Kind::Integer(1, 65_536)), ("user", Kind::Text), ("encoding_format", Kind::Text)];
const MAX_INPUTS: usize = 2_048;

/// Checks the body of an embeddings request and reads it.
///
/// # Errors
/// As [`chat`].
pub fn embeddings(fields: Map<String, Value>) -> Result<EmbeddingRequest, Failure> {
    model(&fields)?;
    checked(&fields, EMBEDDING_FIELDS)?;
    if fields.get("encoding_format").is_some_and(|format| format != "float" && format != "base64") {
        return Err(wrong("encoding_format", "expected float or base64"));
    }
    let tokens = |value: &Value| value.as_array().is_some_and(|ids| !ids.is_empty() && ids.iter().all(Value::is_u64));
    match fields.get("input") {
        None => return Err(missing("input", "a text or a list of texts is needed")),
        Some(Value::String(text)) if text.is_empty() => return Err(wrong("input", "the text is empty")),
        Some(Value::String(_)) => {}
        Some(Value::Array(items)) if items.is_empty() => return Err(wrong("input", "the list is empty")),
        Some(list) if tokens(list) => {}
        Some(Value::Array(items)) if items.len() > MAX_INPUTS => {
            return Err(wrong("input", format!("at most {MAX_INPUTS} inputs are taken, found {}", items.len())));
        }
        Some(Value::Array(items)) => {
            let all_tokens = tokens(&items[0]);
            let fits = |item: &Value| if all_tokens { tokens(item) } else { item.as_str().is_some_and(|text| !text.is_empty()) };
            if let Some((i, item)) = items.iter().enumerate().find(|(_, item)| !fits(item)) {
                return Err(expected(&format!("input[{i}]"), "a text that is not empty", item));
            }
        }
        Some(other) => return Err(expected("input", "a text or a list of texts", other)),
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| Failure::new(Code::INVALID_VALUE, format!("the body does not fit: {error}")))
}

/// Checks the body of a moderation request.
///
/// # Errors
/// As [`chat`].
pub fn moderation(fields: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    model(&fields)?;
    match fields.get("input") {
        None => Err(missing("input", "a text, a list of texts or a list of parts is needed")),
        Some(Value::String(_)) => Ok(fields),
        Some(Value::Array(items)) if items.is_empty() => Err(wrong("input", "the list is empty")),
        Some(Value::Array(items)) if items.len() > MAX_INPUTS => {
            Err(wrong("input", format!("at most {MAX_INPUTS} inputs are taken, found {}", items.len())))
        }
        Some(Value::Array(items)) => {
            let all_texts = items[0].is_string();
            let fits = |item: &Value| if all_texts { item.is_string() } else { item.get("type").is_some_and(Value::is_string) };
            let wanted = if all_texts { "a text, as the first is" } else { "a part with a \"type\"" };
            match items.iter().enumerate().find(|(_, item)| !fits(item)) {
                Some((i, item)) => Err(expected(&format!("input[{i}]"), wanted, item)),
                None => Ok(fields),
            }
        }
        Some(other) => Err(expected("input", "a text, a list of texts or a list of parts", other)),
    }
}

fn checked(fields: &Map<String, Value>, table: &[(&str, Kind)]) -> Result<(), Failure> {
    let present = table.iter().filter_map(|(field, kind)| fields.get(*field).map(|value| (field, kind, value)));
    present.into_iter().try_for_each(|(field, kind, value)| check(field, kind, value))
}

fn model(fields: &Map<String, Value>) -> Result<(), Failure> {
    match fields.get("model") {
        None => Err(missing("model", "the name of a route or a model is needed")),
        // The name is written to logs and error messages.
        Some(Value::String(text)) if text.chars().any(char::is_control) => Err(wrong("model", "control characters are not taken")),
        Some(Value::String(text)) if (1..=MAX_MODEL_BYTES).contains(&text.len()) => Ok(()),
        Some(Value::String(_)) => Err(wrong("model", format!("expected 1 to {MAX_MODEL_BYTES} bytes"))),
        Some(other) => Err(expected("model", "a text", other)),
    }
}

fn messages(fields: &Map<String, Value>) -> Result<(), Failure> {
    let called = |prompt: &Value| prompt.get("variables").is_some_and(Value::is_object) || prompt.get("id").is_some_and(Value::is_string);
    let has_prompt = fields.get("prompt").is_some_and(called);
    let messages = match fields.get("messages") {
        None => return Err(missing("messages", "a list of messages is needed")),
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(expected("messages", "a list", other)),
    };
    if messages.is_empty() && !has_prompt {
        return Err(wrong("messages", "the list is empty; at least one message is needed"));
    }
    messages.iter().enumerate().try_for_each(|(i, value)| message(&format!("messages[{i}]"), value))
}

fn message(path: &str, value: &Value) -> Result<(), Failure> {
    let Value::Object(message) = value else { return Err(expected(path, "an object", value)) };
    let at = |field: &str| format!("{path}.{field}");
    let role = match message.get("role") {
        None | Some(Value::Null) => return Err(missing(&at("role"), format!("one of {} is needed", ROLES.join(", ")))),
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
        Some(Value::String(_)) => return Err(wrong(&at("role"), format!("expected one of {}", ROLES.join(", ")))),
        Some(other) => return Err(expected(&at("role"), "a text", other)),
    };
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => parts.iter().enumerate().try_for_each(|(i, value)| part(&format!("{path}.content[{i}]"), value))?,
        // An assistant's message may consist of tool calls or a refusal alone.
        None | Some(Value::Null) if role == "assistant" => {}
        None | Some(Value::Null) => return Err(missing(&at("content"), format!("a message of role \"{role}\" needs content"))),
        Some(other) => return Err(expected(&at("content"), "a text or a list of parts", other)),
    }
    match message.get("tool_call_id") {
        None | Some(Value::Null) if role == "tool" => Err(missing(&at("tool_call_id"), "a tool's message names the call it answers")),
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(other) => Err(expected(&at("tool_call_id"), "a text", other)),
    }
}

fn part(path: &str, value: &Value) -> Result<(), Failure> {
    let Value::Object(part) = value else { return Err(expected(path, "an object", value)) };
    let at = |field: &str| format!("{path}.{field}");
    match part.get("type") {
        None => Err(missing(&at("type"), "a part names its type")),
        Some(Value::String(kind)) if kind == "text" => match part.get("text") {
            Some(Value::String(_)) => Ok(()),
            None => Err(missing(&at("text"), "a part of type \"text\" needs text")),
            Some(other) => Err(expected(&at("text"), "a text", other)),
        },
        Some(Value::String(_)) => Ok(()),
        Some(other) => Err(expected(&at("type"), "a text", other)),
    }
}

fn check(field: &str, kind: &Kind, value: &Value) -> Result<(), Failure> {
    let fits = match kind {
        Kind::Text => value.is_string(),
        Kind::Switch => value.is_boolean(),
        Kind::Object => value.is_object(),
        Kind::List => value.is_array(),
        Kind::TextOrObject => value.is_string() || value.is_object(),
        Kind::Number(least, most) => value.as_f64().is_some_and(|x| (*least..=*most).contains(&x)),
        Kind::Integer(least, most) => value.as_i64().is_some_and(|x| (*least..=*most).contains(&x)),
        Kind::Stop => match value {
            Value::Array(texts) => texts.len() <= 4 && texts.iter().all(Value::is_string),
            other => other.is_string(),
        },
        Kind::Metadata => value.as_object().is_some_and(|map| {
            let short = |text: &str, most: usize| text.chars().count() <= most;
            map.len() <= 16 && map.iter().all(|(key, value)| short(key, 64) && value.as_str().is_some_and(|text| short(text, 512)))
        }),
        Kind::LogitBias => {
            value.as_object().is_some_and(|map| map.values().all(|bias| bias.as_f64().is_some_and(|x| (-100.0..=100.0).contains(&x))))
        }
    };
    if fits { Ok(()) } else { Err(expected(field, &wanted(kind), value)) }
}

fn wanted(kind: &Kind) -> String {
    match kind {
        Kind::Text => "a text".into(),
        Kind::Switch => "true or false".into(),
        Kind::Object => "an object".into(),
        Kind::List => "a list".into(),
        Kind::TextOrObject => "a text or an object".into(),
        Kind::Number(least, most) => format!("a number from {least} to {most}"),
        Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
        Kind::Stop => "a text or a list of at most 4 texts".into(),
        Kind::Metadata => "an object of at most 16 texts (keys to 64, values to 512 characters)".into(),
        Kind::LogitBias => "an object of numbers from -100 to 100".into(),
    }
}

fn nested(fields: &Map<String, Value>) -> Result<(), Failure> {
    let inner = |outer: &str, field: &str| fields.get(outer).and_then(|value| value.get(field)).filter(|value| !value.is_null());
    if let Some(value) = inner("stream_options", "include_usage") {
        check("stream_options.include_usage", &Kind::Switch, value)?;
    }
    if fields.contains_key("stream_options") && fields.get("stream") != Some(&Value::Bool(true)) {
        return Err(wrong("stream_options", "only allowed together with \"stream\": true"));
    }
    if fields.contains_key("response_format") {
        match inner("response_format", "type") {
            Some(Value::String(kind)) if ["text", "json_object", "json_schema"].contains(&kind.as_str()) => {}
            _ => return Err(wrong("response_format.type", "expected text, json_object or json_schema")),
        }
    }
    let tools = fields.get("tools").and_then(Value::as_array);
    if let Some(count) = tools.map(Vec::len).filter(|count| *count > MAX_TOOLS) {
        return Err(wrong("tools", format!("at most {MAX_TOOLS} tools are taken, found {count}")));
    }
    let tools = tools.into_iter().flatten().enumerate();
    for (i, tool) in tools {
        if !tool.get("type").is_some_and(Value::is_string) {
            return Err(wrong(&format!("tools[{i}].type"), "a tool is an object with a type"));
        }
    }
    Ok(())
}

/// A chat request as a JSON Schema, from the tables above.
pub fn chat_schema() -> Value {
    let part = json!({"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}});
    let message = json!({"type": "object", "required": ["role"], "properties": {
        "role": {"enum": ROLES},
        "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]},
        "tool_call_id": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    }});
    schema(FIELDS, &[("model", model_schema()), ("messages", json!({"type": "array", "minItems": 1, "items": message}))])
}

/// An older completion as a JSON Schema.
pub fn completion_schema() -> Value {
    let older: Vec<_> = FIELDS.iter().filter(|(name, _)| COMPLETION_FIELDS.contains(name)).collect();
    let mut whole = schema(&[], &[("model", model_schema()), ("prompt", json!({"type": "string"}))]);
    for (name, kind) in older {
        whole["properties"][*name] = kind.schema();
    }
    whole["properties"]["echo"] = json!({"type": ["boolean", "null"]});
    whole["properties"]["logprobs"] = json!({"type": ["integer", "null"], "minimum": 0, "maximum": 5});
    whole
}

/// An embeddings request as a JSON Schema.
pub fn embedding_schema() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let input = json!({"oneOf": [text, {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": text}]});
    let mut whole = schema(EMBEDDING_FIELDS, &[("model", model_schema()), ("input", input)]);
    whole["properties"]["encoding_format"] = json!({"enum": ["float", "base64", null]});
    whole
}

/// The schema of a moderation request, from the same tables.
pub fn moderation_schema() -> Value {
    let items = json!({"oneOf": [{"type": "string"}, {"type": "object", "required": ["type"]}]});
    let input = json!({"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": items}]});
    schema(&[], &[("model", model_schema()), ("input", input)])
}

/// The name of a route or a model.
pub fn model_schema() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": MAX_MODEL_BYTES, "examples": ["mock/echo", "openai/gpt-4o-mini"]})
}

fn schema(table: &[(&str, Kind)], required: &[(&str, Value)]) -> Value {
    let names: Vec<_> = required.iter().map(|(name, _)| *name).collect();
    let given = required.iter().map(|(name, schema)| ((*name).to_string(), schema.clone()));
    let properties: Map<_, _> = given.chain(table.iter().map(|(name, kind)| ((*name).to_string(), kind.schema()))).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

impl Kind {
    fn schema(&self) -> Value {
        match self {
            Kind::Text => json!({"type": ["string", "null"]}),
            Kind::Switch => json!({"type": ["boolean", "null"]}),
            Kind::Number(least, most) => json!({"type": ["number", "null"], "minimum": least, "maximum": most}),
            Kind::Integer(least, most) => json!({"type": ["integer", "null"], "minimum": least, "maximum": most}),
            Kind::Object => json!({"type": ["object", "null"]}),
            Kind::List => json!({"type": ["array", "null"], "items": {"type": "object"}}),
            Kind::TextOrObject => json!({"type": ["string", "object", "null"]}),
            Kind::Stop => {
                json!({"oneOf": [{"type": "string"}, {"type": "array", "maxItems": 4, "items": {"type": "string"}}, {"type": "null"}]})
            }
            Kind::Metadata => {
                json!({"type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}})
            }
            Kind::LogitBias => {
                json!({"type": ["object", "null"], "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}})
            }
        }
    }
}

/// Fields of the older API that its replacement has too.
const COMPLETION_FIELDS: [&str; 12] = [
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "max_tokens",
    "seed",
    "stop",
    "user",
    "logit_bias",
];

fn missing(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing: {message}"))
}

fn wrong(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}

fn expected(field: &str, wanted: &str, found: &Value) -> Failure {
    wrong(field, format!("expected {wanted}, found {}", name(found)))
}

/// A value in words; texts are not repeated, they may be long or private.
fn name(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(x) => x.to_string(),
        Value::Number(x) => x.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(change: Value) -> (String, &'static str) {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (field, value) in change.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let failure = chat(body.as_object().expect("an object").clone()).expect_err("must be refused");
        (failure.param().unwrap_or_default(), failure.code().name)
    }

    #[test]
    fn each_field_is_named_when_it_is_wrong() {
        let invalid =
            |field: &str, value: Value| assert_eq!(refused(json!({ field: value })), (field.to_string(), "invalid_value"), "{field}");
        for (field, value) in [
            ("temperature", json!(2.1)),
            ("temperature", json!("1")),
            ("temperature", json!(-0.1)),
            ("top_p", json!(1.5)),
            ("n", json!(0)),
            ("n", json!(129)),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("max_tokens", json!(5_000_000_000u64)),
            ("max_completion_tokens", json!(u64::MAX)),
            ("seed", json!(u64::MAX)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!(1)),
            ("stream", json!("yes")),
            ("user", json!(1)),
            ("metadata", json!({"a": 1})),
            ("logit_bias", json!({"1": 101})),
            ("messages", json!([])),
            ("messages", json!("hi")),
            ("model", json!("")),
            ("model", json!(7)),
            ("model", json!("openai/a\nWARN forged")),
            ("model", json!("openai/\u{1b}[31m")),
            ("top_logprobs", json!(21)),
            ("presence_penalty", json!(3)),
            ("tools", json!({})),
            ("response_format", json!("json")),
            ("stream_options", json!({"include_usage": true})),
        ] {
            invalid(field, value);
        }
    }

    #[test]
    fn messages_are_named_by_their_path() {
        let at = |messages: Value| refused(json!({ "messages": messages }));
        assert_eq!(at(json!([{"content": "x"}])), ("messages[0].role".into(), "missing_required_parameter"));
        assert_eq!(
            at(json!([{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}])),
            ("messages[1].role".into(), "invalid_value")
        );
        assert_eq!(at(json!([{"role": "user"}])), ("messages[0].content".into(), "missing_required_parameter"));
        assert_eq!(
            at(json!([{"role": "user", "content": [{"type": "text"}]}])),
            ("messages[0].content[0].text".into(), "missing_required_parameter")
        );
        assert_eq!(at(json!([{"role": "tool", "content": "x"}])), ("messages[0].tool_call_id".into(), "missing_required_parameter"));
        assert_eq!(at(json!([7])), ("messages[0]".into(), "invalid_value"));
    }

    #[test]
    fn null_counts_as_absent_and_unknown_fields_stay() {
        let body =
            json!({"model": "m", "messages": [{"role": "assistant", "content": null, "tool_calls": []}], "temperature": null, "x": 1});
        let request = chat(body.as_object().expect("an object").clone()).expect("fine");
        assert!(request.temperature.is_none() && request.extra["x"] == 1);
    }
}
