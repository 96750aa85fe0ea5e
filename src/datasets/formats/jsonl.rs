//! JSON lines: `{"id": "…", "input": {…}, "target": …, "metadata": {…}}`. Only `input` is required; read line by line.

use super::Format;
use crate::datasets::{DatasetError, Sample};
use crate::types::error::did_you_mean;
use crate::types::ids::is_safe_name;
use serde_json::{Map, Value, json};
use std::io::{BufRead, Read};

const FIELDS: &[&str] = &["id", "input", "target", "metadata"];
/// Longest line, in bytes: a sample is held in memory.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

pub(super) struct Jsonl;

impl Format for Jsonl {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["jsonl", "ndjson"]
    }

    fn read(
        &self,
        source: &str,
        reader: &mut dyn BufRead,
        each: &mut dyn FnMut(usize, Sample) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError> {
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let io = |cause| DatasetError::Read { file: source.to_string(), cause };
            if (&mut *reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
                break;
            }
            let broken = |problem: String| DatasetError::Line { file: source.to_string(), line: number, problem };
            if bytes.len() as u64 > MAX_LINE_BYTES {
                return Err(broken(format!("longer than {MAX_LINE_BYTES} bytes")));
            }
            let text = std::str::from_utf8(&bytes).map_err(|error| broken(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
            let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if !text.trim().is_empty() {
                each(number, sample(text).map_err(broken)?)?;
            }
        }
        Ok(())
    }
}

fn sample(text: &str) -> Result<Sample, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut fields) = value else {
        return Err("expected an object with \"input\" and \"target\"".into());
    };
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(format!("unknown field \"{unknown}\"{}", did_you_mean(unknown, FIELDS.iter().copied())));
    }
    let input = match fields.shift_remove("input") {
        Some(Value::Object(input)) if !input.is_empty() => input,
        Some(_) => return Err("field \"input\" must be an object with at least one variable, such as {\"message\": \"…\"}".into()),
        None => return Err("field \"input\" is missing".into()),
    };
    let metadata = match fields.shift_remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err("field \"metadata\" must be an object".into()),
    };
    let target = fields.shift_remove("target").unwrap_or(Value::Null);
    let id = match fields.shift_remove("id") {
        Some(Value::String(id)) if is_safe_name(&id) => id,
        Some(other) => return Err(format!("field \"id\" must be 1 to 128 letters, digits and . _ : @ / -, not {other}")),
        None => crate::types::Digest::of_json(&json!({"input": input, "target": target})).hex()[..16].to_string(),
    };
    Ok(Sample { id, input, target, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Sample>, String> {
        let mut samples = Vec::new();
        let mut each = |_: usize, sample: Sample| {
            samples.push(sample);
            Ok(())
        };
        Jsonl.read("f.jsonl", &mut text.as_bytes(), &mut each).map_err(|error| error.to_string())?;
        Ok(samples)
    }

    #[test]
    fn broken_lines_are_named_with_their_field() {
        let good = "{\"id\":\"a\",\"input\":{\"m\":\"x\"},\"target\":1}\n";
        assert_eq!(read(&format!("\u{feff}{good}\n{{\"input\":{{\"m\":\"y\"}}}}")).expect("reads").len(), 2);
        for (line, part) in [
            ("{\"input\":", "not JSON"),
            ("{\"target\":1}", "\"input\" is missing"),
            ("{\"input\":\"x\"}", "\"input\" must be an object"),
            ("{\"input\":{\"m\":1},\"traget\":1}", "did you mean \"target\""),
            ("{\"id\":7,\"input\":{\"m\":1}}", "\"id\""),
            ("[1]", "expected an object"),
        ] {
            let error = read(&format!("{good}{line}")).expect_err(line);
            assert!(error.contains("f.jsonl, line 2") && error.contains(part), "{error}");
        }
    }
}
