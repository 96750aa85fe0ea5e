//! A chat completion written as a `generateContent` request. What would change the answer and has no counterpart is refused by name;
//! fields that are not in a table here (`safetySettings`, `cachedContent`) are sent on as they are.

use crate::providers::anthropic::data_url;
use crate::providers::upstream::Source;
use crate::providers::{ProviderError, openai};
use crate::types::Code;
use crate::types::chat::{ChatRequest, Content, Message};
use crate::types::embeddings::EmbeddingRequest;
use crate::types::json::{MAX_VALUES, read};
use crate::types::messages::{SIDE, signature_of};
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

/// Fields in which the service takes what messages say here.
const CONVERSATION: &[&str] = &["contents", "systemInstruction"];

/// Stands for a signature that nobody has: the call was made by another model. (Gemini API, "Thought signatures".)
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

type Body = Map<String, Value>;

/// What a request for one vector holds beside its content.
pub(super) fn embedding(request: &EmbeddingRequest, model: &str) -> Body {
    let mut body = request.extra.clone();
    HINTS.iter().chain(openai::OWN_FIELDS.iter()).for_each(|name| drop(body.shift_remove(*name)));
    body.insert("model".into(), format!("models/{}", model.strip_prefix("models/").unwrap_or(model)).into());
    if let Some(dimensions) = request.dimensions {
        body.insert("outputDimensionality".into(), dimensions.into());
    }
    body
}

