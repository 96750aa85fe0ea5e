//! A chat completion written as a `generateContent` request. What would change the answer and has no counterpart is refused by name;
//! fields that are not in a table here (`safetySettings`, `cachedContent`) are sent on as they are.

use crate::providers::anthropic::data_url;
use crate::providers::upstream::Source;
use crate::providers::{ProviderError, openai};
use crate::types::Code;
use crate::types::chat::{ChatRequest, Content, Message};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Hints and bookkeeping of OpenAI's that change no answer.
const HINTS: &[&str] = &[
    "store",
    "metadata",
    "user",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
    "prediction",
    "service_tier",
    "parallel_tool_calls",
];
/// Fields without any counterpart.
const UNKNOWN: &[&str] = &["logit_bias", "audio", "functions", "function_call", "web_search_options"];

type Body = Map<String, Value>;

/// The body.
///
/// # Errors
/// [`Code::UNSUPPORTED`] or [`Code::INVALID_VALUE`] naming the field.
pub(super) fn of_chat(request: ChatRequest, source: &Source) -> Result<Body, ProviderError> {
    let refuse = Refuse { source };
    let mut extra = request.extra;
    let mut body = Body::new();
    let (system, contents) = conversation(&request.messages, &refuse)?;
    if !system.is_empty() {
        body.insert("systemInstruction".into(), json!({"parts": system}));
    }
    body.insert("contents".into(), contents.into());
    for name in UNKNOWN {
        let value = extra.shift_remove(*name).unwrap_or(Value::Null);
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !value.is_null() && !empty {
            return Err(refuse.unsupported(name));
        }
    }
    let mut config = match extra.shift_remove("generationConfig") {
        Some(Value::Object(config)) => config,
        _ => Body::new(),
    };
    let tokens = request.max_completion_tokens.or(request.max_tokens);
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            config.insert(name.into(), value);
        }
    };
    set("temperature", request.temperature.map(Value::from));
    set("topP", request.top_p.map(Value::from));
    set("topK", extra.shift_remove("top_k"));
    set("maxOutputTokens", tokens.map(Value::from));
    set("stopSequences", request.stop.map(|stop| stop.texts().into()));
    set("seed", request.seed.map(Value::from));
    set("candidateCount", request.n.filter(|n| *n > 1).map(Value::from));
    set("presencePenalty", extra.shift_remove("presence_penalty"));
    set("frequencyPenalty", extra.shift_remove("frequency_penalty"));
    set("responseLogprobs", extra.shift_remove("logprobs").filter(|wanted| wanted == &Value::Bool(true)));
    set("logprobs", extra.shift_remove("top_logprobs"));
    output(&mut config, &mut extra, &refuse)?;
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    tools(&mut body, &mut extra, &refuse)?;
    HINTS.iter().chain(openai::OWN_FIELDS.iter()).for_each(|name| drop(extra.shift_remove(*name)));
    body.extend(extra);
    Ok(body)
}

struct Refuse<'a> {
    source: &'a Source,
}

impl Refuse<'_> {
    fn unsupported(&self, field: &str) -> ProviderError {
        let mut error = self.source.error(Code::UNSUPPORTED, format!("Gemini models have no \"{field}\""));
        error.param = Some(field.into());
        error
    }

    fn wrong(&self, field: impl Into<String>, what: &str) -> ProviderError {
        let field = field.into();
        let mut error = self.source.error(Code::INVALID_VALUE, format!("{field}: {what}"));
        error.param = Some(field);
        error
    }
}

