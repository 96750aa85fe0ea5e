//! Options of a scorer in a suite, read key by key; what nobody asked for is unknown.

use super::ScorerFiles;
use crate::types::error::did_you_mean;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Who wrote a scorer's options down.
#[derive(Debug, Clone)]
pub enum Author {
    /// Whoever wrote the suite; its files.
    Suite(Arc<ScorerFiles>),
    /// Whoever wrote the sample: data, which may come from anywhere.
    Sample,
}

/// Options of a scorer.
pub struct Options {
    pub(super) author: Author,
    given: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Options {
    /// Options as the suite has them.
    pub(super) fn new(given: Map<String, Value>, author: Author) -> Self {
        Options { author, given, asked: Vec::new() }
    }

    /// The suite's files. Refuses what a sample brings: scorers that read files, run code, or look into the sample for scorers again.
    pub(super) fn for_suites_only(&self) -> Result<&ScorerFiles, String> {
        match &self.author {
            Author::Suite(files) => Ok(files),
            Author::Sample => Err("a sample may not bring this scorer; put it into the suite".into()),
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.given.shift_remove(key)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key} must be a text, not {other}")),
        }
    }

    /// A text or a list of texts; none where the key is absent.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>, String> {
        let wrong = |other: &Value| format!("{key} must be a text or a list of texts, not {other}");
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(items)) if items.is_empty() => Err(format!("{key} is empty")),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(String::from).ok_or_else(|| wrong(item))).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(wrong(&other)),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, String> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(format!("{key} must be true or false, not {other}")),
        }
    }

    /// A number that is at least `least`.
    pub(super) fn number(&mut self, key: &'static str, least: f64) -> Result<Option<f64>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| *number >= least && number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{key} must be a number of at least {least}, not {value}")),
            },
        }
    }

    /// A whole number within a range.
    pub(super) fn count(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| range.contains(number)) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{key} must be a whole number from {} to {}, not {value}", range.start(), range.end())),
            },
        }
    }

    /// One of some words; the first without the key.
    pub(super) fn choice(&mut self, key: &'static str, words: &[&'static str]) -> Result<&'static str, String> {
        match self.text(key)? {
            None => Ok(words[0]),
            Some(word) => words.iter().find(|known| **known == word).copied().ok_or_else(|| {
                format!("{key} must be one of {}, not \"{word}\"{}", words.join(", "), did_you_mean(&word, words.iter().copied()))
            }),
        }
    }

    /// A regular expression.
    pub(super) fn pattern(&mut self, key: &'static str) -> Result<Option<regex::Regex>, String> {
        let compiled =
            |pattern: String| regex::Regex::new(&pattern).map_err(|error| format!("{key}: {}", error.to_string().replace('\n', " ")));
        self.text(key)?.map(compiled).transpose()
    }

    /// Refuses what no one asked for.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.given.keys().next() {
            Some(unknown) => Err(format!(
                "unknown option \"{unknown}\"{} (options: {})",
                did_you_mean(unknown, self.asked.iter().copied()),
                self.asked.join(", ")
            )),
            None => Ok(()),
        }
    }
}
