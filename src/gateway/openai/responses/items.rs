//! The items of a response's input as a conversation's messages. Items that follow each other are one assistant's turn: calls and
//! texts join the message before them, thoughts begin a new one, so that providers get them in the order in which they were written.

use super::request::{missing, wrong};
use super::seal::Thoughts;
use crate::gateway::openai::names::Names;
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};

const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// The conversation so far, and where its messages came from.
#[derive(Default)]
pub(super) struct Turns {
    pub messages: Vec<Value>,
    pub names: Names,
    thoughts: Thoughts,
}

impl Turns {
    /// Adds a message that `own` of the request holds; returns its path in the chat request.
    pub(super) fn push(&mut self, message: Value, own: &str) -> String {
        let path = format!("messages[{}]", self.messages.len());
        self.names.add(&path, own);
        self.messages.push(message);
        path
    }

    /// Adds a message that is one text of the request.
    pub(super) fn push_text(&mut self, role: &str, text: String, own: &str) {
        let path = self.push(json!({"role": role, "content": text}), own);
        self.names.add(format!("{path}.content"), own);
    }

    /// Reads the items in order.
    ///
    /// # Errors
    /// [`Code::MISSING_FIELD`], [`Code::INVALID_VALUE`] or [`Code::UNSUPPORTED`] with the path in `input`.
    pub(super) fn read(&mut self, items: Vec<Value>) -> Result<(), Failure> {
        self.thoughts.learn(&items);
        for (i, mut item) in items.into_iter().enumerate() {
            let path = format!("input[{i}]");
            if !item.is_object() {
                return Err(wrong(&path, "expected an object"));
            }
            match item.get("type").map_or(Some("message"), Value::as_str) {
                Some("message") => self.message(&mut item, &path)?,
                Some("function_call") => self.call(&item, &path)?,
                Some("function_call_output") => self.output(&mut item, &path)?,
                Some("reasoning") => self.reasoning(&item),
                other => {
                    let taken = "message, function_call, function_call_output and reasoning are";
                    let found = other.unwrap_or("of no name");
                    let message = format!("{path}.type: items of type \"{found}\" are not taken; {taken}");
                    return Err(Failure::on(Code::UNSUPPORTED, format!("{path}.type"), message));
                }
            }
        }
        Ok(())
    }

    /// Thoughts wait for what they led to. A signature alone may also come after the text that it signs.
    fn reasoning(&mut self, item: &Value) {
        self.thoughts.add(item);
        let signed = |last: &&mut Value| last["role"] == "assistant" && last.get("extra_content").is_none();
        if self.thoughts.is_signature()
            && let Some(last) = self.messages.last_mut().filter(signed)
        {
            self.thoughts.put_into(last);
        }
    }

