//! Prompts of a configuration as `.prompt` files. Variables are written the same way in both; filters, blocks and code are not carried
//! over.

use super::{Leaving, files};
use crate::types::Failure;
use serde_json::{Value, json};
use std::path::Path;

/// A prompt to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) label: String,
    /// The body of the file.
    pub(super) body: String,
    /// Variables that it writes.
    pub(super) variables: Vec<String>,
}

/// The prompts of `prompts`.
pub(super) fn read(prompts: &Value, folder: &Path, left: &mut Leaving) -> Result<Vec<Found>, Failure> {
    let list = match prompts {
        Value::Array(list) => list.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let mut found = Vec::new();
    for (i, prompt) in list.iter().enumerate() {
        let place = format!("prompts[{i}]");
        let (text, label) = match prompt {
            Value::String(text) => (text.clone(), None),
            Value::Object(fields) => {
                let text = ["raw", "id"].iter().find_map(|name| fields.get(*name)).and_then(Value::as_str).unwrap_or_default();
                (text.to_string(), fields.get("label").and_then(Value::as_str).map(String::from))
            }
            _ => (String::new(), None),
        };
        for (j, (stem, text)) in texts(&text, folder, (&place, left))?.into_iter().enumerate() {
            let label = label.clone().or(stem).unwrap_or_else(|| format!("prompt-{}", i + 1));
            let label = if j > 0 { format!("{label}-{}", j + 1) } else { label };
            match body(&text) {
                Ok((body, variables)) => found.push(Found { label, body, variables }),
                Err(why) => left.add(place.clone(), why),
            }
        }
    }
    Ok(found)
}

/// The texts that an entry stands for, with the name of the file that they stand in.
fn texts(text: &str, folder: &Path, (place, left): (&str, &mut Leaving)) -> Result<Vec<(Option<String>, String)>, Failure> {
    let Some(file) = files::reference(text) else {
        if text.is_empty() {
            left.add(place, "is no text");
            return Ok(Vec::new());
        }
        return Ok(vec![(None, text.to_string())]);
    };
    let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let ending = Path::new(file).extension().map(|ending| ending.to_string_lossy().into_owned()).unwrap_or_default();
    match ending.as_str() {
        "txt" | "md" | "j2" => {
            let text = files::text(folder, file)?;
            // Several prompts in a file are parted by lines of dashes.
            Ok(text.replace("\r\n", "\n").split("\n---\n").map(|part| (stem.clone(), part.trim_end().to_string())).collect())
        }
        "json" => Ok(vec![(stem, files::text(folder, file)?)]),
        "yaml" | "yml" => {
            let value = files::value(&files::text(folder, file)?, file)?;
            Ok(vec![(stem, value.to_string())])
        }
        _ => {
            left.add(place, format!("{file}: code and patterns of files are not carried over"));
            Ok(Vec::new())
        }
    }
}

/// A prompt's body from promptfoo's text: a chat where it is a list of messages, else what the user says.
fn body(text: &str) -> Result<(String, Vec<String>), String> {
    let chat = serde_json::from_str::<Value>(text).ok().filter(Value::is_array);
    let body = match &chat {
        None => text.to_string(),
        Some(chat) => {
            let mut body = String::new();
            for message in chat.as_array().into_iter().flatten() {
                let (Some(role), Some(content)) = (message["role"].as_str(), message["content"].as_str()) else {
                    return Err("a chat is carried over where every message has a role and a text".into());
                };
                body.push_str(&format!("{{{{role {}}}}}\n{}\n", json!(role), content.trim_end()));
            }
            body
        }
    };
    let mut variables: Vec<String> = Vec::new();
    let mut rest = text;
    if ["{%", "{#", "{{{"].iter().any(|mark| text.contains(mark)) {
        return Err("blocks, comments and raw output of Nunjucks are not carried over; write it with {{#if}} and {{#each}}".into());
    }
    while let Some(open) = rest.find("{{") {
        let Some(close) = rest[open..].find("}}") else { return Err("a {{ is never closed".into()) };
        let name = rest[open + 2..open + close].trim();
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || "_.".contains(c)) {
            return Err(format!("{{{{{name}}}}}: filters and expressions of Nunjucks are not carried over"));
        }
        if name.starts_with("env.") {
            return Err(format!("{{{{{name}}}}}: the environment is not put into prompts"));
        }
        let first = name.split('.').next().unwrap_or(name).to_string();
        if !variables.contains(&first) {
            variables.push(first);
        }
        rest = &rest[open + close + 2..];
    }
    Ok((body, variables))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_chats_become_bodies() {
        assert_eq!(
            body("Say {{ x }} to {{user.name}}").expect("carries over"),
            ("Say {{ x }} to {{user.name}}".into(), vec!["x".into(), "user".into()])
        );
        let chat = "[{\"role\": \"system\", \"content\": \"Be {{tone}}.\"}, {\"role\": \"user\", \"content\": \"{{q}}\"}]";
        let (text, variables) = body(chat).expect("carries over");
        assert_eq!(text, "{{role \"system\"}}\nBe {{tone}}.\n{{role \"user\"}}\n{{q}}\n");
        assert_eq!(variables, ["tone", "q"]);
        for text in ["{% for x in y %}", "{{ x | upper }}", "{{ env.KEY }}", "{{ x", "{{ x + 1 }}"] {
            assert!(body(text).is_err(), "{text}");
        }
    }
}
