//! The lines of a batch: what one must look like, and the check of a whole file before anything is asked.

use super::endpoint;
use crate::types::{Failure, json as outside};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;

/// Lines that a batch may have, as at OpenAI.
pub const MAX_LINES: u64 = 50_000;
/// Bytes of a `custom_id`.
const MAX_ID_BYTES: usize = 512;
/// Problems that are told; a file that is wrong throughout has one for each line.
const MAX_PROBLEMS: usize = 20;

/// What is wrong with a file, or a line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Machine-readable word.
    pub code: &'static str,
    /// What was expected.
    pub message: String,
    /// Field at fault.
    pub param: Option<&'static str>,
    /// Line, from 1.
    pub line: Option<u64>,
}

impl Problem {
    /// What a failure says.
    pub(super) fn of(failure: &Failure) -> Self {
        Problem::new(failure.code().name, None, failure.told())
    }

    pub(super) fn new(code: &'static str, param: Option<&'static str>, message: impl Into<String>) -> Self {
        Problem { code, message: message.into(), param, line: None }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message, "param": self.param, "line": self.line})
    }
}

/// One request of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) custom_id: String,
    pub(super) body: Value,
}

/// What a file asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) lines: u64,
    /// What all lines name in `model`; none when they differ.
    pub(super) model: Option<String>,
}

/// The lines of a file that are not blank, each with its number; one that is longer than `limit` is cut there and cannot be read.
pub(super) struct Lines<R> {
    reader: R,
    limit: usize,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Lines { reader, limit, number: 0 }
    }

    /// The next line's bytes, at most one more than the limit.
    fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut ended = false;
        while !ended {
            let piece = self.reader.fill_buf()?;
            if piece.is_empty() {
                return Ok((!bytes.is_empty()).then_some(bytes));
            }
            let end = piece.iter().position(|byte| *byte == b'\n');
            let (text, used) = (&piece[..end.unwrap_or(piece.len())], end.map_or(piece.len(), |end| end + 1));
            bytes.extend_from_slice(&text[..text.len().min((self.limit + 1).saturating_sub(bytes.len()))]);
            ended = end.is_some();
            self.reader.consume(used);
        }
        Ok(Some(bytes))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = std::io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = match self.read() {
                Ok(bytes) => bytes?,
                Err(error) => return Some(Err(error)),
            };
            self.number += 1;
            if self.number == 1 && bytes.starts_with("\u{feff}".as_bytes()) {
                bytes.drain(..3);
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Some(Ok((self.number, bytes)));
            }
        }
    }
}

/// Reads one line that asks `path`.
pub(super) fn line(bytes: &[u8], path: &str, limit: usize) -> Result<Line, Problem> {
    if bytes.len() > limit {
        return Err(Problem::new("request_too_large", None, format!("the line is longer than {limit} bytes")));
    }
    let parsed = outside::read(bytes, outside::MAX_VALUES);
    let value = parsed.map_err(|fault| {
        let place = fault.path.map_or(String::new(), |path| format!(" (in {path})"));
        Problem::new("invalid_json_line", None, format!("not valid JSON at column {}: {}{place}", fault.column, fault.what))
    })?;
    let Value::Object(mut fields) = value else {
        return Err(Problem::new("invalid_json_line", None, "the line is not a JSON object"));
    };
    let custom_id = text(&fields, "custom_id")?.to_string();
    if custom_id.len() > MAX_ID_BYTES {
        return Err(Problem::new("invalid_value", Some("custom_id"), format!("custom_id: at most {MAX_ID_BYTES} bytes")));
    }
    if text(&fields, "method")? != "POST" {
        return Err(Problem::new("invalid_value", Some("method"), "method: expected \"POST\""));
    }
    if endpoint(text(&fields, "url")?) != Some(path) {
        return Err(Problem::new("invalid_value", Some("url"), format!("url: the batch is for {path}")));
    }
    let body = match fields.remove("body") {
        Some(body @ Value::Object(_)) => body,
        Some(_) => return Err(Problem::new("invalid_value", Some("body"), "body: expected an object")),
        None => return Err(missing("body")),
    };
    if body.get("stream").is_some_and(|stream| *stream != Value::Bool(false) && !stream.is_null()) {
        return Err(Problem::new("invalid_value", Some("body.stream"), "body.stream: a batch has nobody to stream to"));
    }
    Ok(Line { custom_id, body })
}

/// The `custom_id` of a line, without reading what follows it: the line may have been cut.
pub(super) fn custom_id(bytes: &[u8]) -> Option<String> {
    struct Fields<'f>(&'f mut Option<String>);
    impl<'de> Visitor<'de> for Fields<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key::<String>()? {
                if name == "custom_id" {
                    *self.0 = Some(map.next_value()?);
                    break;
                }
                map.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }
    let mut found = None;
    // Whatever is wrong behind it does not matter here.
    let _ = serde_json::Deserializer::from_slice(bytes).deserialize_map(Fields(&mut found));
    found
}

fn text<'v>(fields: &'v Map<String, Value>, name: &'static str) -> Result<&'v str, Problem> {
    match fields.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) => Err(Problem::new("invalid_value", Some(name), format!("{name}: expected a text"))),
        None => Err(missing(name)),
    }
}

fn missing(name: &'static str) -> Problem {
    Problem::new("missing_required_parameter", Some(name), format!("{name} is missing"))
}

