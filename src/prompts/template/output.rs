//! Values to text, and helpers that write: the part of [`super::eval`] that ends in pieces.

use super::eval::{Done, Env, Piece, Render, Stop};
use super::space::is_blank;
use super::tree::Call;
use super::value::{Kind, Val};
use crate::prompts::helpers::{self, Helper};
use serde_json::Value;

impl<'a> Render<'a> {
    /// Writes a value as JavaScript turns it into text.
    pub(super) fn show(&mut self, value: &Val<'a>) -> Done {
        match value.kind() {
            Kind::Undefined | Kind::Null => Ok(()),
            Kind::Text(text) => self.write(text),
            Kind::Bool(value) => self.write(if value { "true" } else { "false" }),
            Kind::Number(number) => self.write(&number.to_string()),
            Kind::Fields(_) | Kind::Merged(_) => self.write("[object Object]"),
            Kind::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.step(1)?;
                    self.write(if i == 0 { "" } else { "," })?;
                    self.show(&Val::Json(item))?;
                }
                Ok(())
            }
        }
    }

    /// A helper in a tag of its own.
    pub(super) fn print(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Done {
        match call.helper {
            Helper::History if self.has_history => {
                return Err(Stop::Wrong(
                    call.place,
                    "{{history}} has its place already: the earlier messages stand in a prompt once".into(),
                ));
            }
            Helper::History => {
                self.has_history = true;
                self.pieces.push(Piece::History);
            }
            Helper::Role => {
                let role = self.text_of(call, 0, "role", env)?;
                helpers::role(&role).map_err(|problem| Stop::Wrong(call.place, problem))?;
                self.pieces.push(Piece::Role(role));
            }
            Helper::Section => {
                let name = self.text_of(call, 0, "section", env)?;
                self.pieces.push(Piece::Section(name));
            }
            Helper::Media => {
                let url = self.named(call, "url", env)?;
                let content_type = self.named(call, "contentType", env)?;
                let url = url.scalar().filter(|url| !is_blank(url));
                let url = url.ok_or_else(|| Stop::Wrong(call.place, "the url of {{media}} is empty".into()))?.into_owned();
                let content_type = content_type.scalar().filter(|kind| !kind.is_empty()).map(|kind| kind.into_owned());
                self.count(url.len() + content_type.as_ref().map_or(0, String::len))?;
                self.pieces.push(Piece::Media { url, content_type });
            }
            _ => {
                let value = self.call(call, env)?;
                // What `json` made is counted where it is made.
                if let (Helper::Json, Val::Made(text)) = (call.helper, &value) {
                    self.limits.bytes += text.len();
                }
                self.show(&value)?;
            }
        }
        Ok(())
    }

    fn text_of(&mut self, call: &'a Call, at: usize, name: &str, env: Env<'_, 'a>) -> Result<String, Stop> {
        let value = self.param(call, at, env)?;
        let text = value.scalar().filter(|text| !is_blank(text));
        let text = text.ok_or_else(|| Stop::Wrong(call.place, format!("{name} needs a text, and what it is given has none")))?;
        self.count(text.len())?;
        Ok(text.into_owned())
    }

    pub(super) fn json_arguments(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Result<(Val<'a>, String), Stop> {
        let (value, indent) = (self.param(call, 0, env)?, self.named(call, "indent", env)?);
        let indent = match indent.kind() {
            Kind::Number(number) => " ".repeat(number.float().clamp(0.0, 10.0) as usize),
            Kind::Text(text) => text.chars().take(10).collect(),
            _ => String::new(),
        };
        Ok((value, indent))
    }

    /// `JSON.stringify`; what is missing is `null`.
    pub(super) fn json(&mut self, value: &Val<'a>, indent: &str, depth: usize, out: &mut String) -> Done {
        let before = out.len();
        match value.kind() {
            Kind::Undefined | Kind::Null => out.push_str("null"),
            Kind::Bool(value) => out.push_str(if value { "true" } else { "false" }),
            Kind::Number(number) => out.push_str(&number.to_string()),
            Kind::Text(text) => {
                if text.len() > self.limits.bytes {
                    return Err(Stop::Full);
                }
                out.push_str(&Value::from(text).to_string());
            }
            Kind::List(items) => {
                let items = items.iter().map(|item| (None, Val::Json(item)));
                return self.json_list(items, ('[', ']'), (indent, depth), out);
            }
            Kind::Fields(fields) => {
                let fields = fields.iter().map(|(key, value)| (Some(key.as_str()), Val::Json(value)));
                return self.json_list(fields, ('{', '}'), (indent, depth), out);
            }
            Kind::Merged(merged) => {
                self.step(merged.work() / 4)?;
                let entries = merged.entries();
                let fields = entries.iter().filter(|(_, value)| !matches!(value, Val::Undefined));
                return self.json_list(fields.map(|(key, value)| (Some(key.as_ref()), value.clone())), ('{', '}'), (indent, depth), out);
            }
        }
        self.count(out.len() - before)
    }

    fn json_list<'k>(
        &mut self,
        items: impl Iterator<Item = (Option<&'k str>, Val<'a>)>,
        brackets: (char, char),
        (indent, depth): (&str, usize),
        out: &mut String,
    ) -> Done {
        out.push(brackets.0);
        let mut is_empty = true;
        let line = |out: &mut String, depth: usize| {
            if !indent.is_empty() {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        for (key, value) in items {
            let before = out.len();
            if !std::mem::replace(&mut is_empty, false) {
                out.push(',');
            }
            line(out, depth + 1);
            if let Some(key) = key {
                out.push_str(&Value::from(key).to_string());
                out.push_str(if indent.is_empty() { ":" } else { ": " });
            }
            self.count(out.len() - before)?;
            self.json(&value, indent, depth + 1, out)?;
        }
        let before = out.len();
        if !is_empty {
            line(out, depth);
        }
        out.push(brackets.1);
        self.count(out.len() - before + 1)
    }
}
