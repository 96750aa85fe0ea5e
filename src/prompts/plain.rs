//! A prompt as plain texts with `{{name}}` in them, for clients that fill in variables by themselves. Only what such a text can say is
//! given away; a condition, a loop or a default would be lost without a word.

use super::parse::Prompt;
use super::{Problem, PromptError, walk};
use handlebars::template::{HelperTemplate, Parameter, TemplateElement};
use serde_json::Value;

/// A piece of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum PlainPiece {
    /// A message whose text has `{{name}}` for its variables.
    Message {
        /// `system`, `user`, `assistant`.
        role: String,
        /// The text.
        text: String,
    },
    /// Where earlier messages stand.
    History,
}

/// A prompt of plain texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Plain {
    /// The conversation.
    pub pieces: Vec<PlainPiece>,
    /// Whether the template names roles or a history; otherwise it is one text.
    pub is_chat: bool,
}

impl Prompt {
    /// The prompt as plain texts.
    ///
    /// # Errors
    /// [`Problem::Unsupported`] at the first tag that is more than a variable, a role or the history.
    pub fn plain(&self) -> Result<Plain, PromptError> {
        let mut plain = Plain { pieces: Vec::new(), is_chat: false };
        let (mut role, mut text, mut first) = ("user".to_string(), String::new(), None);
        walk::each(&self.body, &mut |element, (line, _)| {
            let step = match element {
                TemplateElement::RawString(raw) if raw.contains("{{") => Err("a text with braces of its own"),
                TemplateElement::RawString(raw) => {
                    text.push_str(raw);
                    Ok(None)
                }
                TemplateElement::Comment(_) => Ok(None),
                TemplateElement::Expression(helper) | TemplateElement::HtmlExpression(helper) => self.tag(helper).map(Some),
                _ => Err("a block or a partial"),
            };
            match step {
                Ok(None | Some(Tag::Step)) => {}
                Ok(Some(Tag::Variable(name))) => text.push_str(&format!("{{{{{name}}}}}")),
                Ok(Some(tag)) => {
                    plain.is_chat = true;
                    push(&mut plain.pieces, &role, &mut text);
                    match tag {
                        Tag::Role(next) => role = next,
                        _ => {
                            plain.pieces.push(PlainPiece::History);
                            role = "assistant".into();
                        }
                    }
                }
                Err(what) => {
                    let line = self.body_line + line - 1;
                    first.get_or_insert_with(|| {
                        Problem::Unsupported(format!("{what}, which cannot be filled in by a client,")).at(&self.name, line)
                    });
                }
            }
        });
        push(&mut plain.pieces, &role, &mut text);
        first.map_or(Ok(plain), Err)
    }

    fn tag(&self, helper: &HelperTemplate) -> Result<Tag, &'static str> {
        let name = helper.name.as_name().unwrap_or_default();
        match (name, helper.params.as_slice()) {
            ("__step", _) => Ok(Tag::Step),
            ("history", []) => Ok(Tag::History),
            ("role", [Parameter::Literal(Value::String(role))]) => {
                Ok(Tag::Role(if role == "model" { "assistant".into() } else { role.clone() }))
            }
            (name, []) if self.front.defaults.contains_key(name) => Err("a variable with a default"),
            (name, [])
                if helper.hash.is_empty() && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') =>
            {
                Ok(Tag::Variable(name.to_string()))
            }
            _ => Err("a tag that is more than a variable"),
        }
    }
}

enum Tag {
    /// Counts steps; not the author's.
    Step,
    History,
    Role(String),
    Variable(String),
}

/// A message, unless there is nothing but white space in it.
fn push(pieces: &mut Vec<PlainPiece>, role: &str, text: &mut String) {
    let text = std::mem::take(text);
    if !text.trim().is_empty() {
        pieces.push(PlainPiece::Message { role: role.to_string(), text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(source: &str) -> Result<Plain, String> {
        Prompt::parse("p", source).expect("parses").plain().map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_plain_text_can_say_is_told_and_nothing_else() {
        let message = |role: &str, text: &str| PlainPiece::Message { role: role.into(), text: text.into() };
        assert_eq!(plain("Hi {{ name }}!"), Ok(Plain { pieces: vec![message("user", "Hi {{name}}!")], is_chat: false }));
        let chat = plain("{{role \"system\"}}\nBe {{tone}}.\n{{history}}{{role \"user\"}}{{{text}}}").expect("plain");
        let pieces = vec![message("system", "\nBe {{tone}}.\n"), PlainPiece::History, message("user", "{{text}}")];
        assert_eq!(chat, Plain { pieces, is_chat: true });
        for source in [
            "a\n{{#if x}}b{{/if}}",
            "a\n{{json x}}",
            "a\n{{x.y}}",
            "a\n{{#each l}}{{this}}{{/each}}",
            "a\n{{media url=x}}",
            "{{#*inline \"i\"}}b{{/inline}}\n{{> i}}",
            "a\n\\{{x}}",
        ] {
            assert!(plain(source).is_err_and(|error| error.contains("line")), "{source}");
        }
        assert!(plain("---\ninput: {default: {x: 1}, schema: {x: integer}}\n---\n{{x}}").is_err());
    }
}
