//! The chat template inside a model file (Jinja), rendered with fuel and without any file access: model files are untrusted.

use super::EngineError;
use crate::types::chat::{Content, Message};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::Value;

/// Instructions a template may execute: a conversation of a thousand messages takes a few ten thousand.
const FUEL: u64 = 2_000_000;
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// One message as the template sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Plain text.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into() }
    }

    /// A message of the API as this engine understands it: text only, `developer` read as `system`. Serving and training use the same.
    ///
    /// # Errors
    /// [`EngineError::Request`] naming the part, role or field that would otherwise be dropped.
    pub fn of(message: &Message) -> Result<Self, EngineError> {
        let refuse = |problem: String| Err(EngineError::Request { param: "messages", problem });
        if let Some(Content::Parts(parts)) = &message.content
            && let Some(part) = parts.iter().find(|part| part.get("type").and_then(Value::as_str) != Some("text"))
        {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
            return refuse(format!("hold a part of type \"{kind}\"; this local model reads text only"));
        }
        if message.extra.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
            return refuse("hold tool_calls, which local models do not support yet".into());
        }
        match message.role.as_str() {
            "developer" => Ok(ChatMessage::new("system", message.plain_text())),
            role @ ("system" | "user" | "assistant") => Ok(ChatMessage::new(role, message.plain_text())),
            other => refuse(format!("hold the role \"{other}\", which local models do not support yet")),
        }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`EngineError::Template`] when it is no valid Jinja or larger than 256 KiB.
    pub fn new(source: &str, bos: String, eos: String) -> Result<Self, EngineError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(EngineError::Template(format!("it has {} bytes, more than {MAX_SOURCE_BYTES}", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        // As Hugging Face transformers renders chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source.to_string()).map_err(template)?;
        Ok(ChatTemplate { environment, bos, eos })
    }

    /// Renders a conversation; `open` adds the opening of the assistant's turn.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the template raises, runs out of fuel or uses something unknown.
    pub fn render(&self, messages: &[ChatMessage], open: bool) -> Result<String, EngineError> {
        let template_ = self.environment.get_template("chat").map_err(template)?;
        let values = context! { messages => minijinja::Value::from(Serde(messages)), add_generation_prompt => open, bos_token => self.bos.clone(), eos_token => self.eos.clone() };
        template_.render(values).map_err(template)
    }
}

fn template(error: minijinja::Error) -> EngineError {
    EngineError::Template(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_loops_forever_runs_out_of_fuel() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source, String::new(), String::new()).expect("compiles");
        let error = template.render(&[], true).expect_err("must stop");
        assert!(error.to_string().contains("fuel"), "{error}");
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", String::new(), String::new()).expect("compiles");
        let error = template.render(&[], true).expect_err("raises");
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }
}
