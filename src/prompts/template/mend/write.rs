//! Values to text, and helpers that make structure.

use super::super::eval::{Done, Piece, Run, Stop};
use super::super::space::is_blank;
use super::super::value::{Kind, Val};
use super::{Op, wrong};
use crate::prompts::helpers;
use handlebars::{Helper, RenderContext};
use serde_json::Value;

impl<'a> Run<'a> {
    /// Writes a value as JavaScript turns it into text.
    fn show(&mut self, value: &Val<'a>) -> Done {
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
    pub(super) fn print(&mut self, op: Op, helper: &Helper<'_>, rc: &mut RenderContext<'_, '_>) -> Done {
        match op {
            Op::History => {
                if std::mem::replace(&mut self.has_history, true) {
                    return Err(wrong(helper, 0, "{{history}} has its place already: the earlier messages stand in a prompt once"));
                }
                self.pieces.push(Piece::History);
            }
            Op::Role => {
                let role = self.text_of(helper, "role")?;
                helpers::role(&role).map_err(|problem| wrong(helper, 1, problem))?;
                self.pieces.push(Piece::Role(role));
            }
            Op::Section => {
                let name = self.text_of(helper, "section")?;
                self.pieces.push(Piece::Section(name));
            }
            Op::Media => {
                let (url, content_type) = (self.named(helper, "url"), self.named(helper, "contentType"));
                let url = url.scalar().filter(|url| !is_blank(url));
                let url = url.ok_or_else(|| wrong(helper, 0, "the url of {{media}} is empty"))?.into_owned();
                let content_type = content_type.scalar().filter(|kind| !kind.is_empty()).map(|kind| kind.into_owned());
                self.count(url.len() + content_type.as_ref().map_or(0, String::len))?;
                self.pieces.push(Piece::Media { url, content_type });
            }
            _ => {
                let value = self.value(op, helper, rc)?;
                // What `json` made is counted where it is made.
                if let (Op::Json, Val::Made(text)) = (op, &value) {
                    self.limits.bytes += text.len();
                }
                self.show(&value)?;
            }
        }
        Ok(())
    }

    fn text_of(&mut self, helper: &Helper<'_>, name: &str) -> Result<String, Stop> {
        let value = self.param(helper, 0);
        let text = value.scalar().filter(|text| !is_blank(text));
        let text = text.ok_or_else(|| wrong(helper, 1, format!("{name} needs a text, and what it is given has none")))?;
        self.count(text.len())?;
        Ok(text.into_owned())
    }

    /// What the helper `json` makes.
    pub(super) fn json_text(&mut self, helper: &Helper<'_>) -> Result<String, Stop> {
        let (value, indent) = (self.param(helper, 0), self.named(helper, "indent"));
        let indent = match indent.kind() {
            Kind::Number(number) => " ".repeat(number.float().clamp(0.0, 10.0) as usize),
            Kind::Text(text) => text.chars().take(10).collect(),
            _ => String::new(),
        };
        let mut text = String::new();
        self.json(&value, &indent, 0, &mut text)?;
        Ok(text)
    }

    /// `JSON.stringify`; what is missing is `null`.
    fn json(&mut self, value: &Val<'a>, indent: &str, depth: usize, out: &mut String) -> Done {
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
