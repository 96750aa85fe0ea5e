//! JSON lines: an object in each line; empty lines are passed over.

use super::{Each, Format, MAX_RECORD_BYTES, Place, Record};
use crate::datasets::DatasetError;
use crate::datasets::source::Source;
use serde_json::{Map, Value};
use std::io::{BufRead, Read};

pub(super) struct Jsonl;

impl Format for Jsonl {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["jsonl", "ndjson"]
    }

    fn read(&self, source: Source, each: Each<'_>) -> Result<(), DatasetError> {
        let io = |cause| DatasetError::Read { file: source.name.clone(), cause };
        let mut reader = source.text().map_err(io)?;
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            if (&mut reader).take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
                break;
            }
            let is_long = bytes.len() > MAX_RECORD_BYTES;
            if is_long && bytes.last() != Some(&b'\n') {
                skip_line(&mut reader).map_err(io)?;
            }
            let text = String::from_utf8_lossy(&bytes);
            if text.trim().is_empty() {
                continue;
            }
            let fields = match std::str::from_utf8(&bytes) {
                _ if is_long => Err(format!("longer than {MAX_RECORD_BYTES} bytes")),
                Err(error) => Err(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)),
                Ok(text) => object(text),
            };
            let text = text.trim_end_matches(['\n', '\r']).to_string();
            each(Record { place: Place::Line(number), fields, text })?;
        }
        Ok(())
    }
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (used, ended) = match memchr::memchr(b'\n', buffer) {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        if ended {
            return Ok(());
        }
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))? {
        Value::Object(fields) => Ok(fields),
        _ => Err("expected an object with \"input\" and \"target\"".into()),
    }
}
