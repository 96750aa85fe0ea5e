//! A message request read as a chat request. Blocks and tools that chat completions do not know travel on as they are, for the
//! provider to take or refuse; what only tells this protocol's own provider more stays in [`SIDE`].

use super::origins::{Origin, Origins};
use crate::gateway::openai::check;
use crate::types::chat::ChatRequest;
use crate::types::messages::{BLOCKS, SAMPLING, SIDE, VERSIONS, fits_chat, is_foreign, takes_sampling};
use crate::types::{Code, Digest, Failure};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// Least budget that thinking takes (Messages API reference).
const MIN_BUDGET: u64 = 1_024;
/// Hints that only this protocol's own provider takes.
const HINTS: [&str; 4] = ["cache_control", "diagnostics", "service_tier", "speed"];
/// Fields of a tool that a function has, too.
const OF_FUNCTION: [&str; 6] = ["type", "name", "description", "strict", "input_schema", "cache_control"];

/// The chat messages so far, where each came from, and what was lost of documents, by the digest of their data.
#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    origins: Vec<Origin>,
    documents: Fields,
}

impl Conversation {
    fn push(&mut self, message: Value, origin: Origin) {
        self.messages.push(message);
        self.origins.push(origin);
    }
}

/// The version that the caller speaks; the default where the header is missing.
///
/// # Errors
/// [`Code::INVALID_VALUE`] for a version that is none of ours.
pub(super) fn version(headers: &HeaderMap) -> Result<&'static str, Failure> {
    let Some(given) = headers.get("anthropic-version") else { return Ok(VERSIONS[0]) };
    let found = VERSIONS.iter().find(|version| given.as_bytes() == version.as_bytes());
    found.copied().ok_or_else(|| wrong("anthropic-version", format!("expected one of {}", VERSIONS.join(", "))))
}

/// The chat request, and where its fields came from. `needs_limit`: `max_tokens` is demanded.
///
/// # Errors
/// [`Code::MISSING_FIELD`] or [`Code::INVALID_VALUE`] with the field's path, in this protocol's names.
pub(super) fn to_chat(fields: &Fields, version: &str, needs_limit: bool) -> Result<(ChatRequest, Origins), Failure> {
    let mut rest = fields.clone();
    sampling(&rest, version)?;
    let (mut chat, mut side) = (Fields::new(), Fields::new());
    if let Some(model) = rest.shift_remove("model") {
        chat.insert("model".into(), model);
    }
    let mut conversation = Conversation::default();
    match rest.shift_remove("system") {
        None => {}
        Some(Value::Array(blocks)) if blocks.is_empty() => {}
        Some(system @ (Value::String(_) | Value::Array(_))) => {
            let parts = (0..system.as_array().map_or(0, Vec::len)).collect();
            let origin = Origin { path: "system".into(), content: "system".into(), parts, calls: Vec::new() };
            conversation.push(json!({"role": "system", "content": system}), origin);
        }
        Some(_) => return Err(wrong("system", "expected a text or a list of text blocks")),
    }
    turns(rest.shift_remove("messages"), &mut conversation)?;
    chat.insert("messages".into(), conversation.messages.into());
    limit(rest.shift_remove("max_tokens"), needs_limit, &mut chat)?;
    match rest.shift_remove("stop_sequences") {
        None => {}
        Some(Value::Array(texts)) if texts.iter().all(Value::is_string) => {
            // More than chat completions take; the provider says whether it does.
            chat.insert("stop".into(), texts.into());
        }
        Some(_) => return Err(wrong("stop_sequences", "expected a list of texts")),
    }
    tools(&mut rest, &mut chat, &mut side)?;
    output(&mut rest, &mut chat, &mut side)?;
    if let Some(user) = rest.shift_remove("metadata").as_ref().and_then(|metadata| metadata.get("user_id")).filter(|user| user.is_string())
    {
        chat.insert("user".into(), user.clone());
    }
    side.extend(HINTS.iter().filter_map(|name| Some(((*name).to_string(), rest.shift_remove(*name)?))));
    if !conversation.documents.is_empty() {
        side.insert("documents".into(), conversation.documents.into());
    }
    chat.extend(rest);
    if !side.is_empty() {
        chat.insert(SIDE.into(), side.into());
    }
    let mut origins = Origins { messages: conversation.origins, moved: false };
    let stop = chat.shift_remove("stop");
    let mut chat = check::chat(chat).map_err(|failure| origins.told(failure))?;
    chat.stop = stop.map(serde_json::from_value).transpose().map_err(|error| wrong("stop_sequences", error))?;
    origins.moved = chat.extra.contains_key("prompt");
    Ok((chat, origins))
}

