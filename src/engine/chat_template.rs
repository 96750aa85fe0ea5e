//! The chat template inside a model file (Jinja), rendered with fuel and without any file access: model files are untrusted.

use super::{EngineError, tools};
use crate::types::chat::{Content, Message};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::{Value, json};

/// Instructions a template may execute: a conversation of a thousand messages takes a few ten thousand.
const FUEL: u64 = 2_000_000;
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// One message as the template sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Plain text.
    pub content: String,
    /// Calls that an assistant made: `{"type": "function", "function": {"name", "arguments"}}`, the arguments as a value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into(), tool_calls: Vec::new() }
    }

    /// A message of the API as this engine understands it: text and tool calls, `developer` read as `system`. Serving and training use
    /// the same.
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
        let role = match message.role.as_str() {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => return refuse(format!("hold the role \"{other}\", which local models do not support")),
        };
        let mut tool_calls = Vec::new();
        for call in message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let Some(function) = call.get("function").filter(|function| function.get("name").is_some_and(Value::is_string)) else {
                return refuse("hold a tool call that names no function".into());
            };
            tool_calls.push(json!({"type": "function", "function": {"name": function["name"], "arguments": tools::arguments(function)}}));
        }
        Ok(ChatMessage { tool_calls, ..ChatMessage::new(role, message.plain_text()) })
    }

    /// The message with every text in it changed.
    pub fn map_texts(&self, change: impl Fn(&str) -> String) -> Self {
        // What is put into a text of JSON as it stands there is put into the text.
        let call = |call: &Value| serde_json::from_str(&change(&call.to_string())).unwrap_or(Value::Null);
        let tool_calls = self.tool_calls.iter().map(call).collect();
        ChatMessage { role: self.role.clone(), content: change(&self.content), tool_calls }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Writes tools and calls itself, in the notation of [`tools`].
    knows_tools: bool,
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
        let knows_tools = source.contains("tools") && source.contains("tool_calls") && source.contains(tools::BEGIN);
        Ok(ChatTemplate { environment, knows_tools, bos, eos })
    }

    /// What it was made of.
    pub fn source(&self) -> String {
        self.environment.get_template("chat").map_or_else(|_| String::new(), |template| template.source().to_string())
    }

    /// Renders a conversation; `open` adds the opening of the assistant's turn.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the template raises, runs out of fuel or uses something unknown.
    pub fn render(&self, messages: &[ChatMessage], open: bool) -> Result<String, EngineError> {
        self.render_with_tools(messages, &[], open)
    }

    /// As [`ChatTemplate::render`], with tools that the model may call. Where the template has no words for tools, calls and what
    /// they returned, they are put into the texts of the messages.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_tools(&self, messages: &[ChatMessage], tools: &[Value], open: bool) -> Result<String, EngineError> {
        let template_ = self.environment.get_template("chat").map_err(template)?;
        let told;
        let (messages, tools) = match self.knows_tools {
            true => (messages, tools),
            false => {
                told = in_words(messages, tools);
                (told.as_slice(), [].as_slice())
            }
        };
        let tools = if tools.is_empty() { minijinja::Value::from(()) } else { minijinja::Value::from(Serde(tools)) };
        let values = context! { messages => minijinja::Value::from(Serde(messages)), tools => tools, add_generation_prompt => open, bos_token => self.bos.clone(), eos_token => self.eos.clone() };
        template_.render(values).map_err(template)
    }
}

/// Tools told in the system message, calls as the model would have written them, what they returned as a user's message.
fn in_words(messages: &[ChatMessage], tools: &[Value]) -> Vec<ChatMessage> {
    let mut told: Vec<ChatMessage> = Vec::new();
    let mut answers = false;
    for message in messages {
        let is_answer = message.role == "tool";
        let answer = || format!("<tool_response>\n{}\n</tool_response>", message.content);
        match told.last_mut() {
            // Many templates want user and assistant to take turns.
            Some(last) if is_answer && answers => last.content = format!("{}\n{}", last.content, answer()),
            _ if is_answer => told.push(ChatMessage::new("user", answer())),
            _ => {
                let calls = message.tool_calls.iter().map(tools::written);
                let texts: Vec<String> = Some(message.content.clone()).filter(|text| !text.is_empty()).into_iter().chain(calls).collect();
                told.push(ChatMessage::new(message.role.as_str(), texts.join("\n")));
            }
        }
        answers = is_answer;
    }
    if !tools.is_empty() {
        let described = tools::described(tools);
        match told.first_mut().filter(|first| first.role == "system") {
            Some(system) => system.content = format!("{}\n\n{described}", system.content),
            None => told.insert(0, ChatMessage::new("system", described)),
        }
    }
    told
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

    fn conversation() -> Vec<ChatMessage> {
        let messages = json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get", "arguments": "{\"city\": \"Ulm\"}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
            {"role": "tool", "tool_call_id": "2", "content": "8"},
        ]);
        let messages: Vec<Message> = serde_json::from_value(messages).expect("messages");
        messages.iter().map(|message| ChatMessage::of(message).expect("a message")).collect()
    }

    fn template_of(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, String::new(), String::new()).expect("compiles")
    }

    #[test]
    fn a_template_without_words_for_tools_gets_them_as_text() {
        let template = template_of("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}");
        let tool = json!({"type": "function", "function": {"name": "get", "description": "Weather of a city"}});
        let text = template.render_with_tools(&conversation(), &[tool], true).expect("renders");
        let (system, rest) = text.split_once("[user]").expect("a user");
        assert!(system.starts_with("[system]") && system.contains("Weather of a city") && system.contains(tools::BEGIN), "{system}");
        assert!(rest.starts_with("Weather?[assistant]<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\":\"Ulm\"}}\n</tool_call>[user]<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>"), "{rest}");
        assert!(!template.render(&conversation(), true).expect("renders").contains("[system]"));
    }

    #[test]
    fn a_template_that_knows_tools_gets_them_as_values() {
        let template = template_of(
            "{% if tools %}{{ tools[0].function.name }};{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}\
             {% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}",
        );
        let tool = json!({"type": "function", "function": {"name": "get"}});
        let text = template.render_with_tools(&conversation(), &[tool], true).expect("renders");
        assert_eq!(text, "get;[user]Weather?[assistant]<tool_call>{\"city\": \"Ulm\"}[tool]7[tool]8");
    }
}