/// The generation of a model: `2.5` of `gemini-2.5-flash` is 2. Names that follow the newest model count as 3.
fn generation(model: &str) -> Option<u32> {
    let name = model.strip_prefix("models/").unwrap_or(model).strip_prefix("gemini-")?;
    if name.ends_with("-latest") && !name.starts_with(|first: char| first.is_ascii_digit()) {
        return Some(3);
    }
    name.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// How much to think. Models before the third generation take tokens, later ones a level; Google's own OpenAI surface has the same
/// numbers. Pro models cannot be told not to think.
fn thinking(effort: &str, model: &str) -> Value {
    let pro = model.contains("-pro");
    if generation(model).is_some_and(|generation| generation < 3) {
        let budget = match effort {
            "none" if pro => 128,
            "none" => return json!({"thinkingBudget": 0}),
            "minimal" | "low" => 1_024,
            "medium" => 8_192,
            _ => 24_576,
        };
        return json!({"thinkingBudget": budget, "includeThoughts": effort != "none"});
    }
    let level = match effort {
        "none" if generation(model).is_none() => return json!({"thinkingBudget": 0}),
        "none" | "minimal" => return json!({"thinkingLevel": if pro { "LOW" } else { "MINIMAL" }, "includeThoughts": effort != "none"}),
        "max" => "XHIGH".to_string(),
        other => other.to_uppercase(),
    };
    json!({"thinkingLevel": level, "includeThoughts": true})
}

/// The body.
///
/// # Errors
/// [`Code::UNSUPPORTED`] or [`Code::INVALID_VALUE`] naming the field.
pub(super) fn of_chat(request: ChatRequest, model: &str, source: &Source) -> Result<Body, ProviderError> {
    let refuse = Refuse { source };
    let mut extra = request.extra;
    let mut body = Body::new();
    let (system, contents) = conversation(&request.messages, model, &refuse)?;
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
    let mut config = match extra.shift_remove("generationConfig").or_else(|| extra.shift_remove("generation_config")) {
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
    output(&mut config, &mut extra, model, &refuse)?;
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    tools(&mut body, &mut extra, &refuse)?;
    HINTS.iter().chain(openai::OWN_FIELDS.iter()).for_each(|name| drop(extra.shift_remove(*name)));
    // What was looked at, and what a release says, is not written over, nor said beside.
    if let Some(name) = extra.keys().find(|name| CONVERSATION.contains(&camel_case(name).as_str())) {
        return Err(refuse.wrong(name, "say it in messages"));
    }
    if let Some(name) = extra.keys().find(|name| body.contains_key(&camel_case(name))) {
        return Err(refuse.wrong(name, "another field of the request says this already"));
    }
    body.extend(extra);
    Ok(body)
}

/// The service takes each name in both spellings: `system_instruction` is `systemInstruction`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_').filter(|word| !word.is_empty());
    let mut written = words.next().unwrap_or_default().to_string();
    for word in words {
        let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        written.push_str(&first.to_uppercase());
        written.push_str(rest);
    }
    written
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
fn output(config: &mut Body, extra: &mut Body, model: &str, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
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
    let disabled = extra.get(SIDE).and_then(|side| side.pointer("/thinking/type")).is_some_and(|kind| kind == "disabled");
    if let Some(effort) = effort.as_ref().and_then(Value::as_str).or(disabled.then_some("none")) {
        config.entry("thinkingConfig").or_insert_with(|| thinking(effort, model));
    }
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
fn conversation(messages: &[Message], model: &str, refuse: &Refuse<'_>) -> Result<(Vec<Value>, Vec<Value>), ProviderError> {
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
            "assistant" => {
                let mut parts = assistant(message, &path, &mut called, refuse)?;
                if generation(model).is_some_and(|generation| generation >= 3) {
                    excuse(&mut parts);
                }
                ("model", parts)
            }
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
    // Of a caller of the Messages API, who has them in blocks of their own.
    let carried = message.extra.get("thinking_blocks").and_then(Value::as_array);
    let carried: HashMap<&str, &str> = carried.into_iter().flatten().filter_map(signature_of).collect();
    // Where Google's own OpenAI surface keeps it.
    let signature = |kept: Option<&Value>, call: &str| {
        let kept = kept.and_then(|kept| kept.pointer("/google/thought_signature")).cloned();
        kept.or_else(|| carried.get(call).map(|signature| json!(signature)))
    };
    if let Some(signature) = signature(message.extra.get("extra_content"), "") {
        match parts.last_mut() {
            Some(last) => last["thoughtSignature"] = signature,
            None => parts.push(json!({"text": "", "thoughtSignature": signature})),
        }
    }
    let calls = message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    for (i, call) in calls.enumerate() {
        let path = format!("{path}.tool_calls[{i}].function");
        let arguments = call.pointer("/function/arguments").and_then(Value::as_str).filter(|text| !text.trim().is_empty()).unwrap_or("{}");
        let args = read(arguments.as_bytes(), MAX_VALUES).map_err(|_| refuse.wrong(format!("{path}.arguments"), "is not valid JSON"))?;
        let name = call.pointer("/function/name").filter(|name| name.is_string());
        let name = name.ok_or_else(|| refuse.wrong(format!("{path}.name"), "is missing"))?;
        let mut part = json!({"functionCall": {"name": name, "args": args}});
        if let Some(id) = call.get("id").and_then(Value::as_str) {
            called.insert(id.to_string(), name.clone());
            part["functionCall"]["id"] = id.into();
        }
        let id = call.get("id").and_then(Value::as_str).unwrap_or_default();
        if let Some(signature) = signature(call.get("extra_content"), id) {
            part["thoughtSignature"] = signature;
        }
        parts.push(part);
    }
    Ok(parts)
}

/// Marks the first call of a turn whose calls have no signature at all: the model refuses it otherwise. Of parallel calls only the
/// first has one.
fn excuse(parts: &mut [Value]) {
    let signed = parts.iter().any(|part| part.get("functionCall").is_some() && part.get("thoughtSignature").is_some());
    if let Some(first) = parts.iter_mut().find(|part| part.get("functionCall").is_some() && !signed) {
        first["thoughtSignature"] = NO_SIGNATURE.into();
    }
}

/// A tool's answer: the protocol wants the function's name, which the call of that id had.
fn function_response(message: &Message, path: &str, called: &HashMap<String, Value>, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    let id = message.extra.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
    let name = called.get(id).or_else(|| message.extra.get("name"));
    let name = name.ok_or_else(|| refuse.wrong(format!("{path}.tool_call_id"), "no call before it has this id"))?;
    let text = message.plain_text();
    let failed = message.extra.get("is_error") == Some(&Value::Bool(true));
    let response = match read(text.as_bytes(), MAX_VALUES) {
        Ok(value) if failed => json!({"error": value}),
        Err(_) if failed => json!({"error": text}),
        Ok(object @ Value::Object(_)) => object,
        Ok(other) => json!({"result": other}),
        Err(_) => json!({"result": text}),
    };
    let mut written = json!({"functionResponse": {"id": id, "name": name, "response": response}});
    let mut media = Vec::new();
    for (i, part) in content(message, path, refuse)?.into_iter().enumerate().filter(|(_, part)| part.get("text").is_none()) {
        if part.get("inlineData").is_none() {
            return Err(refuse.wrong(format!("{path}.content[{i}]"), "a function's result takes data:MEDIA-TYPE;base64,DATA here"));
        }
        media.push(part);
    }
    if !media.is_empty() {
        written["functionResponse"]["parts"] = media.into();
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_to_think_is_told_as_each_generation_takes_it() {
        assert_eq!(
            ["gemini-2.5-flash", "models/gemini-3-pro-preview", "gemini-flash-latest", "tuned"].map(generation),
            [Some(2), Some(3), Some(3), None]
        );
        let of = |effort: &str, model: &str| {
            let config = thinking(effort, model);
            config.get("thinkingBudget").or(config.get("thinkingLevel")).cloned().expect("one of them")
        };
        let efforts = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
        assert_eq!(efforts.map(|effort| of(effort, "gemini-2.5-flash")), [0, 1_024, 1_024, 8_192, 24_576, 24_576, 24_576].map(Value::from));
        let levels = ["MINIMAL", "MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH", "XHIGH"];
        assert_eq!(efforts.map(|effort| of(effort, "gemini-3-flash")), levels.map(Value::from));
        assert_eq!((of("none", "gemini-2.5-pro"), of("none", "gemini-3-pro"), of("none", "tuned")), (json!(128), json!("LOW"), json!(0)));
    }

    #[test]
    fn a_call_without_signature_is_excused_once_a_turn() {
        let call = || json!({"functionCall": {"name": "f"}});
        let mut parts = [json!({"text": "x"}), call(), call()];
        excuse(&mut parts);
        assert_eq!((&parts[1]["thoughtSignature"], parts[2].get("thoughtSignature")), (&json!(NO_SIGNATURE), None));
        let mut signed = [call(), json!({"functionCall": {}, "thoughtSignature": "s"})];
        excuse(&mut signed);
        assert!(signed[0].get("thoughtSignature").is_none());
    }
}
