//! `json`: the report as one object on one line.

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
    put(out, text + "\n")
}
