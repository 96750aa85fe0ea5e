//! A prompt as plain texts with `{{name}}` in them, for clients that fill in variables by themselves. Only what such a text can say is
//! given away; a condition, a loop or a default would be lost without a word.

use super::helpers::Helper;
use super::parse::Prompt;
use super::template::tree::{Expr, Node, Path, Place};
use super::{Problem, PromptError};
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
        if self.front.examples.is_some() {
            return Err(self.unfit("examples from a dataset", None));
        }
        let mut plain = Plain { pieces: Vec::new(), is_chat: false };
        let (mut role, mut text) = ("user".to_string(), String::new());
        for node in &self.body.body {
            match self.tag(node).map_err(|(what, place)| self.unfit(what, place))? {
                Tag::Text(raw) => text.push_str(raw),
                Tag::Variable(name) => text.push_str(&format!("{{{{{name}}}}}")),
                Tag::Role(next) => {
                    plain.is_chat = true;
                    push(&mut plain.pieces, &role, &mut text);
                    role = next.to_string();
                }
                Tag::History => {
                    plain.is_chat = true;
                    push(&mut plain.pieces, &role, &mut text);
                    plain.pieces.push(PlainPiece::History);
                    role = "assistant".into();
                }
            }
        }
        push(&mut plain.pieces, &role, &mut text);
        Ok(plain)
    }

    fn unfit(&self, what: &str, place: Option<Place>) -> PromptError {
        let problem = Problem::Unsupported(format!("{what}, which cannot be filled in by a client,"));
        match place {
            Some(place) => problem.at(&self.name, place.line),
            None => problem.of(&self.name),
        }
    }

    fn tag<'t>(&self, node: &'t Node) -> Result<Tag<'t>, (&'static str, Option<Place>)> {
        match node {
            Node::Text(text) if text.value.contains("{{") => Err(("a text with braces of its own", None)),
            Node::Text(text) => Ok(Tag::Text(&text.value)),
            Node::Comment(_) | Node::Inline(_) => Ok(Tag::Text("")),
            Node::Block(block) => Err(("a block", Some(block.place))),
            Node::Partial(partial) => Err(("a partial", Some(partial.place))),
            Node::Print(print) => match &print.value {
                Expr::Path(path) if self.front.defaults.contains_key(&path.original) => {
                    Err(("a variable with a default", Some(path.place)))
                }
                Expr::Path(path) if is_plain(path) => Ok(Tag::Variable(&path.parts[0])),
                Expr::Path(path) => Err(("a tag that is more than a variable", Some(path.place))),
                Expr::Call(call) => match (call.helper, call.params.as_slice()) {
                    (Helper::History, []) => Ok(Tag::History),
                    (Helper::Role, [Expr::Literal(Value::String(role))]) => Ok(Tag::Role(if role == "model" { "assistant" } else { role })),
                    _ => Err(("a tag that is more than a variable", Some(call.place))),
                },
                Expr::Undefined | Expr::Literal(_) => Err(("a tag that is more than a variable", None)),
            },
        }
    }
}

/// Whether a path is one name that such clients know as a variable.
fn is_plain(path: &Path) -> bool {
    let is_word = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    !path.is_data && !path.is_scoped && path.depth == 0 && path.parts.len() == 1 && path.parts.iter().all(is_word)
}

enum Tag<'t> {
    Text(&'t str),
    History,
    Role(&'t str),
    Variable(&'t str),
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
            assert!(plain(source).is_err_and(|error| error.contains("filled in by a client")), "{source}");
        }
        assert!(plain("---\ninput: {default: {x: 1}, schema: {x: integer}}\n---\n{{x}}").is_err());
    }
}
