//! A request's row as a line of a segment: one JSON object with only the fields that are known. Bodies, which are JSON already, stand
//! in it as they are, at its end; how long they are stands at its beginning, so that they are neither escaped nor read to be taken out.

use crate::store::requests::RequestRow;
use serde::Serialize;
use std::io::Write;

/// How a line with bodies begins: `{"bodies":[12,null],…,"request":…}`.
const BODIES: &[u8] = b"{\"bodies\":[";
const REQUEST: &str = ",\"request\":";
const REPLY: &str = ",\"reply\":";
const END: &str = "}\n";
/// Bodies that are longer are not copied on their way to the disk.
pub const LONG: usize = 8 << 10;
const CANNOT_FAIL: &str = "a row is texts and finite numbers: serialising cannot fail";

/// A line in the pieces it is written in; most have one.
pub type Pieces<'r> = [&'r [u8]; 5];

/// Writes a row in the place of what `out` holds, its line feed in front as well as behind: what was torn before it ends there. Long
/// bodies are not copied.
pub fn write<'r>(row: &'r RequestRow, out: &'r mut Vec<u8>) -> Pieces<'r> {
    out.clear();
    out.push(b'\n');
    let rest = begin(row, out);
    if rest.iter().map(|piece| piece.len()).sum::<usize>() > LONG {
        return [out, rest[0], rest[1], rest[2], rest[3]];
    }
    rest.into_iter().for_each(|piece| out.extend_from_slice(piece));
    [out, b"", b"", b"", b""]
}

/// Adds a row's line to those that `out` holds, a line feed in front of the first.
pub fn add(row: &RequestRow, out: &mut Vec<u8>) {
    if out.is_empty() {
        out.push(b'\n');
    }
    begin(row, out).into_iter().for_each(|piece| out.extend_from_slice(piece));
}

/// Writes a line up to its bodies; gives the rest of it.
fn begin<'r>(row: &'r RequestRow, out: &mut Vec<u8>) -> [&'r [u8]; 4] {
    // A body that holds a line feed is escaped like any other text.
    let raw = |body: &'r Option<String>| body.as_deref().filter(|body| memchr::memchr(b'\n', body.as_bytes()).is_none());
    let (request, reply) = (raw(&row.request), raw(&row.reply));
    out.extend_from_slice(BODIES);
    for (comma, body) in [("", request), (",", reply)] {
        match body {
            Some(body) => write!(out, "{comma}{}", body.len()),
            None => write!(out, "{comma}null"),
        }
        .expect("writing into memory cannot fail");
    }
    out.push(b']');
    fields(out, row);
    // Those that are escaped come before those that end the line.
    for (name, raw, body) in [(REQUEST, request, &row.request), (REPLY, reply, &row.reply)] {
        if let (None, Some(body)) = (raw, body) {
            out.extend_from_slice(name.as_bytes());
            serde_json::to_writer(&mut *out, body).expect(CANNOT_FAIL);
        }
    }
    if request.is_some() {
        out.extend_from_slice(REQUEST.as_bytes());
    }
    [request.unwrap_or_default(), if reply.is_some() { REPLY } else { "" }, reply.unwrap_or_default(), END].map(str::as_bytes)
}

fn fields(out: &mut Vec<u8>, row: &RequestRow) {
    // A field that is forgotten here fails a test.
    macro_rules! always { ($($name:ident),*) => { $(field(out, stringify!($name), $name);)* } }
    macro_rules! known { ($($name:ident),*) => { $(if let Some(value) = $name { field(out, stringify!($name), value); })* } }
    let RequestRow { id, at, project, api_key, endpoint, route, release, provider, model, adapter, streamed, status, .. } = row;
    always!(id, at, project, api_key, endpoint, provider, model, streamed, status);
    known!(route, release, adapter);
    let RequestRow { error_code, input_tokens, output_tokens, finish_reason, queue_ms, first_token_ms, total_ms, .. } = row;
    always!(total_ms);
    known!(error_code, input_tokens, output_tokens, finish_reason, queue_ms, first_token_ms);
    let RequestRow {
        upstream_ms, overhead_ms, cached_tokens, cache_write_tokens, reasoning_tokens, cost_micro_usd, saved_micro_usd, ..
    } = row;
    known!(upstream_ms, overhead_ms, cached_tokens, cache_write_tokens, reasoning_tokens, cost_micro_usd, saved_micro_usd);
    let RequestRow { price, cache, attempts, attempted, guardrails, trace_id, reply_id, conversation, .. } = row;
    known!(price, cache, attempts, attempted, guardrails, trace_id, reply_id, conversation);
    let RequestRow { prompt, prompt_version, stored, .. } = row;
    known!(prompt, prompt_version, stored);
}

