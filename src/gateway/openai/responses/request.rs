//! A responses request read as a chat request. What chat completions cannot do is refused by name.

use super::items::Turns;
use crate::gateway::openai::check;
use crate::gateway::openai::names::Names;
use crate::types::chat::ChatRequest;
use crate::types::{Code, Failure};
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
const ENVELOPE: &[&str] = &["store", "metadata", "include", "truncation", "stream_options", "max_tool_calls", "moderation"];
/// What the same thing is called in a chat request and here.
const NAMES: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
    ("response_format", "text.format"),
    ("response_format.json_schema", "text.format"),
    ("tool_choice.function", "tool_choice"),
];

/// A responses request, read.
pub(super) struct Read {
    pub chat: ChatRequest,
    /// The fields that the response repeats.
    pub echoed: Fields,
    /// What the caller calls the parts of the chat request.
    pub names: Names,
}

/// Reads a request.
///
/// # Errors
/// [`Code::MISSING_FIELD`], [`Code::INVALID_VALUE`] or [`Code::UNSUPPORTED`] with the field's path, in this API's names.
pub(super) fn to_chat(mut fields: Fields) -> Result<Read, Failure> {
    let echoed = fields.clone();
    for (name, why) in REFUSED {
        if fields.shift_remove(*name).is_some_and(|value| value != false) {
            return Err(Failure::on(Code::UNSUPPORTED, *name, format!("{name}: {why}")));
        }
    }
    if fields.get("truncation").is_some_and(|truncation| truncation != "disabled") {
        return Err(Failure::on(Code::UNSUPPORTED, "truncation", "truncation: only \"disabled\" is taken"));
    }
    check::metadata(&fields)?;
    let mut turns = Turns::default();
    NAMES.iter().for_each(|(chat, own)| turns.names.add(*chat, *own));
    let mut chat = Fields::new();
    logprobs(&fields, &mut chat, &mut turns.names);
    for name in SAME {
        if let Some(value) = fields.shift_remove(*name) {
            chat.insert((*name).into(), value);
        }
    }
    ENVELOPE.iter().for_each(|name| drop(fields.shift_remove(*name)));
    prompt(&mut chat)?;
    input(&mut fields, chat.contains_key("prompt"), &mut turns)?;
    chat.insert("messages".into(), turns.messages.into());
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
    tools(&mut fields, &mut chat, &mut turns.names)?;
    chat.extend(fields);
    let names = turns.names;
    let chat = check::read_chat(chat).map_err(|failure| names.told(failure))?;
    Ok(Read { chat, echoed, names })
}

/// Probabilities are asked for in `include` or by their number.
fn logprobs(fields: &Fields, chat: &mut Fields, names: &mut Names) {
    let include = fields.get("include").and_then(Value::as_array).into_iter().flatten();
    let asked = include.enumerate().find(|(_, item)| *item == "message.output_text.logprobs").map(|(i, _)| format!("include[{i}]"));
    let own = fields.contains_key("top_logprobs").then(|| "top_logprobs".to_string()).or(asked);
    if let Some(own) = own {
        chat.insert("logprobs".into(), true.into());
        names.add("logprobs", own);
    }
}

fn input(fields: &mut Fields, has_prompt: bool, turns: &mut Turns) -> Result<(), Failure> {
    match fields.shift_remove("instructions") {
        None => {}
        Some(Value::String(text)) => turns.push_text("system", text, "instructions"),
        Some(_) => return Err(wrong("instructions", "expected a text")),
    }
    match fields.shift_remove("input") {
        Some(Value::String(text)) => turns.push_text("user", text, "input"),
        Some(Value::Array(items)) => turns.read(items)?,
        None if has_prompt => {}
        None => return Err(missing("input", "a text or a list of items is needed")),
        Some(_) => return Err(wrong("input", "expected a text or a list of items")),
    }
    Ok(())
}

/// A prompt by name: without `model` the name is what is called, a route or a prompt of the library.
fn prompt(chat: &mut Fields) -> Result<(), Failure> {
    let Some(prompt) = chat.get("prompt") else { return Ok(()) };
    if prompt.get("id").is_none_or(Value::is_null) {
        return Err(missing("prompt.id", "the name of a route or of a prompt is needed"));
    }
    crate::gateway::openai::prompt::read(chat)
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

fn tools(fields: &mut Fields, chat: &mut Fields, names: &mut Names) -> Result<(), Failure> {
    match fields.shift_remove("tools") {
        None => {}
        Some(Value::Array(tools)) => {
            (0..tools.len()).for_each(|i| names.add(format!("tools[{i}].function"), format!("tools[{i}]")));
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
    if chat.contains_key("tools") { Ok(()) } else { without_tools(chat) }
}

/// This API takes choices among no tools, which SDKs send; chat completions do not. A release may bring tools of its own, which only
/// a model that is called directly cannot have.
fn without_tools(chat: &mut Fields) -> Result<(), Failure> {
    let model = chat.get("model").and_then(Value::as_str).unwrap_or_default();
    let may_bring_tools = !model.contains('/') || chat.contains_key("prompt");
    let drops = |value: &Value| value == "auto" || value == true || (!may_bring_tools && (value == "none" || value == false));
    for name in ["tool_choice", "parallel_tool_calls"] {
        if chat.get(name).is_some_and(drops) {
            chat.shift_remove(name);
        }
    }
    if chat.contains_key("tool_choice") && !may_bring_tools {
        return Err(wrong("tool_choice", "a call cannot be demanded without tools"));
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

pub(super) fn missing(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::MISSING_FIELD, field, format!("{field} is missing: {message}"))
}

pub(super) fn wrong(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}