    fn message(&mut self, item: &mut Value, path: &str) -> Result<(), Failure> {
        let role = match item.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
            None | Some(Value::Null) => return Err(missing(&format!("{path}.role"), format!("one of {} is needed", ROLES.join(", ")))),
            Some(_) => return Err(wrong(&format!("{path}.role"), format!("expected one of {}", ROLES.join(", ")))),
        };
        let content = content(item["content"].take(), &format!("{path}.content"))?;
        if role == "assistant" {
            // A turn that said nothing, which services refuse; its thoughts belong to what comes next.
            if !is_empty(&content) {
                self.said(content, path);
            }
            return Ok(());
        }
        if !content.as_array().is_some_and(Vec::is_empty) {
            self.thoughts.forget();
            let names = inner_names(&content);
            let at = self.push(json!({"role": role, "content": content}), path);
            names.into_iter().for_each(|(inner, own)| self.names.add(format!("{at}.{inner}"), format!("{path}.{own}")));
        }
        Ok(())
    }

    /// A text joins calls that stand before it, because nothing may come between them and their outputs.
    fn said(&mut self, content: Value, path: &str) {
        let at = self.turn(path, |last| last["tool_calls"].is_array());
        let message = &mut self.messages[at];
        message["content"] = match (message["content"].take(), content) {
            (Value::Null, content) => content,
            (before, content) => [parts(before), parts(content)].concat().into(),
        };
    }

    /// A call joins the assistant's turn before it.
    fn call(&mut self, item: &Value, path: &str) -> Result<(), Failure> {
        let text = |field: &str| {
            let text = item.get(field).and_then(Value::as_str);
            text.ok_or_else(|| missing(&format!("{path}.{field}"), "a text is needed"))
        };
        let (id, name, arguments) = (text("call_id")?, text("name")?, text("arguments")?);
        let mut call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        self.thoughts.complete(id, &mut call);
        let at = self.turn(path, |_| true);
        let message = &mut self.messages[at];
        let number = message["tool_calls"].as_array().map_or(0, Vec::len);
        match message["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => message["tool_calls"] = json!([call]),
        }
        let chat = format!("messages[{at}].tool_calls[{number}]");
        self.names.add(&chat, path);
        self.names.add(format!("{chat}.function"), path);
        self.names.add(format!("{chat}.id"), format!("{path}.call_id"));
        Ok(())
    }

    fn output(&mut self, item: &mut Value, path: &str) -> Result<(), Failure> {
        let id = item.get("call_id").filter(|id| id.is_string());
        let id = id.cloned().ok_or_else(|| missing(&format!("{path}.call_id"), "an output names the call it answers"))?;
        let content = content(item["output"].take(), &format!("{path}.output"))?;
        self.thoughts.forget();
        let at = self.push(json!({"role": "tool", "tool_call_id": id, "content": content}), path);
        self.names.add(format!("{at}.content"), format!("{path}.output"));
        self.names.add(format!("{at}.tool_call_id"), format!("{path}.call_id"));
        Ok(())
    }

    /// Position of the assistant's message that an item belongs to: the last one, where it is the assistant's and the item `joins` it,
    /// or a new one. Thoughts that stand before the item go with it.
    fn turn(&mut self, path: &str, joins: impl Fn(&Value) -> bool) -> usize {
        let joins = self.thoughts.blocks.is_empty() && self.messages.last().is_some_and(|last| last["role"] == "assistant" && joins(last));
        if !joins {
            self.push(json!({"role": "assistant", "content": null}), path);
        }
        let at = self.messages.len() - 1;
        self.thoughts.put_into(&mut self.messages[at]);
        at
    }
}

/// What the parts of a content have another name for, below their message.
fn inner_names(content: &Value) -> Vec<(String, String)> {
    let parts = content.as_array().into_iter().flatten().enumerate();
    let name = |(j, part): (usize, &Value)| match part["type"].as_str() {
        Some("image_url") => Some((format!("content[{j}].image_url.url"), format!("content[{j}].image_url"))),
        Some("file") => Some((format!("content[{j}].file"), format!("content[{j}]"))),
        _ => None,
    };
    parts.filter_map(name).collect()
}

fn is_empty(content: &Value) -> bool {
    match content {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(parts) => parts.iter().all(|part| part["type"] == "text" && part["text"] == ""),
        _ => false,
    }
}

fn parts(content: Value) -> Vec<Value> {
    match content {
        Value::Array(parts) => parts,
        text => vec![json!({"type": "text", "text": text})],
    }
}

/// A content in the parts of chat completions. `path` is that of the content.
fn content(content: Value, path: &str) -> Result<Value, Failure> {
    let Value::Array(parts) = content else { return Ok(content) };
    let parts = parts.into_iter().enumerate().map(|(j, part)| self::part(part, &format!("{path}[{j}]")));
    let parts: Vec<_> = parts.collect::<Result<_, Failure>>()?;
    match parts.as_slice() {
        [one] if one["type"] == "text" => Ok(one["text"].clone()),
        _ => Ok(parts.into()),
    }
}

/// A part in the shape of chat completions. `path` is its own.
///
/// # Errors
/// [`Code::MISSING_FIELD`], [`Code::INVALID_VALUE`] or [`Code::UNSUPPORTED`] with the field's path.
pub fn part(part: Value, path: &str) -> Result<Value, Failure> {
    let text = |field: &str| match part.get(field) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(missing(&format!("{path}.{field}"), "a text is needed")),
        Some(_) => Err(wrong(&format!("{path}.{field}"), "expected a text")),
    };
    if !part.is_object() {
        return Err(wrong(path, "expected an object"));
    }
    Ok(match part["type"].as_str().unwrap_or_default() {
        "input_text" | "output_text" | "text" => json!({"type": "text", "text": text("text")?}),
        "refusal" => json!({"type": "refusal", "refusal": text("refusal")?}),
        "input_image" => {
            let mut image = json!({"url": image(&part, path)?});
            if let Some(detail) = part.get("detail").filter(|detail| detail.is_string()) {
                image["detail"] = detail.clone();
            }
            json!({"type": "image_url", "image_url": image})
        }
        "input_file" => {
            if part.get("file_url").is_some_and(|url| !url.is_null()) {
                let message = format!("{path}.file_url: nothing is fetched on a caller's behalf; send file_data");
                return Err(Failure::on(Code::UNSUPPORTED, format!("{path}.file_url"), message));
            }
            let fields = ["file_id", "file_data", "filename"].into_iter();
            let given = |name: &str| part.get(name).filter(|value| !value.is_null()).cloned();
            let file: Map<_, _> = fields.filter_map(|name| Some((name.to_string(), given(name)?))).collect();
            if !file.contains_key("file_id") && !file.contains_key("file_data") {
                return Err(missing(&format!("{path}.file_data"), "a file is sent as file_data"));
            }
            json!({"type": "file", "file": file})
        }
        "input_audio" => part,
        _ => return Err(wrong(&format!("{path}.type"), "expected input_text, output_text, input_image, input_file or refusal")),
    })
}