fn sampling(fields: &Fields, version: &str) -> Result<(), Failure> {
    if !takes_sampling(version)
        && let Some(name) = SAMPLING.iter().find(|name| fields.contains_key(**name))
    {
        let failure = wrong(name, format!("anthropic-version {version} has no such parameter"));
        return Err(failure.with_hint("leave it out, or send anthropic-version: 2023-06-01"));
    }
    let given = |name: &str, fits: fn(&Value) -> bool| fields.get(name).is_none_or(fits);
    if !given("temperature", |value| value.as_f64().is_some_and(|x| (0.0..=1.0).contains(&x))) {
        return Err(wrong("temperature", "expected a number from 0 to 1"));
    }
    if !given("top_k", Value::is_u64) {
        return Err(wrong("top_k", "expected a whole number from 0"));
    }
    Ok(())
}

fn limit(limit: Option<Value>, needed: bool, chat: &mut Fields) -> Result<(), Failure> {
    match limit {
        None if needed => Err(missing("max_tokens", "this protocol demands a limit")),
        None => Ok(()),
        Some(limit) if limit.as_u64().is_some_and(|n| (1..=u64::from(u32::MAX)).contains(&n)) => {
            chat.insert("max_completion_tokens".into(), limit);
            Ok(())
        }
        Some(_) => Err(wrong("max_tokens", format!("expected a whole number from 1 to {}", u32::MAX))),
    }
}

fn turns(turns: Option<Value>, conversation: &mut Conversation) -> Result<(), Failure> {
    let turns = match turns {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        Some(Value::Array(_)) => return Err(wrong("messages", "the list is empty; at least one message is needed")),
        None => return Err(missing("messages", "a list of messages is needed")),
        Some(_) => return Err(wrong("messages", "expected a list")),
    };
    for (i, turn) in turns.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let Value::Object(mut turn) = turn else { return Err(wrong(&path, "expected an object")) };
        let role = match turn.get("role").and_then(Value::as_str) {
            Some(role @ ("user" | "assistant" | "system")) => role.to_string(),
            _ => return Err(wrong(&format!("{path}.role"), "expected user, assistant or system")),
        };
        let blocks = match turn.shift_remove("content") {
            Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
            Some(Value::Array(blocks)) => blocks,
            None | Some(Value::Null) => return Err(missing(&format!("{path}.content"), "a text or a list of blocks is needed")),
            Some(_) => return Err(wrong(&format!("{path}.content"), "expected a text or a list of blocks")),
        };
        if let Some((j, _)) = blocks.iter().enumerate().find(|(_, block)| !block.get("type").is_some_and(Value::is_string)) {
            return Err(missing(&format!("{path}.content[{j}].type"), "a block names its type"));
        }
        match role.as_str() {
            "assistant" => assistant(blocks, &path, conversation),
            role => user(role, blocks, &path, conversation)?,
        }
    }
    Ok(())
}

fn assistant(blocks: Vec<Value>, path: &str, conversation: &mut Conversation) {
    let own = blocks.iter().filter(|block| !is_foreign(block));
    let all = (!fits_chat(own)).then(|| Value::from(blocks.clone()));
    let mut origin = Origin { path: path.into(), content: format!("{path}.content"), ..Origin::default() };
    let (mut parts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new());
    for (j, mut block) in blocks.into_iter().enumerate() {
        match block["type"].as_str().unwrap_or_default() {
            "tool_use" => {
                let input = block.get("input").map_or_else(|| "{}".to_string(), Value::to_string);
                calls.push(json!({"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": input}}));
                origin.calls.push(j);
            }
            "thinking" | "redacted_thinking" => thoughts.push(block),
            _ => {
                if let Some(text) = block.as_object_mut().filter(|block| block["type"] == "text") {
                    text.shift_remove("citations");
                }
                parts.push(block);
                origin.parts.push(j);
            }
        }
    }
    // Thoughts alone are no message at other providers.
    if parts.is_empty() && calls.is_empty() {
        return;
    }
    let mut message = json!({"role": "assistant", "content": content(parts)});
    for (name, list) in [("tool_calls", calls), ("thinking_blocks", thoughts)] {
        if !list.is_empty() {
            message[name] = list.into();
        }
    }
    if let Some(all) = all {
        message[BLOCKS] = all;
    }
    conversation.push(message, origin);
}

