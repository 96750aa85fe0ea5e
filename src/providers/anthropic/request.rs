//! A chat completion written as a Messages request. What would change the answer and has no counterpart is refused by name; hints
//! without one (`seed`, `store`, `prompt_cache_key`) are left out; fields that are not in a table here are sent on as they are. What a
//! message request had beyond a chat request comes back from [`SIDE`].

use crate::providers::upstream::Source;
use crate::providers::{ProviderError, openai};
use crate::types::chat::{ChatRequest, Content, Message};
use crate::types::json::{MAX_VALUES, read};
use crate::types::messages::{SIDE, blocks_of, is_foreign, takes_sampling};
use crate::types::{Code, Digest};
use serde_json::{Map, Value, json};

/// Tokens of a reply where the caller sets no limit: the protocol demands one.
const MAX_TOKENS: u32 = 4_096;
/// Hints and bookkeeping of OpenAI's that change no answer.
const HINTS: &[&str] = &["store", "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "verbosity", "prediction"];
/// Fields that would change the answer, with the value that does not.
const REFUSED: &[(&str, f64)] = &[("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("logprobs", 0.0), ("top_logprobs", 0.0)];
/// Fields without any counterpart.
const UNKNOWN: &[&str] = &["logit_bias", "audio", "functions", "function_call", "web_search_options"];

type Body = Map<String, Value>;

/// The body.
///
/// # Errors
/// [`Code::UNSUPPORTED`] or [`Code::INVALID_VALUE`] naming the field.
pub(super) fn of_chat(request: ChatRequest, version: &str, source: &Source) -> Result<Body, ProviderError> {
    let refuse = Refuse { source };
    let mut extra = request.extra;
    let mut side = match extra.shift_remove(SIDE) {
        Some(Value::Object(side)) => side,
        _ => Body::new(),
    };
    let mut body = Body::new();
    body.insert("max_tokens".into(), request.max_completion_tokens.or(request.max_tokens).unwrap_or(MAX_TOKENS).into());
    let (system, mut messages) = conversation(&request.messages, &refuse)?;
    if let Some(Value::Object(documents)) = side.shift_remove("documents") {
        restore(&mut messages, &documents);
    }
    if let Some(system) = system {
        body.insert("system".into(), system);
    }
    body.insert("messages".into(), messages.into());
    if request.n.is_some_and(|n| n > 1) {
        return Err(refuse.unsupported("n"));
    }
    for (name, neutral) in REFUSED {
        let value = extra.shift_remove(*name).unwrap_or(Value::Null);
        if !matches!(value, Value::Null | Value::Bool(false)) && value.as_f64() != Some(*neutral) {
            return Err(refuse.unsupported(name));
        }
    }
    for name in UNKNOWN {
        let value = extra.shift_remove(*name).unwrap_or(Value::Null);
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !value.is_null() && !empty {
            return Err(refuse.unsupported(name));
        }
    }
    let given = [
        ("temperature", request.temperature.map(Value::from)),
        ("top_p", request.top_p.map(Value::from)),
        ("top_k", extra.shift_remove("top_k")),
    ];
    sampling(&mut body, given, version, &refuse)?;
    if let Some(stop) = request.stop {
        body.insert("stop_sequences".into(), stop.texts().into());
    }
    tools(&mut body, &mut extra, &refuse)?;
    if let Some(Value::Object(tools)) = side.shift_remove("tools") {
        complete(&mut body, &tools);
    }
    output(&mut body, &mut extra, &mut side, &refuse)?;
    if let Some(Value::String(user)) = extra.shift_remove("user") {
        body.insert("metadata".into(), json!({"user_id": user}));
    }
    if extra.get("service_tier").is_some_and(|tier| !matches!(tier.as_str(), Some("auto" | "standard_only"))) {
        extra.shift_remove("service_tier");
    }
    HINTS.iter().chain(openai::OWN_FIELDS.iter()).for_each(|name| drop(extra.shift_remove(*name)));
    if extra.contains_key("system") || side.contains_key("system") {
        return Err(refuse.wrong("system", "say it in a message of role \"system\""));
    }
    // What was looked at, and what a release says, is not written over.
    if let Some(name) = extra.keys().find(|name| body.contains_key(*name)) {
        return Err(refuse.wrong(name, "another field of the request says this already"));
    }
    body.extend(extra);
    for (name, value) in side {
        body.entry(name).or_insert(value);
    }
    Ok(body)
}

/// Documents as they were written, found by their content: a file or a text says less.
fn restore(messages: &mut [Value], documents: &Body) {
    let blocks = messages.iter_mut().filter_map(|message| message.get_mut("content")?.as_array_mut()).flatten();
    for block in blocks {
        let pointer = match block.get("type").and_then(Value::as_str) {
            Some("text") => "/text",
            Some("document") => "/source/data",
            _ => continue,
        };
        let Some(Value::String(data)) = block.pointer(pointer) else { continue };
        let Some(mut document) = documents.get(&Digest::of(data).hex()).cloned() else { continue };
        if let Some(Value::Object(source)) = document.get_mut("source") {
            source.insert("data".into(), data.as_str().into());
            *block = document;
        }
    }
}

/// What the tools of a message request had beyond a function, by their names.
fn complete(body: &mut Body, more: &Body) {
    for tool in body.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten() {
        let fields = tool["name"].as_str().and_then(|name| more.get(name)).and_then(Value::as_object).cloned();
        if let (Some(fields), Some(tool)) = (fields, tool.as_object_mut()) {
            for (name, value) in fields {
                tool.entry(name).or_insert(value);
            }
        }
    }
}

/// Errors that name a field.
struct Refuse<'a> {
    source: &'a Source,
}

impl Refuse<'_> {
    fn unsupported(&self, field: &str) -> ProviderError {
        let mut error = self.source.error(Code::UNSUPPORTED, format!("Anthropic's models have no \"{field}\""));
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

fn sampling(body: &mut Body, given: [(&str, Option<Value>); 3], version: &str, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
    for (name, value) in given {
        let Some(value) = value else { continue };
        if !takes_sampling(version) {
            let mut error = refuse.unsupported(name);
            error.hint = Some("leave it out, or set api_version = \"2023-06-01\" for this provider in refit.toml".into());
            return Err(error);
        }
        if name == "temperature" && value.as_f64().is_some_and(|temperature| temperature > 1.0) {
            return Err(refuse.wrong(name, "Anthropic's models take 0 to 1"));
        }
        body.insert(name.into(), value);
    }
    Ok(())
}

fn tools(body: &mut Body, extra: &mut Body, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
    let tools = match extra.shift_remove("tools") {
        Some(Value::Array(tools)) => tools,
        _ => Vec::new(),
    };
    let tools: Vec<_> = tools.into_iter().enumerate().map(|(i, tool)| self::tool(i, tool, refuse)).collect::<Result<_, _>>()?;
    let one_at_a_time = extra.shift_remove("parallel_tool_calls") == Some(Value::Bool(false));
    let choice = extra.shift_remove("tool_choice").filter(|choice| !choice.is_null());
    if tools.is_empty() {
        return Ok(());
    }
    body.insert("tools".into(), tools.into());
    let mut choice = match &choice {
        None => None,
        Some(choice) => Some(match (choice.as_str(), choice.pointer("/function/name").and_then(Value::as_str)) {
            (Some("auto"), _) => json!({"type": "auto"}),
            (Some("none"), _) => json!({"type": "none"}),
            (Some("required"), _) => json!({"type": "any"}),
            (_, Some(name)) => json!({"type": "tool", "name": name}),
            _ => return Err(refuse.wrong("tool_choice", "expected auto, none, required or a function")),
        }),
    };
    if one_at_a_time {
        let choice = choice.get_or_insert_with(|| json!({"type": "auto"}));
        if choice["type"] != "none" {
            choice["disable_parallel_tool_use"] = true.into();
        }
    }
    body.extend(choice.map(|choice| ("tool_choice".to_string(), choice)));
    Ok(())
}

/// A function as a custom tool; the provider's own tools are sent on as they are.
fn tool(i: usize, tool: Value, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Ok(tool);
    }
    let missing = |field: &str| refuse.wrong(format!("tools[{i}].function.{field}"), "is missing");
    let Some(Value::Object(function)) = tool.get("function") else {
        return Err(refuse.wrong(format!("tools[{i}].function"), "is missing"));
    };
    let name = function.get("name").filter(|name| name.is_string()).ok_or_else(|| missing("name"))?;
    let schema = function.get("parameters").filter(|schema| !schema.is_null()).cloned();
    let mut written = json!({"name": name, "input_schema": schema.unwrap_or_else(|| json!({"type": "object", "properties": {}}))});
    for field in ["description", "strict"] {
        if let Some(value) = function.get(field).filter(|value| !value.is_null()) {
            written[field] = value.clone();
        }
    }
    if let Some(control) = tool.get("cache_control") {
        written["cache_control"] = control.clone();
    }
    Ok(written)
}

/// Structured output and effort, which share `output_config`. Effort and thinking of a message request win over the effort that was
/// made of them.
fn output(body: &mut Body, extra: &mut Body, side: &mut Body, refuse: &Refuse<'_>) -> Result<(), ProviderError> {
    let mut config = Body::new();
    for own in [extra.shift_remove("output_config"), side.shift_remove("output_config")] {
        if let Some(Value::Object(own)) = own {
            config.extend(own);
        }
    }
    let thinking = side.get("thinking").and_then(|thinking| thinking.get("type")).and_then(Value::as_str);
    let decided = config.contains_key("effort") || matches!(thinking, Some("enabled" | "disabled"));
    let format = extra.shift_remove("response_format").unwrap_or(Value::Null);
    match format.get("type").and_then(Value::as_str) {
        None | Some("text") => {}
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").filter(|schema| schema.is_object());
            let schema = schema.ok_or_else(|| refuse.wrong("response_format.json_schema.schema", "a schema is needed"))?;
            config.insert("format".into(), json!({"type": "json_schema", "schema": schema}));
        }
        Some(other) => {
            let mut error = refuse.unsupported("response_format.type");
            error.message.push_str(&format!(": {other}"));
            error.hint = Some("use {\"type\": \"json_schema\"} with a schema, which they enforce".into());
            return Err(error);
        }
    }
    match extra.shift_remove("reasoning_effort").as_ref().and_then(Value::as_str) {
        None => {}
        Some(_) if decided => {}
        Some("none") => drop(body.insert("thinking".into(), json!({"type": "disabled"}))),
        Some(effort) => {
            let effort = if effort == "minimal" { "low" } else { effort };
            config.insert("effort".into(), effort.into());
        }
    }
    if !config.is_empty() {
        body.insert("output_config".into(), config.into());
    }
    Ok(())
}

/// The system text and the turns: neighbours of the same role are one turn, tool results stand in the user's.
fn conversation(messages: &[Message], refuse: &Refuse<'_>) -> Result<(Option<Value>, Vec<Value>), ProviderError> {
    let mut system = Vec::new();
    let mut turns: Vec<(&str, Vec<Value>)> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let path = format!("messages[{i}]");
        let (role, blocks) = match message.role.as_str() {
            "system" | "developer" => {
                system.extend(content(message, &path, refuse)?);
                continue;
            }
            "user" => ("user", content(message, &path, refuse)?),
            "assistant" => ("assistant", assistant(message, &path, refuse)?),
            "tool" => ("user", vec![tool_result(message, &path, refuse)?]),
            other => return Err(refuse.wrong(format!("{path}.role"), &format!("Anthropic's models know no role \"{other}\""))),
        };
        match turns.last_mut() {
            Some((last, so_far)) if *last == role => so_far.extend(blocks),
            _ => turns.push((role, blocks)),
        }
    }
    let turns = turns.into_iter().filter(|(_, blocks)| !blocks.is_empty());
    let turns = turns.map(|(role, blocks)| json!({"role": role, "content": blocks})).collect();
    Ok(((!system.is_empty()).then(|| system.into()), turns))
}