/// The URL of an image.
fn image<'a>(part: &'a Value, path: &str) -> Result<&'a str, Failure> {
    part.get("image_url").and_then(Value::as_str).ok_or_else(|| {
        let field = format!("{path}.image_url");
        let message = format!("{field}: an image is sent as a URL; files by id are not known here");
        Failure::on(Code::UNSUPPORTED, field, message)
    })
}

#[cfg(test)]
mod tests {
    use super::super::seal;
    use super::*;

    fn messages(items: Value) -> Value {
        let mut turns = Turns::default();
        turns.read(items.as_array().expect("a list").clone()).expect("fits");
        turns.messages.into()
    }

    fn call(id: &str) -> Value {
        json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"})
    }

    fn called(id: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}})
    }

    fn said(text: &str) -> Value {
        json!({"role": "assistant", "content": [{"type": "output_text", "text": text}]})
    }

    #[test]
    fn thoughts_in_plain_words_go_with_the_turn_they_led_to() {
        let thought = |text: &str| json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]});
        let whole = json!({"type": "reasoning", "summary": [], "encrypted_content": "of another service",
            "content": [{"type": "reasoning_text", "text": "c"}]});
        let items = json!([thought("a"), said(""), thought("b"), said("x"), whole, call("1"), {"role": "user", "content": "y"}, thought("d"),
            {"role": "user", "content": "z"}, said("end")]);
        let expected = json!([
            {"role": "assistant", "content": "x", "reasoning_content": "a\n\nb\n\nc", "tool_calls": [called("1")]},
            {"role": "user", "content": "y"}, {"role": "user", "content": "z"}, {"role": "assistant", "content": "end"}
        ]);
        assert_eq!(messages(items), expected);
    }

    #[test]
    fn nothing_stands_between_calls_and_their_outputs() {
        let output = json!({"type": "function_call_output", "call_id": "1", "output": "7"});
        let expected = json!([
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "tool_calls": [called("1"), called("2")]},
            {"role": "tool", "tool_call_id": "1", "content": "7"}
        ]);
        assert_eq!(messages(json!([call("1"), said("a"), said("b"), call("2"), output])), expected);
    }

    #[test]
    fn a_signature_finds_its_call_wherever_its_item_stands() {
        let extra = json!({"google": {"thought_signature": "s"}});
        let signed = seal::of_call("1", &json!({"extra_content": extra})).expect("signed");
        let of_message = seal::of_message(json!({"extra_content": {"m": 1}}).as_object().expect("an object"));
        let sealed = seal::sealed(&[vec![signed], of_message].concat()).expect("something");
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": sealed});
        let mut first = called("1");
        first["extra_content"] = extra;
        let expected = json!([{"role": "assistant", "content": null, "extra_content": {"m": 1}, "tool_calls": [first, called("2")]}]);
        assert_eq!(messages(json!([item, call("1"), call("2")])), expected);
        assert_eq!(messages(json!([call("1"), item, call("2")])), expected);

        let sealed = seal::sealed(&seal::of_message(json!({"extra_content": {"m": 1}}).as_object().expect("an object")));
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": sealed});
        let expected = json!({"role": "assistant", "content": "x", "extra_content": {"m": 1}});
        assert_eq!(messages(json!([item, said("x")]))[0], expected);
        assert_eq!(messages(json!([said("x"), item, {"role": "user", "content": "y"}]))[0], expected);
    }
}
