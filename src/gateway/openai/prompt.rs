//! A prompt that a request calls by its name, in the shapes that clients send: OpenAI's `prompt: {id, version, variables}` (ours adds
//! `label`) and LiteLLM's `prompt_id`, `prompt_version`, `prompt_label`, `prompt_variables`. Both become one shape: texts and values in
//! `variables`, images and files as parts of messages in `media`.

use super::names::Names;
use super::responses::items;
use crate::types::error::did_you_mean;
use crate::types::ids::is_safe_name;
use crate::types::told::NamedPrompt;
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

const PROMPT: &str = "prompt";
/// What may stand in `prompt`.
const FIELDS: [&str; 4] = ["id", "version", "label", "variables"];
/// LiteLLM's fields, and where each goes.
const LITELLM: [(&str, &str); 4] =
    [("prompt_id", "id"), ("prompt_version", "version"), ("prompt_label", "label"), ("prompt_variables", "variables")];
/// Types of variables that say what they are.
const TYPED: [&str; 3] = ["input_text", "input_image", "input_file"];

/// What LiteLLM's callers call the parts of `prompt`.
pub fn litellm_names() -> Names {
    let mut names = Names::default();
    LITELLM.iter().for_each(|(theirs, own)| names.add(format!("{PROMPT}.{own}"), *theirs));
    names
}

/// Whether a body calls a prompt as LiteLLM's callers do.
pub fn is_litellm(fields: &Fields) -> bool {
    LITELLM.iter().any(|(theirs, _)| fields.get(*theirs).is_some_and(|value| !value.is_null()))
}

/// Whether a request calls a prompt of the library by its name.
pub fn is_called(fields: &Fields) -> bool {
    fields.get(PROMPT).is_some_and(|prompt| prompt.get("id").is_some())
}

/// A version in the words of `/v1/prompts`.
pub fn named(prompt: &NamedPrompt) -> Value {
    json!({"name": prompt.name, "version": prompt.version, "digest": prompt.digest})
}

/// What a reply says of the prompt that was rendered.
pub fn echoed(prompt: &NamedPrompt) -> Value {
    json!({"id": prompt.name, "version": prompt.version.to_string(), "digest": prompt.digest})
}

/// Reads what a body says of a prompt, and puts it into the one shape. A prompt that is called by its name needs neither `model`, which
/// is the prompt's then, nor `messages`.
///
/// # Errors
/// [`Code::MISSING_FIELD`] or [`Code::INVALID_VALUE`] with the field's path.
pub fn read(fields: &mut Fields) -> Result<(), Failure> {
    if is_litellm(fields) {
        take_litellm(fields)?;
    }
    let Some(prompt) = fields.get_mut(PROMPT).and_then(Value::as_object_mut) else { return Ok(()) };
    prompt.retain(|_, value| !value.is_null());
    if let Some(unknown) = prompt.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(unknown_field(unknown));
    }
    let id = match prompt.get("id") {
        None => None,
        Some(Value::String(id)) if is_safe_name(id) => Some(id.clone()),
        Some(_) => return Err(wrong("prompt.id", "expected the name of a prompt")),
    };
    check_selector(prompt)?;
    if let Some(variables) = prompt.get_mut("variables") {
        let Value::Object(variables) = variables else { return Err(wrong("prompt.variables", "expected an object of variables")) };
        let media = take_typed(variables)?;
        if !media.is_empty() {
            prompt.insert("media".into(), media.into());
        }
    }
    if let Some(id) = id {
        fields.entry("model").or_insert(id.into());
        fields.entry("messages").or_insert_with(|| json!([]));
    }
    Ok(())
}

fn take_litellm(fields: &mut Fields) -> Result<(), Failure> {
    if fields.get(PROMPT).is_some_and(|prompt| !prompt.is_null()) {
        return Err(wrong("prompt_id", "send either \"prompt\" or \"prompt_id\""));
    }
    let taken = LITELLM.iter().filter_map(|(theirs, own)| Some(((*own).to_string(), fields.shift_remove(*theirs)?)));
    let prompt: Fields = taken.filter(|(_, value)| !value.is_null()).collect();
    if !prompt.contains_key("id") {
        let message = "prompt_id is missing: the name of a prompt is needed";
        return Err(Failure::on(Code::MISSING_FIELD, "prompt.id", message));
    }
    fields.insert(PROMPT.into(), prompt.into());
    Ok(())
}

