//! Tables as text (RFC 4180): a header, then a record each. Quoted fields may hold separators and line ends; the separator is the one
//! that is named, or the most frequent of `,` `;` tab and `|` in the header.

use super::{Each, Format, MAX_RECORD_BYTES, Place, Record};
use crate::datasets::DatasetError;
use crate::datasets::source::{Source, Text};
use csv::{ByteRecord, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

const SEPARATORS: &[u8] = b",;\t|";

pub(super) struct Csv;

impl Format for Csv {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["csv", "tsv"]
    }

    fn read(&self, source: Source, each: Each<'_>) -> Result<(), DatasetError> {
        let file = source.name.clone();
        let failed = |cause: io::Error| DatasetError::Read { file: file.clone(), cause };
        let named = source.separator;
        let mut text = source.text().map_err(failed)?;
        let separator = match named {
            Some(separator) => separator,
            None => usual(text.fill_buf().map_err(failed)?),
        };
        let seen = Rc::new(RefCell::new(Seen::new()));
        let bounded = Bounded { text, seen: seen.clone() };
        let mut reader = ReaderBuilder::new().delimiter(separator).flexible(true).has_headers(false).from_reader(bounded);
        let told = |error: csv::Error| match error.into_kind() {
            csv::ErrorKind::Io(cause) => cause,
            other => io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}")),
        };
        let mut record = ByteRecord::new();
        if !reader.read_byte_record(&mut record).map_err(|error| failed(told(error)))? {
            return Err(DatasetError::Empty(file));
        }
        let header = header(&record).map_err(|problem| DatasetError::Broken { file: file.clone(), place: Place::Line(1), problem })?;
        for number in 1.. {
            let start = reader.position().byte();
            let line = seen.borrow_mut().begin(start);
            if !reader.read_byte_record(&mut record).map_err(|error| failed(told(error)))? {
                break;
            }
            let is_open = seen.borrow().ends_within_quotes(separator);
            let fields =
                if is_open { Err("a quote is not closed: everything behind it is one field".into()) } else { fields(&header, &record) };
            each(Record { place: Place::Record(number, line), fields, text: as_text(&record, separator) })?;
        }
        Ok(())
    }
}

/// The separator that stands most often in the first line.
fn usual(start: &[u8]) -> u8 {
    let end = memchr::memchr(b'\n', start).unwrap_or(start.len());
    let count = |separator: &u8| start[..end].iter().filter(|byte| *byte == separator).count();
    SEPARATORS.iter().rev().copied().max_by_key(count).unwrap_or(b',')
}

fn header(record: &ByteRecord) -> Result<Vec<String>, String> {
    let names = StringRecord::from_byte_record(record.clone()).map_err(|error| format!("the header is not UTF-8: {error}"))?;
    let mut seen = HashSet::new();
    let names: Vec<String> = names.iter().map(|name| name.trim().to_string()).collect();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => Err(format!("the header has the column \"{twice}\" twice")),
        None => Ok(names),
    }
}

fn fields(header: &[String], record: &ByteRecord) -> Result<Map<String, Value>, String> {
    if record.len() != header.len() {
        let hint = if record.len() < header.len() { "" } else { "; a field with a separator in it must be quoted" };
        return Err(format!("{} fields, but the header has {}{hint}", record.len(), header.len()));
    }
    let mut fields = Map::new();
    for (name, value) in header.iter().zip(record) {
        let text =
            std::str::from_utf8(value).map_err(|error| format!("column \"{name}\" is not UTF-8 at byte {}", error.valid_up_to() + 1))?;
        fields.insert(name.clone(), text.into());
    }
    Ok(fields)
}

/// The record as it may stand in a file of its kind.
fn as_text(record: &ByteRecord, separator: u8) -> String {
    let quoted = |field: &[u8]| {
        let text = String::from_utf8_lossy(field);
        let must = text.contains(['"', '\n', '\r', char::from(separator)]);
        if must { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into_owned() }
    };
    record.iter().map(quoted).collect::<Vec<_>>().join(&char::from(separator).to_string())
}

/// A text of which no record takes more than so many bytes: a quote that is never closed must not fill the memory.
struct Bounded {
    text: Text,
    seen: Rc<RefCell<Seen>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut seen = self.seen.borrow_mut();
        if seen.left == 0 {
            let problem = format!("the record in line {} is longer than {MAX_RECORD_BYTES} bytes; is a quote not closed?", seen.line);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let read = self.text.read(buffer)?;
        seen.left = seen.left.saturating_sub(read);
        seen.is_end |= read == 0 && !buffer.is_empty();
        seen.bytes.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

/// What was read of a text since the beginning of a record: lines are counted here as editors do, empty ones and either line end included.
struct Seen {
    bytes: Vec<u8>,
    /// Where `bytes` begin in the text, and in which line.
    start: u64,
    line: u64,
    /// Bytes that the record may still take.
    left: usize,
    is_end: bool,
}

impl Seen {
    fn new() -> Self {
        Seen { bytes: Vec::new(), start: 0, line: 1, left: MAX_RECORD_BYTES, is_end: false }
    }

    /// The record that begins at a place, or behind the line ends there, is read next; its line.
    fn begin(&mut self, at: u64) -> u64 {
        self.left = MAX_RECORD_BYTES;
        let mut passed = usize::try_from(at - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        passed += self.bytes[passed..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.line += memchr::memchr_iter(b'\n', &self.bytes[..passed]).count() as u64;
        self.bytes.drain(..passed);
        self.start += passed as u64;
        self.line
    }

    /// Whether the text is over, and a quote that its last record opens is not closed.
    fn ends_within_quotes(&self, separator: u8) -> bool {
        let (mut is_field_start, mut is_quoted, mut bytes) = (true, false, self.bytes.iter().peekable());
        while let Some(byte) = bytes.next().filter(|_| self.is_end) {
            match *byte {
                // Two of them are one within a quoted field.
                b'"' if is_quoted => is_quoted = bytes.next_if(|next| **next == b'"').is_some(),
                b'"' if is_field_start => is_quoted = true,
                other => is_field_start = !is_quoted && (other == separator || matches!(other, b'\r' | b'\n')),
            }
            is_field_start &= !is_quoted;
        }
        is_quoted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_separator_is_seen_in_the_header() {
        assert_eq!([usual(b"a,b,c\n1;2"), usual(b"a;b\n"), usual(b"a\tb,c\td"), usual(b"a|b"), usual(b"text")], *b",;\t|,");
    }
}