fn field(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(out, value).expect(CANNOT_FAIL);
}

/// Reads a line without its line feed; none when it is none of ours.
pub fn read(line: &[u8]) -> Option<RequestRow> {
    let row = match line.strip_prefix(BODIES) {
        Some(rest) => with_bodies(rest)?,
        // As an older program wrote it.
        None => serde_json::from_slice::<RequestRow>(line).ok()?,
    };
    (!row.id.is_empty()).then_some(row)
}

fn with_bodies(rest: &[u8]) -> Option<RequestRow> {
    let end = memchr::memchr(b']', rest)?;
    let mut lengths = std::str::from_utf8(&rest[..end]).ok()?.split(',');
    let mut length = || match lengths.next()? {
        "null" => Some(None),
        text => text.parse::<usize>().ok().map(Some),
    };
    let (request, reply) = (length()?, length()?);
    // From the end on: the brace, the reply, the request. What is left are the fields.
    let mut left = rest.get(end + 1..)?.strip_suffix(b"}")?;
    let mut take = |length: Option<usize>, name: &[u8]| -> Option<Option<String>> {
        let Some(length) = length else { return Some(None) };
        let at = left.len().checked_sub(length)?;
        let text = std::str::from_utf8(&left[at..]).ok()?.to_string();
        left = left[..at].strip_suffix(name)?;
        Some(Some(text))
    };
    let reply = take(reply, REPLY.as_bytes())?;
    let request = take(request, REQUEST.as_bytes())?;
    let mut object = Vec::with_capacity(left.len() + 2);
    object.push(b'{');
    object.extend_from_slice(left.strip_prefix(b",")?);
    object.push(b'}');
    let row: RequestRow = serde_json::from_slice(&object).ok()?;
    Some(RequestRow { request: request.or(row.request), reply: reply.or(row.reply), ..row })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Every field that a row has is in it.
    fn full() -> RequestRow {
        let mut row = serde_json::to_value(RequestRow::default()).expect("an object");
        for (at, (name, value)) in row.as_object_mut().expect("an object").iter_mut().enumerate() {
            *value = match value {
                Value::String(_) => json!(format!("{name} \"\\ \u{e9}]")),
                Value::Number(number) if number.is_f64() => json!(at as f64 + 0.5),
                Value::Number(_) => json!(at),
                Value::Bool(_) => json!(true),
                _ if name.ends_with("_ms") => json!(at as f64 + 0.25),
                _ if name.contains("tokens") || name.contains("micro_usd") || name == "attempts" || name == "prompt_version" => json!(at),
                _ => json!(format!("{name} \"\\")),
            };
        }
        serde_json::from_value(row).expect("a row")
    }

    fn written(row: &RequestRow) -> Vec<u8> {
        let mut line = b"what was there before".to_vec();
        write(row, &mut line).concat()
    }

    #[test]
    fn a_line_gives_back_its_row() {
        let long = format!("[\"{}\"]", "x".repeat(LONG));
        let bodies = [None, Some(""), Some(long.as_str()), Some("{\"a\":\"x]\\n\"}"), Some("{\n  \"pretty\": 1\n}"), Some("cut off \"")];
        for request in bodies {
            for reply in bodies {
                let row = RequestRow { request: request.map(str::to_string), reply: reply.map(str::to_string), ..full() };
                let line = written(&row);
                let line = line.strip_prefix(b"\n").and_then(|line| line.strip_suffix(b"\n")).expect("a line");
                assert!(!line.contains(&b'\n'));
                assert_eq!(read(line), Some(row.clone()), "{}", String::from_utf8_lossy(line));
                for end in (0..line.len()).filter(|end| line.len() < LONG || end % 997 == 0) {
                    assert!(read(&line[..end]).is_none(), "a torn line is no row: {}", String::from_utf8_lossy(&line[..end]));
                }
            }
        }
        let old = serde_json::to_vec(&full()).expect("serialises");
        assert_eq!(read(&old), Some(full()));
    }

    #[test]
    fn a_line_is_json_where_its_bodies_are() {
        let row = RequestRow { id: "req_1".into(), request: Some("{\"a\":[1]}".into()), ..RequestRow::default() };
        let value: Value = serde_json::from_slice(&written(&row)).expect("JSON");
        assert_eq!((&value["id"], &value["request"]["a"]), (&json!("req_1"), &json!([1])));
    }
}