/// Checks every line of a file that asks `path`, in one pass and bounded memory.
pub(super) fn file(lines: Lines<impl BufRead>, path: &str) -> std::io::Result<Result<Checked, Vec<Problem>>> {
    let limit = lines.limit;
    let (mut checked, mut problems, mut untold) = (Checked::default(), Vec::new(), 0usize);
    let (mut seen, mut models) = (HashSet::new(), HashSet::new());
    for read in lines {
        let (number, bytes) = read?;
        checked.lines += 1;
        if checked.lines > MAX_LINES {
            problems.push(Problem::new("too_many_requests", None, format!("the file has more than {MAX_LINES} lines; split it")));
            break;
        }
        let found = match line(&bytes, path, limit) {
            Ok(line) if !seen.insert(key(&line.custom_id)) => {
                let message = format!("custom_id: \"{}\" stands in an earlier line, too", line.custom_id);
                Problem::new("duplicate_custom_id", Some("custom_id"), message)
            }
            Ok(line) => {
                // Two are enough to know that they differ.
                if models.len() < 2 {
                    models.insert(line.body.get("model").and_then(Value::as_str).map(str::to_string));
                }
                continue;
            }
            Err(problem) => problem,
        };
        if problems.len() < MAX_PROBLEMS {
            problems.push(Problem { line: Some(number), ..found });
        } else {
            untold += 1;
        }
    }
    if checked.lines == 0 {
        problems.push(Problem::new("empty_file", None, "the file has no lines"));
    }
    if untold > 0 {
        problems.push(Problem::new("more_problems", None, format!("{untold} more lines are wrong")));
    }
    if models.len() == 1 {
        checked.model = models.into_iter().next().flatten();
    }
    Ok(if problems.is_empty() { Ok(checked) } else { Err(problems) })
}

/// What stands for a `custom_id` in sets: 16 bytes instead of up to 512. Two ids of one file that share it are as good as impossible.
pub(super) fn key(custom_id: &str) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, custom_id).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/v1/chat/completions";

    fn checked(text: &str) -> Result<Checked, Vec<Problem>> {
        // A reader of three bytes at a time: lines never fit.
        let reader = std::io::BufReader::with_capacity(3, text.as_bytes());
        file(Lines::new(reader, 200), PATH).expect("memory can be read")
    }

    fn one(change: impl FnOnce(&mut Value)) -> (&'static str, Option<&'static str>) {
        let mut line = json!({"custom_id": "a", "method": "POST", "url": PATH, "body": {"model": "m"}});
        change(&mut line);
        let problem = checked(&line.to_string()).expect_err("must be refused").remove(0);
        assert_eq!(problem.line, Some(1));
        (problem.code, problem.param)
    }

    #[test]
    fn good_lines_pass_with_or_without_the_version_and_the_last_line_feed() {
        let a = json!({"custom_id": "a", "method": "POST", "url": "/chat/completions", "body": {"model": "m", "stream": false}});
        let b = json!({"custom_id": "b", "method": "POST", "url": PATH, "body": {"model": "m"}});
        let wanted = Checked { lines: 2, model: Some("m".into()) };
        assert_eq!(checked(&format!("\u{feff}{a}\r\n\n  \n{b}")), Ok(wanted.clone()));
        assert_eq!(checked(&format!("{a}\n{b}\n")), Ok(wanted));
        let other = b.to_string().replace("\"m\"", "\"n\"");
        assert_eq!(checked(&format!("{a}\n{other}\n")).expect("fine").model, None);
    }

    #[test]
    fn each_problem_names_its_line_and_field() {
        assert_eq!(one(|line| line["custom_id"] = json!(7)), ("invalid_value", Some("custom_id")));
        assert_eq!(one(|line| drop(line["method"].take())), ("invalid_value", Some("method")));
        assert_eq!(one(|line| line["method"] = json!("GET")), ("invalid_value", Some("method")));
        assert_eq!(one(|line| line["url"] = json!("/v1/files")), ("invalid_value", Some("url")));
        assert_eq!(one(|line| line["url"] = json!("/v1/embeddings")), ("invalid_value", Some("url")));
        assert_eq!(one(|line| line["body"] = json!("x")), ("invalid_value", Some("body")));
        assert_eq!(one(|line| line["body"]["stream"] = json!(true)), ("invalid_value", Some("body.stream")));
        assert_eq!(one(|line| line["body"]["x"] = json!("y".repeat(200))), ("request_too_large", None));
        assert_eq!(one(|line| drop(line.as_object_mut().map(|l| l.remove("body")))), ("missing_required_parameter", Some("body")));
        let of = |text: &str| checked(text).expect_err("must be refused").into_iter().map(|p| (p.code, p.line)).collect::<Vec<_>>();
        assert_eq!(of(""), [("empty_file", None)]);
        assert_eq!(of("{\n[]\n"), [("invalid_json_line", Some(1)), ("invalid_json_line", Some(2))]);
        let hot = json!({"custom_id": "a", "method": "POST", "url": PATH, "body": {"temperature": 1}}).to_string().replace(":1}", ":NaN}");
        assert!(checked(&hot).expect_err("must be refused")[0].message.contains("body.temperature"));
        let a = json!({"custom_id": "a", "method": "POST", "url": PATH, "body": {}});
        assert_eq!(of(&format!("{a}\n\n{a}\n")), [("duplicate_custom_id", Some(3))]);
        assert_eq!(of(&"{\n".repeat(30)).len(), MAX_PROBLEMS + 1);
    }
}
