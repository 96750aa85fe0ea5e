//! What the user wrote: a TOML tree with positions, read key by key. Reading never stops at the first problem; whatever was not
//! read at the end is an unknown key.

use crate::types::error::did_you_mean;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// Key with its section, such as `server.port`; empty for syntax errors.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// The file, where it is another one that the configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { line, key, message, file } = self;
        let file = file.as_ref().map(|file| format!("{file}, ")).unwrap_or_default();
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        write!(f, "{file}line {line}: {key}{message}")
    }
}

/// Collects the problems of one file.
pub struct Problems<'s> {
    source: &'s str,
    /// Found so far.
    pub found: Vec<Problem>,
    /// What is worth knowing and no problem of the file.
    pub notes: Vec<Problem>,
}

impl<'s> Problems<'s> {
    /// No problems yet in this source.
    pub fn new(source: &'s str) -> Self {
        Problems { source, found: Vec::new(), notes: Vec::new() }
    }

    /// Adds one at a place in the source.
    pub fn add(&mut self, span: Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let problem = self.at(span, key, message);
        self.found.push(problem);
    }

    /// Adds what is worth knowing and does not keep the file from being used.
    pub fn note(&mut self, span: Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let note = self.at(span, key, message);
        self.notes.push(note);
    }

    fn at(&self, span: Range<usize>, key: impl Into<String>, message: impl Into<String>) -> Problem {
        let before = self.source.get(..span.start).unwrap_or(self.source);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Problem { line, key: key.into(), message: message.into(), file: None }
    }
}

/// One table of the file, being read.
pub struct Section<'t, 'i> {
    table: &'t DeTable<'i>,
    path: String,
    known: Vec<&'static str>,
}

impl<'t, 'i> Section<'t, 'i> {
    /// A table at `path` (empty for the root).
    pub fn new(table: &'t DeTable<'i>, path: impl Into<String>) -> Self {
        Section { table, path: path.into(), known: Vec::new() }
    }

    /// Full name of a key of this section.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// The raw value of a key, which counts as known from now on.
    pub fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key).map(|(_, value)| value)
    }

    /// A whole number within a range; the default where the key is absent or wrong.
    pub fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64, problems: &mut Problems<'_>) -> u64 {
        let Some(value) = self.take(key) else { return default };
        let parsed = value.get_ref().as_integer().and_then(|x| u64::from_str_radix(&x.as_str().replace('_', ""), x.radix()).ok());
        match parsed.filter(|x| range.contains(x)) {
            Some(x) => x,
            None => {
                let given = describe(value.get_ref());
                let message = format!("expected a whole number from {} to {}, found {given}", range.start(), range.end());
                problems.add(value.span(), self.name(key), message);
                default
            }
        }
    }

    /// A text.
    pub fn text(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<String> {
        let value = self.take(key)?;
        let text = value.get_ref().as_str().map(str::to_string).filter(|text| !text.is_empty());
        if text.is_none() {
            problems.add(value.span(), self.name(key), format!("expected a text, found {}", describe(value.get_ref())));
        }
        text
    }

    /// True or false.
    pub fn switch(&mut self, key: &'static str, default: bool, problems: &mut Problems<'_>) -> bool {
        let Some(value) = self.take(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            problems.add(value.span(), self.name(key), format!("expected true or false, found {}", describe(value.get_ref())));
            default
        })
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<String> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let items = value.get_ref().as_array().map(|items| items.iter().map(|item| item.get_ref().as_str().map(str::to_string)).collect());
        items.unwrap_or(None).unwrap_or_else(|| {
            problems.add(value.span(), self.name(key), format!("expected a list of texts, found {}", describe(value.get_ref())));
            Vec::new()
        })
    }

    /// A table below this one.
    pub fn section(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Section<'t, 'i>> {
        let value = self.take(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            problems.add(
                value.span(),
                self.name(key),
                format!("expected a table ([{}]), found {}", self.name(key), describe(value.get_ref())),
            );
        }
        Some(Section::new(table?, self.name(key)))
    }

    /// Every key of the table with its position and value, for tables whose keys the user makes up.
    pub fn entries(&self) -> impl Iterator<Item = (&'t str, Range<usize>, &'t Spanned<DeValue<'i>>)> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
    }

    /// Reports every key that nobody took.
    pub fn finish(self, problems: &mut Problems<'_>) {
        for (key, _) in self.table.iter().filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref())) {
            let nearest = did_you_mean(key.get_ref(), self.known.iter().copied());
            let place = if self.path.is_empty() { "at the top level".to_string() } else { format!("in [{}]", self.path) };
            let known = if nearest.is_empty() { format!("; known here: {}", self.known.join(", ")) } else { nearest };
            problems.add(key.span(), self.name(key.get_ref()), format!("unknown key {place}{known}"));
        }
    }
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(x) => x.as_str().to_string(),
        DeValue::Float(x) => x.as_str().to_string(),
        DeValue::Boolean(x) => x.to_string(),
        // Texts are not repeated: somebody may have pasted a key into the wrong place.
        DeValue::String(text) if text.is_empty() => "an empty text".to_string(),
        other => format!("a {}", other.type_str()),
    }
}
