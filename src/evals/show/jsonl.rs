//! `jsonl`: one JSON object a line. The first says what the run comes to (`"type": "run"`), each other one is a case (`"type": "case"`). Of a
//! comparison: one line (`"type": "comparison"`), and one for each sample that changed (`"type": "changed"`).

use super::json::object;
use super::{Comparison, Show, Shown};
use crate::types::Failure;
use serde::Serialize;
use std::io::Write;

/// JSON lines.
pub struct Jsonl;

/// A line.
#[derive(Serialize)]
struct Line<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

impl Show for Jsonl {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        object(&Line { kind: "run", value: shown.report }, out)?;
        shown.each_case(&mut |case| object(&Line { kind: "case", value: &case }, out))
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        let Comparison { a, b, paired, metric, worse, better, changed, warnings } = comparison;
        let without = Comparison {
            a: a.clone(),
            b: b.clone(),
            paired: paired.clone(),
            metric: metric.clone(),
            worse: *worse,
            better: *better,
            changed: Vec::new(),
            warnings: warnings.clone(),
        };
        object(&Line { kind: "comparison", value: &without }, out)?;
        changed.iter().try_for_each(|one| object(&Line { kind: "changed", value: one }, out))
    }
}
