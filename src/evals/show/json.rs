//! `json`: the report as one object on one line.

use super::escape::is_obeyed;
use super::{Comparison, Show, Shown, put};
use crate::types::{Code, Failure};
use serde::Serialize;
use std::io::Write;

/// One JSON object.
pub struct Json;

impl Show for Json {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        object(shown.report, out)
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        object(comparison, out)
    }
}

pub(super) fn object(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(Code::INTERNAL, format!("cannot write the result: {error}")))?;
    put(out, plain(text) + "\n")
}

/// JSON without characters that a terminal obeys: they stand in texts alone, where their escapes mean the same.
pub fn plain(json: String) -> String {
    if !json.chars().any(|c| is_obeyed(c) && c != '\n') {
        return json;
    }
    json.chars().fold(String::with_capacity(json.len() + 8), |mut plain, c| {
        if is_obeyed(c) && c != '\n' {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)))
        } else {
            plain.push(c)
        }
        plain
    })
}