fn content(message: &Message, path: &str, refuse: &Refuse<'_>) -> Result<Vec<Value>, ProviderError> {
    match &message.content {
        None => Ok(Vec::new()),
        // Empty text blocks are refused upstream.
        Some(Content::Text(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Content::Text(text)) => Ok(vec![json!({"type": "text", "text": text})]),
        Some(Content::Parts(parts)) => {
            let blocks = parts.iter().enumerate().map(|(i, part)| block(part, &format!("{path}.content[{i}]"), refuse));
            blocks.filter(|block| !matches!(block, Ok(block) if block["type"] == "text" && block["text"] == "")).collect()
        }
    }
}

fn block(part: &Value, path: &str, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    let mut block = match part.get("type").and_then(Value::as_str).unwrap_or_default() {
        "text" => json!({"type": "text", "text": part["text"]}),
        "refusal" => json!({"type": "text", "text": part["refusal"]}),
        "image_url" => {
            let url = part.pointer("/image_url/url").and_then(Value::as_str);
            let url = url.ok_or_else(|| refuse.wrong(format!("{path}.image_url.url"), "is missing"))?;
            json!({"type": "image", "source": image(url, path, refuse)?})
        }
        "file" => {
            let data = part.pointer("/file/file_data").and_then(Value::as_str).and_then(data_url);
            let Some((kind, data)) = data else {
                return Err(refuse.wrong(format!("{path}.file.file_data"), "a data: URL is needed; files by id are not known there"));
            };
            let mut block = json!({"type": "document", "source": {"type": "base64", "media_type": kind, "data": data}});
            if let Some(name) = part.pointer("/file/filename") {
                block["title"] = name.clone();
            }
            block
        }
        "input_audio" => return Err(refuse.wrong(path, "Anthropic's models take no audio")),
        // The provider's own blocks, such as `document` and `image`.
        _ => return Ok(part.clone()),
    };
    if let Some(control) = part.get("cache_control") {
        block["cache_control"] = control.clone();
    }
    Ok(block)
}

fn image(url: &str, path: &str, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    if url.starts_with("https://") || url.starts_with("http://") {
        return Ok(json!({"type": "url", "url": url}));
    }
    let wrong = || refuse.wrong(format!("{path}.image_url.url"), "expected an http(s) URL or data:MEDIA-TYPE;base64,DATA");
    let (kind, data) = data_url(url).ok_or_else(wrong)?;
    Ok(json!({"type": "base64", "media_type": kind, "data": data}))
}

/// `data:MEDIA-TYPE;base64,DATA` (RFC 2397), taken apart.
pub(in crate::providers) fn data_url(url: &str) -> Option<(&str, &str)> {
    let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
    let kind = head.strip_suffix(";base64")?.split(';').next()?;
    (!kind.is_empty()).then_some((kind, data))
}

fn assistant(message: &Message, path: &str, refuse: &Refuse<'_>) -> Result<Vec<Value>, ProviderError> {
    if let Some(mut blocks) = blocks_of(message) {
        blocks.retain(|block| !(is_foreign(block) || block["type"] == "text" && block["text"] == ""));
        return Ok(blocks);
    }
    // Thinking comes first, with its signature, or upstream refuses the turn.
    let mut blocks = match message.extra.get("thinking_blocks") {
        Some(Value::Array(blocks)) => blocks.iter().filter(|block| !is_foreign(block)).cloned().collect(),
        _ => Vec::new(),
    };
    // Positions are a stream's.
    blocks.iter_mut().filter_map(Value::as_object_mut).for_each(|block| drop(block.shift_remove("index")));
    blocks.extend(content(message, path, refuse)?);
    if let Some(Value::String(refusal)) = message.extra.get("refusal") {
        blocks.push(json!({"type": "text", "text": refusal}));
    }
    let calls = message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    for (i, call) in calls.enumerate() {
        let path = format!("{path}.tool_calls[{i}].function");
        let arguments = call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or_default();
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        let input = read(arguments.as_bytes(), MAX_VALUES).map_err(|_| refuse.wrong(format!("{path}.arguments"), "is not valid JSON"))?;
        let name = call.pointer("/function/name").filter(|name| name.is_string());
        let name = name.ok_or_else(|| refuse.wrong(format!("{path}.name"), "is missing"))?;
        blocks.push(json!({"type": "tool_use", "id": call["id"], "name": name, "input": input}));
    }
    Ok(blocks)
}

fn tool_result(message: &Message, path: &str, refuse: &Refuse<'_>) -> Result<Value, ProviderError> {
    let content = match &message.content {
        Some(Content::Text(text)) => json!(text),
        _ => content(message, path, refuse)?.into(),
    };
    let mut block = json!({"type": "tool_result", "tool_use_id": message.extra.get("tool_call_id"), "content": content});
    for field in ["is_error", "cache_control"] {
        if let Some(value) = message.extra.get(field) {
            block[field] = value.clone();
        }
    }
    Ok(block)
}