/// A user's turn: its tool results are messages of their own, what stands between them stays in order.
fn user(role: &str, blocks: Vec<Value>, path: &str, conversation: &mut Conversation) -> Result<(), Failure> {
    let empty = Origin { path: path.into(), content: format!("{path}.content"), ..Origin::default() };
    let (mut parts, mut origin) = (Vec::new(), empty.clone());
    let flush = |parts: &mut Vec<Value>, origin: &mut Origin, conversation: &mut Conversation| {
        let (parts, origin) = (std::mem::take(parts), std::mem::replace(origin, empty.clone()));
        if !parts.is_empty() {
            conversation.push(json!({"role": role, "content": content(parts)}), origin);
        }
    };
    for (j, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}.content[{j}]");
        let part = match block["type"].as_str().unwrap_or_default() {
            "tool_result" => {
                flush(&mut parts, &mut origin, conversation);
                let inner = (0..block["content"].as_array().map_or(0, Vec::len)).collect();
                let of_result = Origin { content: format!("{path}.content"), parts: inner, path: path.clone(), calls: Vec::new() };
                conversation.push(tool_result(&block, &path)?, of_result);
                continue;
            }
            "image" => image(&block, &path)?,
            "document" => document(block, &mut conversation.documents),
            _ => block,
        };
        parts.push(part);
        origin.parts.push(j);
    }
    flush(&mut parts, &mut origin, conversation);
    Ok(())
}

/// One text block without more is a plain text; others are parts.
fn content(mut parts: Vec<Value>) -> Value {
    let plain = parts.iter().all(|part| part["type"] == "text" && part.as_object().is_some_and(|part| part.len() == 2));
    match parts.len() {
        0 => Value::Null,
        1 if plain => parts.remove(0)["text"].take(),
        _ => parts.into(),
    }
}

fn image(block: &Value, path: &str) -> Result<Value, Failure> {
    let text = |pointer: &str| block.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let url = match text("/source/type") {
        "base64" => format!("data:{};base64,{}", text("/source/media_type"), text("/source/data")),
        "url" => text("/source/url").to_string(),
        // By id: only the provider that keeps the file knows it.
        "file" => return Ok(block.clone()),
        _ => return Err(wrong(&format!("{path}.source.type"), "expected base64, url or file")),
    };
    let mut part = json!({"type": "image_url", "image_url": {"url": url}});
    if let Some(control) = block.get("cache_control") {
        part["cache_control"] = control.clone();
    }
    Ok(part)
}

/// A document as a file or, where it is plain text, as text; others as they are. What that loses is kept beside.
fn document(mut block: Value, documents: &mut Fields) -> Value {
    let text = |pointer: &str| block.pointer(pointer).and_then(Value::as_str);
    let (mut part, digest) = match (text("/source/type"), text("/source/data")) {
        (Some("base64"), Some(data)) => {
            let kind = text("/source/media_type").unwrap_or("application/pdf");
            let name = text("/title").unwrap_or("document.pdf");
            (json!({"type": "file", "file": {"filename": name, "file_data": format!("data:{kind};base64,{data}")}}), Digest::of(data))
        }
        (Some("text"), Some(data)) => (json!({"type": "text", "text": data}), Digest::of(data)),
        _ => return block,
    };
    if let Some(control) = block.get("cache_control") {
        part["cache_control"] = control.clone();
    }
    block["source"].as_object_mut().map(|source| source.shift_remove("data"));
    documents.insert(digest.hex(), block);
    part
}

fn tool_result(block: &Value, path: &str) -> Result<Value, Failure> {
    let id = block.get("tool_use_id").filter(|id| id.is_string());
    let id = id.ok_or_else(|| missing(&format!("{path}.tool_use_id"), "a result names the call it answers"))?;
    let content = match block.get("content") {
        None | Some(Value::Null) => json!(""),
        Some(Value::Array(blocks)) => {
            let parts = blocks.iter().enumerate().map(|(k, inner)| match inner["type"].as_str() {
                Some("image") => image(inner, &format!("{path}.content[{k}]")),
                _ => Ok(inner.clone()),
            });
            match self::content(parts.collect::<Result<Vec<_>, _>>()?) {
                Value::Null => json!(""),
                content => content,
            }
        }
        Some(text) => text.clone(),
    };
    let mut message = json!({"role": "tool", "tool_call_id": id, "content": content});
    for field in ["is_error", "cache_control"] {
        if let Some(value) = block.get(field) {
            message[field] = value.clone();
        }
    }
    Ok(message)
}

