//! Prompts: Nunjucks templates that only write variables are templates here, too; lists of messages become roles.

use super::Import;
use crate::evals::EvalError;
use crate::evals::variants::slug;
use crate::prompts::Prompt;
use serde_json::Value;

impl Import<'_> {
    /// Files of the prompts, with their sources.
    ///
    /// # Errors
    /// [`EvalError::Read`] for a file that is not there.
    pub(super) fn prompts(&mut self, name: &str, prompts: &Value) -> Result<Vec<(String, String)>, EvalError> {
        let list = match prompts {
            Value::Array(list) => list.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        let mut files: Vec<(String, String)> = Vec::new();
        for (i, prompt) in list.iter().enumerate() {
            let place = format!("prompts[{i}]");
            let (text, label) = match prompt {
                Value::String(text) => (text.clone(), None),
                Value::Object(map) => {
                    self.left.unknown(&place, map, &["raw", "id", "label"]);
                    let text = map.get("raw").or(map.get("id")).and_then(Value::as_str).unwrap_or_default();
                    (text.to_string(), map.get("label").and_then(Value::as_str))
                }
                other => {
                    self.left.out(&place, format!("{other} is no prompt"));
                    continue;
                }
            };
            let (text, stem) = match text.strip_prefix("file://") {
                Some(file) => match self.text_of(&place, file)? {
                    Some(text) => (text, std::path::Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned())),
                    None => continue,
                },
                None => (text, None),
            };
            let source = match source(&text) {
                Ok(source) => source,
                Err(why) => {
                    self.left.out(&place, why);
                    continue;
                }
            };
            let stem = stem.or_else(|| label.map(str::to_string)).map(|stem| slug(&stem)).filter(|stem| crate::types::ids::is_slug(stem));
            let wanted = stem.unwrap_or_else(|| if list.len() > 1 { format!("{name}-{}", i + 1) } else { name.to_string() });
            let is_taken = files.iter().any(|(file, _)| *file == format!("{wanted}.prompt"));
            files.push((format!("{}.prompt", if is_taken { format!("{wanted}-{}", i + 1) } else { wanted }), source));
        }
        Ok(files)
    }

    /// The text of a file beside the configuration; none where it is no text that can be taken over.
    pub(super) fn text_of(&mut self, place: &str, file: &str) -> Result<Option<String>, EvalError> {
        let path = self.folder.join(file);
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
        if file.contains('*') || ["js", "mjs", "cjs", "ts", "py"].contains(&ending.as_str()) {
            self.left.out(place, format!("{file}: patterns of files and programs are not carried over"));
            return Ok(None);
        }
        let read = |cause| EvalError::Read { file: path.display().to_string(), cause };
        std::fs::read_to_string(&path).map(Some).map_err(read)
    }
}

/// A prompt file of a template.
fn source(text: &str) -> Result<String, String> {
    let messages: Option<Vec<Value>> = serde_json::from_str(text).ok();
    let text = match messages {
        Some(messages) => roles(&messages)?,
        None => text.to_string(),
    };
    for sign in ["{%", "{#", "{{#", "{{{", "{{>"] {
        if text.contains(sign) {
            return Err(format!("\"{sign}\" is Nunjucks that templates here do not have; write it as Handlebars"));
        }
    }
    for tag in text.split("{{").skip(1) {
        let inside = tag.split("}}").next().unwrap_or_default().trim();
        let is_variable = inside.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_'));
        if !is_variable && !inside.starts_with("role ") {
            return Err(format!("{{{{{inside}}}}} is more than a variable; write it as Handlebars"));
        }
    }
    Prompt::parse("imported", &text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// A list of chat messages as roles.
fn roles(messages: &[Value]) -> Result<String, String> {
    let mut text = String::new();
    for message in messages {
        let (role, content) = (message["role"].as_str().unwrap_or_default(), message["content"].as_str());
        let role = match role {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "model",
            other => return Err(format!("a message of the role \"{other}\"")),
        };
        let content = content.ok_or("a message whose content is no text")?;
        text += &format!("{{{{role \"{role}\"}}}}\n{content}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn plain_templates_and_messages_are_taken_over() {
        assert_eq!(source("Sort: {{ message }}").as_deref(), Ok("Sort: {{ message }}"));
        let chat = source("[{\"role\": \"system\", \"content\": \"Be kind.\"}, {\"role\": \"user\", \"content\": \"{{q}}\"}]")
            .expect("taken over");
        assert_eq!(chat, "{{role \"system\"}}\nBe kind.\n{{role \"user\"}}\n{{q}}\n");
        for more in ["{% if x %}a{% endif %}", "{{ x | upper }}", "[{\"role\": \"tool\", \"content\": \"x\"}]"] {
            assert!(source(more).is_err(), "{more}");
        }
    }
}
