//! The fields of one criterion, read with the path of whatever is wrong.

use super::{messages, template};
use serde_json::Value;

type Wrong = (String, String);

/// One criterion's fields.
pub(super) struct Fields<'v> {
    value: &'v Value,
    at: String,
    has_sample: bool,
}

impl<'v> Fields<'v> {
    pub(super) fn new(value: &'v Value, at: String, has_sample: bool) -> Result<Self, Wrong> {
        match value {
            Value::Object(_) => Ok(Fields { value, at, has_sample }),
            _ => Err((at.clone(), format!("{at}: expected an object"))),
        }
    }

    pub(super) fn wrong(&self, field: &str, problem: impl std::fmt::Display) -> Wrong {
        let path = format!("{}.{field}", self.at);
        let problem = format!("{path}: {problem}");
        (path, problem)
    }

    /// A field that may be absent.
    pub(super) fn get(&self, field: &str) -> Option<&'v Value> {
        self.value.get(field).filter(|value| !value.is_null())
    }

    /// A text that must be there.
    pub(super) fn text(&self, field: &str) -> Result<String, Wrong> {
        let text = self.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(String::from).ok_or_else(|| self.wrong(field, "expected a text"))
    }

    /// A text with places to be filled in.
    pub(super) fn template(&self, field: &str) -> Result<String, Wrong> {
        let text = self.get(field).and_then(Value::as_str).ok_or_else(|| self.wrong(field, "expected a text"))?;
        template::check(text, self.has_sample).map_err(|problem| self.wrong(field, problem))?;
        Ok(text.to_string())
    }

    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, Wrong> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(field, "expected a number"))
    }

    pub(super) fn texts(&self, field: &str) -> Result<Vec<String>, Wrong> {
        let list = self.get(field).and_then(Value::as_array).filter(|list| !list.is_empty());
        let texts = list.map(|list| list.iter().map(|item| item.as_str().map(String::from)).collect::<Option<Vec<_>>>());
        texts.flatten().ok_or_else(|| self.wrong(field, "expected a list of texts"))
    }

    /// Messages with places to be filled in, as `{role, content}`.
    pub(super) fn messages(&self, field: &str) -> Result<Vec<Value>, Wrong> {
        let list = self.get(field).and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| self.wrong(field, "expected a list of messages"))?;
        messages::check(list, self.has_sample).map_err(|(place, problem)| self.wrong(&format!("{field}{place}"), problem))?;
        Ok(list.clone())
    }
}