fn tools(rest: &mut Fields, chat: &mut Fields, side: &mut Fields) -> Result<(), Failure> {
    match rest.shift_remove("tools") {
        None => {}
        Some(Value::Array(tools)) => {
            let more: Fields = tools.iter().filter_map(beyond_function).collect();
            if !more.is_empty() {
                side.insert("tools".into(), more.into());
            }
            let tools: Vec<_> = tools.into_iter().enumerate().map(|(i, tool)| self::tool(i, tool)).collect::<Result<_, _>>()?;
            if !tools.is_empty() {
                chat.insert("tools".into(), tools.into());
            }
        }
        Some(_) => return Err(wrong("tools", "expected a list")),
    }
    let Some(choice) = rest.shift_remove("tool_choice") else { return Ok(()) };
    let choice_type = choice.get("type").and_then(Value::as_str);
    let written = match (choice_type, choice.get("name").filter(|name| name.is_string())) {
        (Some("auto"), _) => json!("auto"),
        (Some("none"), _) => json!("none"),
        (Some("any"), _) => json!("required"),
        (Some("tool"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        (Some("tool"), None) => return Err(missing("tool_choice.name", "the tool to use is needed")),
        _ => return Err(wrong("tool_choice.type", "expected auto, any, tool or none")),
    };
    // Without tools there is no choice; other providers refuse one.
    if !chat.contains_key("tools") {
        return Ok(());
    }
    chat.insert("tool_choice".into(), written);
    if choice.get("disable_parallel_tool_use") == Some(&Value::Bool(true)) {
        chat.insert("parallel_tool_calls".into(), false.into());
    }
    Ok(())
}

/// What a custom tool has beyond a function, by its name.
fn beyond_function(tool: &Value) -> Option<(String, Value)> {
    let name = tool.get("name")?.as_str()?;
    let custom = tool.get("type").is_none_or(|kind| kind.is_null() || kind == "custom");
    let fields = tool.as_object()?.iter().filter(|(field, _)| custom && !OF_FUNCTION.contains(&field.as_str()));
    let fields: Fields = fields.map(|(field, value)| (field.clone(), value.clone())).collect();
    (!fields.is_empty()).then(|| (name.to_string(), fields.into()))
}

/// A custom tool as a function; the provider's own tools as they are.
fn tool(i: usize, tool: Value) -> Result<Value, Failure> {
    match tool.get("type").and_then(Value::as_str) {
        None | Some("custom") => {}
        Some(_) => return Ok(tool),
    }
    let name = tool.get("name").filter(|name| name.is_string());
    let name = name.ok_or_else(|| missing(&format!("tools[{i}].name"), "a tool has a name"))?;
    let schema = tool.get("input_schema").filter(|schema| schema.is_object());
    let schema = schema.ok_or_else(|| missing(&format!("tools[{i}].input_schema"), "a tool has a JSON schema"))?;
    let mut function = json!({"name": name, "parameters": schema});
    for field in ["description", "strict"] {
        if let Some(value) = tool.get(field) {
            function[field] = value.clone();
        }
    }
    let mut written = json!({"type": "function", "function": function});
    if let Some(control) = tool.get("cache_control") {
        written["cache_control"] = control.clone();
    }
    Ok(written)
}

/// `output_config` and `thinking` as `response_format` and `reasoning_effort`, and as they were.
fn output(rest: &mut Fields, chat: &mut Fields, side: &mut Fields) -> Result<(), Failure> {
    let mut config = match rest.shift_remove("output_config") {
        None => Fields::new(),
        Some(Value::Object(config)) => config,
        Some(_) => return Err(wrong("output_config", "expected an object")),
    };
    if let Some(format) = config.shift_remove("format").filter(|format| !format.is_null()) {
        let schema = format.get("schema").filter(|schema| schema.is_object() && format["type"] == "json_schema");
        let schema = schema.ok_or_else(|| wrong("output_config.format", "expected {\"type\": \"json_schema\", \"schema\": …}"))?;
        chat.insert(
            "response_format".into(),
            json!({"type": "json_schema", "json_schema": {"name": "output", "strict": true, "schema": schema}}),
        );
    }
    if let Some(effort) = config.get("effort").and_then(Value::as_str) {
        chat.insert("reasoning_effort".into(), if effort == "max" { "xhigh" } else { effort }.into());
    }
    if !config.is_empty() {
        side.insert("output_config".into(), config.into());
    }
    let Some(thinking) = rest.shift_remove("thinking") else { return Ok(()) };
    match thinking.get("type").and_then(Value::as_str) {
        // How much to think is then the model's own choice. That thinking is off, only providers are told that can switch it off.
        Some("disabled" | "adaptive" | "between_tools") => {}
        Some("enabled") => {
            let budget = thinking.get("budget_tokens").filter(|budget| !budget.is_null());
            let budget = budget.ok_or_else(|| missing("thinking.budget_tokens", "thinking that is enabled has a budget"))?;
            let effort = match budget.as_u64() {
                Some(MIN_BUDGET..4_096) => "low",
                Some(4_096..16_384) => "medium",
                Some(16_384..) => "high",
                _ => return Err(wrong("thinking.budget_tokens", format!("expected a whole number from {MIN_BUDGET}"))),
            };
            chat.entry("reasoning_effort").or_insert(effort.into());
        }
        _ => return Err(wrong("thinking.type", "expected enabled, adaptive, between_tools or disabled")),
    }
    side.insert("thinking".into(), thinking);
    Ok(())
}

fn missing(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing: {message}"))
}

fn wrong(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}