/// One version: by its number, its digest or a label.
fn check_selector(prompt: &mut Fields) -> Result<(), Failure> {
    if let Some(number) = prompt.get("version").and_then(Value::as_i64).filter(|number| *number > 0) {
        let number = number.to_string();
        prompt.insert("version".into(), number.into());
    }
    for (field, expected) in [("version", "expected a version's number, its digest or a label"), ("label", "expected a label")] {
        match prompt.get(field) {
            None => {}
            Some(Value::String(word)) if is_safe_name(word) => {}
            Some(_) => return Err(wrong(&format!("prompt.{field}"), expected)),
        }
    }
    if prompt.contains_key("version") && prompt.contains_key("label") {
        return Err(wrong("prompt.label", "send either a version or a label"));
    }
    Ok(())
}

/// Takes images and files out of the variables, as parts of messages; texts become plain ones.
fn take_typed(variables: &mut Fields) -> Result<Fields, Failure> {
    let mut media = Fields::new();
    for (name, variable) in variables.iter_mut() {
        let kind = variable.get("type").and_then(Value::as_str).unwrap_or_default();
        if !TYPED.contains(&kind) {
            continue;
        }
        let part = items::part(variable.take(), &format!("prompt.variables.{name}"))?;
        match part.get("text") {
            Some(text) => *variable = text.clone(),
            None => drop(media.insert(name.clone(), part)),
        }
    }
    variables.retain(|name, _| !media.contains_key(name));
    Ok(media)
}

fn unknown_field(name: &str) -> Failure {
    let shown = if is_safe_name(name) { name } else { "?" };
    let message = format!("prompt.{shown}: there is no such field{}", did_you_mean(name, FIELDS));
    Failure::on(Code::INVALID_VALUE, format!("prompt.{shown}"), message).with_hint(format!("the fields are {}", FIELDS.join(", ")))
}

fn wrong(field: &str, message: &str) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(body: Value) -> Result<Value, String> {
        let mut fields = body.as_object().expect("an object").clone();
        read(&mut fields).map(|()| fields.into()).map_err(|failure| failure.param().unwrap_or_default())
    }

    #[test]
    fn every_shape_becomes_one() {
        let prompt = json!({"id": "p", "version": "3", "variables": {"a": "b"}});
        let expected = json!({"prompt": prompt, "model": "p", "messages": []});
        assert_eq!(read_one(json!({"prompt": {"id": "p", "version": 3, "label": null, "variables": {"a": "b"}}})), Ok(expected.clone()));
        let litellm = read_one(json!({"prompt_id": "p", "prompt_version": 3, "prompt_variables": {"a": "b"}})).expect("fits");
        assert_eq!(litellm, expected);
        let file = json!({"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "x.pdf"});
        let typed = json!({"id": "p", "variables": {"t": {"type": "input_text", "text": "x"}, "f": file, "own": {"type": "other"}}});
        let read = read_one(json!({"prompt": typed})).expect("fits");
        assert_eq!(read["prompt"]["variables"], json!({"t": "x", "own": {"type": "other"}}));
        assert_eq!(read["prompt"]["media"]["f"]["file"]["filename"], "x.pdf");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (prompt, field) in [
            (json!({"id": 1}), "prompt.id"),
            (json!({"id": "a b"}), "prompt.id"),
            (json!({"id": "p", "lable": "x"}), "prompt.lable"),
            (json!({"id": "p", "media": {}}), "prompt.media"),
            (json!({"id": "p", "version": "1", "label": "x"}), "prompt.label"),
            (json!({"id": "p", "version": 1.5}), "prompt.version"),
            (json!({"id": "p", "variables": [1]}), "prompt.variables"),
            (json!({"id": "p", "variables": {"v": {"type": "input_image"}}}), "prompt.variables.v.image_url"),
        ] {
            assert_eq!(read_one(json!({"prompt": prompt})).expect_err(field), field);
        }
        assert_eq!(read_one(json!({"prompt_variables": {}})).expect_err("no id"), "prompt.id");
        assert_eq!(read_one(json!({"prompt_id": "p", "prompt": {"id": "p"}})).expect_err("twice"), "prompt_id");
    }
}
