//! A responses request read as a chat request. What chat completions cannot do is refused by name.

use crate::gateway::openai::check;
use crate::types::chat::ChatRequest;
use crate::types::{Code, Failure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// Fields that need something kept between calls, or a service of OpenAI's.
const REFUSED: &[(&str, &str)] = &[
    ("previous_response_id", "responses are not kept here; send the whole conversation in input"),
    ("conversation", "conversations are not kept here; send the whole conversation in input"),
    ("background", "responses are not made in the background; /v1/batches takes work that can wait"),
    ("context_management", "nothing is left out of a conversation here"),
];
/// Fields that chat completions call the same.
const SAME: &[&str] = &[
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_logprobs",
    "parallel_tool_calls",
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt",
];
/// Fields that are the envelope's, or have no effect on the answer.
const ENVELOPE: &[&str] = &["store", "include", "truncation", "stream_options", "max_tool_calls", "moderation"];

/// The chat request, and the fields that the response repeats.
///
/// # Errors
/// [`Code::MISSING_FIELD`], [`Code::INVALID_VALUE`] or [`Code::UNSUPPORTED`] with the field's path, in this API's names.
pub(super) fn to_chat(mut fields: Fields) -> Result<(ChatRequest, Fields), Failure> {
    let echoed = fields.clone();
    for (name, why) in REFUSED {
        if fields.shift_remove(*name).is_some_and(|value| value != false) {
            return Err(Failure::on(Code::UNSUPPORTED, *name, format!("{name}: {why}")));
        }
    }
    if fields.get("truncation").is_some_and(|truncation| truncation != "disabled") {
        return Err(Failure::on(Code::UNSUPPORTED, "truncation", "truncation: only \"disabled\" is taken"));
    }
    let mut chat = Fields::new();
    let wants_logprobs = fields.get("include").and_then(Value::as_array);
    if wants_logprobs.is_some_and(|include| include.iter().any(|item| item == "message.output_text.logprobs")) {
        chat.insert("logprobs".into(), true.into());
    }
    for name in SAME {
        if let Some(value) = fields.shift_remove(*name) {
            chat.insert((*name).into(), value);
        }
    }
    if chat.contains_key("top_logprobs") {
        chat.insert("logprobs".into(), true.into());
    }
    ENVELOPE.iter().for_each(|name| drop(fields.shift_remove(*name)));
    prompt(&mut chat)?;
    let mut messages = Vec::new();
    match fields.shift_remove("instructions") {
        None => {}
        Some(Value::String(text)) => messages.push(json!({"role": "system", "content": text})),
        Some(_) => return Err(wrong("instructions", "expected a text")),
    }
    match fields.shift_remove("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => self::items(items, &mut messages)?,
        None if chat.contains_key("prompt") => {}
        None => return Err(missing("input", "a text or a list of items is needed")),
        Some(_) => return Err(wrong("input", "expected a text or a list of items")),
    }
    chat.insert("messages".into(), messages.into());
    if let Some(limit) = fields.shift_remove("max_output_tokens") {
        if !limit.as_u64().is_some_and(|n| (1..=u64::from(u32::MAX)).contains(&n)) {
            return Err(wrong("max_output_tokens", format!("expected a whole number from 1 to {}", u32::MAX)));
        }
        chat.insert("max_completion_tokens".into(), limit);
    }
    text(fields.shift_remove("text"), &mut chat)?;
    if let Some(effort) = fields.shift_remove("reasoning").as_ref().and_then(|reasoning| reasoning.get("effort")).filter(|e| !e.is_null()) {
        chat.insert("reasoning_effort".into(), effort.clone());
    }
    tools(&mut fields, &mut chat)?;
    chat.extend(fields);
    Ok((check::chat(chat)?, echoed))
}

/// A prompt by name: without `model` the name is what is called, a route or a prompt of the library.
fn prompt(chat: &mut Fields) -> Result<(), Failure> {
    let Some(prompt) = chat.get("prompt") else { return Ok(()) };
    let Some(Value::String(id)) = prompt.get("id").cloned() else {
        return Err(missing("prompt.id", "the name of a route or of a prompt is needed"));
    };
    chat.entry("model").or_insert(id.into());
    let variables = chat.get_mut("prompt").and_then(|prompt| prompt.get_mut("variables")).and_then(Value::as_object_mut);
    for (name, variable) in variables.into_iter().flatten() {
        match variable.get("type").and_then(Value::as_str) {
            None => {}
            Some("input_text") => *variable = variable["text"].take(),
            Some(_) => {
                let field = format!("prompt.variables.{name}");
                let message = format!("{field}: a text is needed; images and files in variables are not taken yet");
                return Err(Failure::on(Code::UNSUPPORTED, field, message));
            }
        }
    }
    Ok(())
}

fn items(items: Vec<Value>, messages: &mut Vec<Value>) -> Result<(), Failure> {
    // Thoughts stand before the turn that they belong to.
    let mut thoughts = Vec::new();
    for (i, mut item) in items.into_iter().enumerate() {
        let path = format!("input[{i}]");
        if !item.is_object() {
            return Err(wrong(&path, "expected an object"));
        }
        let kind = item.get("type").and_then(Value::as_str).unwrap_or("message").to_string();
        match kind.as_str() {
            "message" => {
                let content = content(item["content"].take(), &path)?;
                let mut message = json!({"role": item["role"], "content": content});
                if item["role"] == "assistant" && !thoughts.is_empty() {
                    message["thinking_blocks"] = std::mem::take(&mut thoughts).into();
                }
                messages.push(message);
            }
            "function_call" => call(&item, &path, &mut thoughts, messages)?,
            "function_call_output" => {
                let id = item.get("call_id").filter(|id| id.is_string());
                let id = id.cloned().ok_or_else(|| missing(&format!("{path}.call_id"), "an output names the call it answers"))?;
                let content = content(item["output"].take(), &path)?;
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            "reasoning" => thoughts.extend(item.get("encrypted_content").and_then(Value::as_str).and_then(opened).unwrap_or_default()),
            other => {
                let message = format!(
                    "{path}.type: items of type \"{other}\" are not taken; message, function_call, function_call_output and reasoning are"
                );
                return Err(Failure::on(Code::UNSUPPORTED, format!("{path}.type"), message));
            }
        }
    }
    Ok(())
}

/// A call joins the assistant's turn before it.
fn call(item: &Value, path: &str, thoughts: &mut Vec<Value>, messages: &mut Vec<Value>) -> Result<(), Failure> {
    for field in ["call_id", "name", "arguments"] {
        if !item.get(field).is_some_and(Value::is_string) {
            return Err(missing(&format!("{path}.{field}"), "a text is needed"));
        }
    }
    let call = json!({"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}});
    match messages.last_mut() {
        Some(last) if last["role"] == "assistant" => match last["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => last["tool_calls"] = json!([call]),
        },
        _ => messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
    }
    if let Some(last) = messages.last_mut().filter(|_| !thoughts.is_empty()) {
        last["thinking_blocks"] = std::mem::take(thoughts).into();
    }
    Ok(())
}

fn content(content: Value, path: &str) -> Result<Value, Failure> {
    let Value::Array(parts) = content else { return Ok(content) };
    let parts = parts.into_iter().enumerate().map(|(j, part)| {
        let path = format!("{path}.content[{j}]");
        Ok(match part["type"].as_str().unwrap_or_default() {
            "input_text" | "output_text" | "text" => json!({"type": "text", "text": part["text"]}),
            "refusal" => json!({"type": "refusal", "refusal": part["refusal"]}),
            "input_image" => match part.get("image_url").filter(|url| url.is_string()) {
                Some(url) => {
                    let mut image = json!({"url": url});
                    if let Some(detail) = part.get("detail").filter(|detail| detail.is_string()) {
                        image["detail"] = detail.clone();
                    }
                    json!({"type": "image_url", "image_url": image})
                }
                None => {
                    return Err(Failure::on(
                        Code::UNSUPPORTED,
                        format!("{path}.image_url"),
                        "an image is sent as image_url; files by id are not known here",
                    ));
                }
            },
            "input_file" => {
                let fields = ["file_id", "file_data", "filename"].into_iter();
                let file: Fields = fields.filter_map(|name| Some((name.to_string(), part.get(name)?.clone()))).collect();
                json!({"type": "file", "file": file})
            }
            "input_audio" => part,
            _ => return Err(wrong(&format!("{path}.type"), "expected input_text, output_text, input_image, input_file or refusal")),
        })
    });
    let parts: Vec<_> = parts.collect::<Result<_, Failure>>()?;
    match parts.as_slice() {
        [one] if one["type"] == "text" => Ok(one["text"].clone()),
        _ => Ok(parts.into()),
    }
}

fn text(text: Option<Value>, chat: &mut Fields) -> Result<(), Failure> {
    let Some(text) = text else { return Ok(()) };
    if let Some(verbosity) = text.get("verbosity").filter(|verbosity| verbosity.is_string()) {
        chat.insert("verbosity".into(), verbosity.clone());
    }
    let Some(format) = text.get("format").filter(|format| !format.is_null()) else { return Ok(()) };
    let format = match format["type"].as_str() {
        Some("text") => return Ok(()),
        Some("json_object") => format.clone(),
        Some("json_schema") if format.get("schema").is_some_and(Value::is_object) => {
            let mut inner = format.as_object().cloned().unwrap_or_default();
            inner.shift_remove("type");
            json!({"type": "json_schema", "json_schema": inner})
        }
        Some("json_schema") => return Err(missing("text.format.schema", "a JSON schema is needed")),
        _ => return Err(wrong("text.format.type", "expected text, json_object or json_schema")),
    };
    chat.insert("response_format".into(), format);
    Ok(())
}

fn tools(fields: &mut Fields, chat: &mut Fields) -> Result<(), Failure> {
    match fields.shift_remove("tools") {
        None => {}
        Some(Value::Array(tools)) => {
            let tools: Vec<_> = tools.into_iter().enumerate().map(|(i, tool)| self::tool(i, tool)).collect::<Result<_, _>>()?;
            if !tools.is_empty() {
                chat.insert("tools".into(), tools.into());
            }
        }
        Some(_) => return Err(wrong("tools", "expected a list")),
    }
    match fields.shift_remove("tool_choice") {
        None => {}
        Some(choice @ Value::String(_)) => drop(chat.insert("tool_choice".into(), choice)),
        Some(choice) if choice["type"] == "function" && choice["name"].is_string() => {
            chat.insert("tool_choice".into(), json!({"type": "function", "function": {"name": choice["name"]}}));
        }
        Some(_) => return Err(Failure::on(Code::UNSUPPORTED, "tool_choice", "tool_choice: expected auto, none, required or a function")),
    }
    Ok(())
}

fn tool(i: usize, tool: Value) -> Result<Value, Failure> {
    let path = format!("tools[{i}]");
    if tool["type"] != "function" {
        let message = format!("{path}.type: only functions are taken; tools that OpenAI runs itself are not");
        return Err(Failure::on(Code::UNSUPPORTED, format!("{path}.type"), message));
    }
    if !tool["name"].is_string() {
        return Err(missing(&format!("{path}.name"), "a function has a name"));
    }
    let fields = ["name", "description", "parameters", "strict"].into_iter();
    let function: Fields = fields.filter_map(|name| Some((name.to_string(), tool.get(name).filter(|v| !v.is_null())?.clone()))).collect();
    Ok(json!({"type": "function", "function": function}))
}

/// Thoughts as an opaque text, to be sent back with the next turn.
pub(super) fn sealed(thoughts: &Value) -> String {
    BASE64_STANDARD.encode(thoughts.to_string())
}

fn opened(text: &str) -> Option<Vec<Value>> {
    serde_json::from_slice(&BASE64_STANDARD.decode(text).ok()?).ok()
}

fn missing(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing: {message}"))
}

fn wrong(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}