/// Structured output and thinking.
fn output(config: &mut Body, extra: &mut Body, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
    let format = extra.shift_remove("response_format").unwrap_or(Value::Null);
    match format.get("type").and_then(Value::as_str) {
        None | Some("text") => {}
        Some("json_object") => drop(config.insert("responseMimeType".into(), "application/json".into())),
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").filter(|schema| schema.is_object());
            let schema = schema.ok_or_else(|| refuse.wrong("response_format.json_schema.schema", "a schema is needed"))?;
            config.insert("responseMimeType".into(), "application/json".into());
            config.insert("responseJsonSchema".into(), schema.clone());
        }
        Some(_) => return Err(refuse.unsupported("response_format.type")),
    }
    let effort = extra.shift_remove("reasoning_effort");
    let thinking = match effort.as_ref().and_then(Value::as_str) {
        None => return Ok(()),
        Some("none") => json!({"thinkingBudget": 0}),
        Some(effort) => json!({"thinkingLevel": effort.to_uppercase(), "includeThoughts": true}),
    };
    config.entry("thinkingConfig").or_insert(thinking);
    Ok(())
}

fn tools(body: &mut Body, extra: &mut Body, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
    let tools = match extra.shift_remove("tools") {
        Some(Value::Array(tools)) => tools,
        _ => Vec::new(),
    };
    let choice = extra.shift_remove("tool_choice").filter(|choice| !choice.is_null());
    let (mut functions, mut own) = (Vec::new(), Vec::new());
    for (i, tool) in tools.into_iter().enumerate() {
        if tool.get("type").and_then(Value::as_str) != Some("function") {
            // The provider's own tools, such as `{"googleSearch": {}}`; `type` is the OpenAI API's.
            let mut tool = tool;
            tool.as_object_mut().map(|tool| tool.shift_remove("type"));
            own.push(tool);
            continue;
        }
        let name = tool.pointer("/function/name").filter(|name| name.is_string());
        let name = name.ok_or_else(|| refuse.wrong(format!("tools[{i}].function.name"), "is missing"))?;
        let mut function = json!({"name": name});
        for (ours, theirs) in [("description", "description"), ("parameters", "parametersJsonSchema")] {
            if let Some(value) = tool["function"].get(ours).filter(|value| !value.is_null()) {
                function[theirs] = value.clone();
            }
        }
        functions.push(function);
    }
    if !functions.is_empty() {
        own.push(json!({"functionDeclarations": functions}));
    }
    if own.is_empty() {
        return Ok(());
    }
    body.insert("tools".into(), own.into());
    let Some(choice) = choice else { return Ok(()) };
    let mode = match (choice.as_str(), choice.pointer("/function/name")) {
        (Some("auto"), _) => json!({"mode": "AUTO"}),
        (Some("none"), _) => json!({"mode": "NONE"}),
        (Some("required"), _) => json!({"mode": "ANY"}),
        (_, Some(name)) => json!({"mode": "ANY", "allowedFunctionNames": [name]}),
        _ => return Err(refuse.wrong("tool_choice", "expected auto, none, required or a function")),
    };
    body.insert("toolConfig".into(), json!({"functionCallingConfig": mode}));
    Ok(())
}

/// The system parts and the turns; neighbours of the same role are one turn.
fn conversation(messages: &[Message], refuse: &Refuse<'_>) -> Result<(Vec<Value>, Vec<Value>), ProviderError> {
    let mut system = Vec::new();
    let mut turns: Vec<(&str, Vec<Value>)> = Vec::new();
    let mut called: HashMap<String, Value> = HashMap::new();
    for (i, message) in messages.iter().enumerate() {
        let path = format!("messages[{i}]");
        let (role, parts) = match message.role.as_str() {
            "system" | "developer" => {
                system.extend(content(message, &path, refuse)?);
                continue;
            }
            "user" => ("user", content(message, &path, refuse)?),
            "assistant" => ("model", assistant(message, &path, &mut called, refuse)?),
            "tool" => ("user", vec![function_response(message, &path, &called, refuse)?]),
            other => return Err(refuse.wrong(format!("{path}.role"), &format!("Gemini models know no role \"{other}\""))),
        };
        match turns.last_mut() {
            Some((last, so_far)) if *last == role => so_far.extend(parts),
            _ => turns.push((role, parts)),
        }
    }
    let turns = turns.into_iter().filter(|(_, parts)| !parts.is_empty());
    Ok((system, turns.map(|(role, parts)| json!({"role": role, "parts": parts})).collect()))
}

fn content(message: &Message, path: &str, refuse: &Refuse<'_>) -> Result<Vec<Value>, ProviderError> {
    match &message.content {
        None => Ok(Vec::new()),
        Some(Content::Text(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Content::Text(text)) => Ok(vec![json!({"text": text})]),
        Some(Content::Parts(parts)) => {
            parts.iter().enumerate().map(|(i, part)| self::part(part, &format!("{path}.content[{i}]"), refuse)).collect()
        }
    }
}

fn part(part: &Value, path: &str, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    let inline = |url: Option<&str>, field: &str| match url.and_then(data_url) {
        Some((kind, data)) => Ok(json!({"inlineData": {"mimeType": kind, "data": data}})),
        None => match url.filter(|url| url.starts_with("gs://") || url.starts_with(super::BASE_URL)) {
            Some(uri) => Ok(json!({"fileData": {"fileUri": uri}})),
            None => Err(refuse.wrong(format!("{path}.{field}"), "Gemini takes data:MEDIA-TYPE;base64,DATA here, no web address")),
        },
    };
    let text = |pointer: &str| part.pointer(pointer).and_then(Value::as_str);
    match text("/type").unwrap_or_default() {
        "text" => Ok(json!({"text": part["text"]})),
        "refusal" => Ok(json!({"text": part["refusal"]})),
        "image_url" => inline(text("/image_url/url"), "image_url.url"),
        "file" => inline(text("/file/file_data"), "file.file_data"),
        "input_audio" => {
            let format = text("/input_audio/format").unwrap_or("wav");
            Ok(json!({"inlineData": {"mimeType": format!("audio/{format}"), "data": part.pointer("/input_audio/data")}}))
        }
        other => Err(refuse.wrong(format!("{path}.type"), &format!("Gemini models take no part of type \"{other}\""))),
    }
}

fn assistant(message: &Message, path: &str, called: &mut HashMap<String, Value>, refuse: &Refuse<'_>) -> Result<Vec<Value>, ProviderError> {
    let mut parts = content(message, path, refuse)?;
    let calls = message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    for (i, call) in calls.enumerate() {
        let path = format!("{path}.tool_calls[{i}].function");
        let arguments = call.pointer("/function/arguments").and_then(Value::as_str).filter(|text| !text.trim().is_empty()).unwrap_or("{}");
        let args: Value = serde_json::from_str(arguments).map_err(|_| refuse.wrong(format!("{path}.arguments"), "is not valid JSON"))?;
        let name = call.pointer("/function/name").filter(|name| name.is_string());
        let name = name.ok_or_else(|| refuse.wrong(format!("{path}.name"), "is missing"))?;
        let mut part = json!({"functionCall": {"name": name, "args": args}});
        if let Some(id) = call.get("id").and_then(Value::as_str) {
            called.insert(id.to_string(), name.clone());
            part["functionCall"]["id"] = id.into();
        }
        // Where Google's own OpenAI surface keeps it.
        if let Some(signature) = call.pointer("/extra_content/google/thought_signature") {
            part["thoughtSignature"] = signature.clone();
        }
        parts.push(part);
    }
    Ok(parts)
}

/// A tool's answer: the protocol wants the function's name, which the call of that id had.
fn function_response(message: &Message, path: &str, called: &HashMap<String, Value>, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    let id = message.extra.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
    let name = called.get(id).or_else(|| message.extra.get("name"));
    let name = name.ok_or_else(|| refuse.wrong(format!("{path}.tool_call_id"), "no call before it has this id"))?;
    let text = message.plain_text();
    let response = match serde_json::from_str::<Value>(&text) {
        Ok(object @ Value::Object(_)) => object,
        Ok(other) => json!({"result": other}),
        Err(_) => json!({"result": text}),
    };
    Ok(json!({"functionResponse": {"id": id, "name": name, "response": response}}))
}
