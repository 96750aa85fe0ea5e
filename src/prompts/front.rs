//! The front matter: the YAML above a prompt's body, its known keys checked, its schemas expanded. What the user wrote stays in `raw`.
//!
//! Source: dotprompt's "frontmatter reference". [`SCHEMA`] says the same to editors.

use super::examples::{self, Examples};
use super::parse::Surroundings;
use super::{Problem, schema};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// JSON Schema of the front matter, for editors.
pub const SCHEMA: &str = include_str!("front_matter.schema.json");

/// Keys with a meaning. A key with a dot is an extension, any other is kept in `raw` only.
pub const KEYS: &[&str] = &[
    "name",
    "variant",
    "version",
    "description",
    "model",
    "config",
    "examples",
    "input",
    "output",
    "tools",
    "toolDefs",
    "metadata",
    "ext",
    "raw",
];
/// Keys of `input`.
pub const INPUT_KEYS: &[&str] = &["schema", "default"];
/// Keys of `output`.
pub const OUTPUT_KEYS: &[&str] = &["schema", "format"];
/// Short words that stand one letter from other words: for these no slip of the finger is guessed.
const SHORT: &[&str] = &["name", "ext", "raw"];
/// Keys that dotprompt copies; `ext`, `raw` and `metadata` are made, not copied.
const COPIED: &[&str] = &["name", "variant", "version", "description", "model", "config", "input", "output", "tools", "toolDefs"];

/// The front matter's known keys, checked.
#[derive(Debug, Clone, Default)]
pub struct FrontMatter {
    /// `model`: a suggestion that targets and routes may override.
    pub model: Option<String>,
    /// `description`, for lists.
    pub description: Option<String>,
    /// `config`: decoding parameters by their wire names.
    pub config: Map<String, Value>,
    /// `input.default`.
    pub defaults: Map<String, Value>,
    /// `input.schema` as JSON Schema.
    pub input_schema: Option<Value>,
    /// `output.schema` as JSON Schema.
    pub output_schema: Option<Value>,
    /// `output.format`: `json` or `text`.
    pub output_format: Option<String>,
    /// `examples`: samples of a dataset that the model is shown.
    pub examples: Option<Examples>,
    /// Names in `tools`.
    pub tools: Vec<String>,
    /// Keys with a dot (`team.owner: x`), as nested objects.
    pub ext: Map<String, Value>,
    /// Everything, as written.
    pub raw: Map<String, Value>,
}

/// Reads YAML.
///
/// # Errors
/// The line in the YAML, from 1, and what is wrong there.
pub(super) fn read(yaml: &str, surroundings: &dyn Surroundings) -> Result<FrontMatter, (usize, Problem)> {
    if yaml.trim().is_empty() {
        return Ok(FrontMatter::default());
    }
    let raw = mapping(yaml)?;
    let line = |key: &str| line_of(yaml, &[key]);
    let wrong = |key: &str, expected: &str| (line(key), Problem::FrontMatter(format!("`{key}` must be {expected}")));
    let text = |key: &str| match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(key, "a text")),
    };
    let map = |key: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => Err(wrong(key, "a map")),
    };
    let (input, output) = (map("input", raw.get("input"))?, map("output", raw.get("output"))?);
    slips(yaml, "", &raw, KEYS)?;
    slips(yaml, "input", &input, INPUT_KEYS)?;
    slips(yaml, "output", &output, OUTPUT_KEYS)?;
    let schema_of = |holder: &Map<String, Value>, key: &str| match holder.get("schema") {
        None | Some(Value::Null) => Ok(None),
        Some(schema) => schema::expand(schema, surroundings).map(Some).map_err(|problem| (line_of(yaml, &[key, "schema"]), problem)),
    };
    let tools = match raw.get("tools") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(String::from)).collect(),
        Some(_) => None,
    };
    if raw.get("toolDefs").is_some_and(|tools| !tools.is_array() && !tools.is_null()) {
        return Err(wrong("toolDefs", "a list of definitions"));
    }
    Ok(FrontMatter {
        model: text("model")?,
        description: text("description")?,
        config: map("config", raw.get("config"))?,
        defaults: map("default", input.get("default"))?,
        input_schema: schema_of(&input, "input")?,
        output_schema: schema_of(&output, "output")?,
        output_format: output.get("format").and_then(Value::as_str).map(String::from),
        examples: examples::read(raw.get("examples")).map_err(|problem| (line("examples"), Problem::FrontMatter(problem)))?,
        tools: tools.ok_or_else(|| wrong("tools", "a list of names"))?,
        ext: extensions(&raw),
        raw,
    })
}

/// Most brackets and braces in a front matter: what YAML's reader does with open ones grows with their square.
const MAX_BRACKETS: usize = 1000;

/// Refuses YAML that costs far more than its size.
fn bounded(yaml: &str) -> Result<(), (usize, Problem)> {
    let line = |at: usize| yaml[..at].matches('\n').count() + 1;
    if let Some((at, _)) = yaml.match_indices(['[', '{']).nth(MAX_BRACKETS) {
        return Err((line(at), Problem::FrontMatter(format!("more than {MAX_BRACKETS} brackets and braces"))));
    }
    // A name behind `&` and behind `*`, both where a value may begin. Text in which both stand by chance is hard to imagine.
    let names = |sign: char| {
        let begins = move |at: usize| !yaml[..at].ends_with(|c: char| c.is_alphanumeric());
        yaml.match_indices(sign).map(|(at, _)| at).filter(move |at| begins(*at)).map(|at| {
            let rest = &yaml[at + 1..];
            // What the reader takes for a name: a longer one would hide the alias in it.
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            (at, &rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())])
        })
    };
    let anchors: HashSet<&str> = names('&').map(|(_, name)| name).filter(|name| !name.is_empty()).collect();
    match names('*').find(|(_, name)| anchors.contains(name)) {
        Some((at, name)) => {
            let text = format!("YAML's aliases (`&{name}` and `*{name}`) are not taken: write the value where it is needed");
            Err((line(at), Problem::FrontMatter(text)))
        }
        None => Ok(()),
    }
}

fn mapping(yaml: &str) -> Result<Map<String, Value>, (usize, Problem)> {
    bounded(yaml)?;
    let broken = |error: serde_norway::Error| {
        let text = error.to_string();
        let text = text.lines().next().unwrap_or_default();
        let line = error.location().map_or(1, |at| at.line());
        (line, Problem::FrontMatter(text.to_string()))
    };
    // By way of YAML's own values: they refuse a key that comes twice, which JSON's would take the last of.
    let value: serde_norway::Value = serde_norway::from_str(yaml).map_err(broken)?;
    match serde_json::to_value(value) {
        Ok(Value::Null) => Ok(Map::new()),
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let start: String = other.to_string().chars().take(40).collect();
            Err((1, Problem::FrontMatter(format!("expected keys and values, such as `model: mock/echo`, not {start}"))))
        }
        Err(error) => Err((1, Problem::FrontMatter(error.to_string()))),
    }
}

/// Refuses keys that are one slip of the finger from a known one: silently left out, they would cost the most time.
fn slips(yaml: &str, holder: &str, map: &Map<String, Value>, known: &[&str]) -> Result<(), (usize, Problem)> {
    for key in map.keys().filter(|key| !known.contains(&key.as_str()) && !key.contains('.')) {
        let near = known
            .iter()
            .find(|known| !SHORT.contains(known) && key.len().abs_diff(known.len()) <= 4 && strsim::osa_distance(key, known) == 1);
        if let Some(near) = near {
            let place = if holder.is_empty() { String::new() } else { format!(" of `{holder}`") };
            let own = format!("a key of your own has a dot, such as `my.{key}`");
            let text = format!("`{key}` is not a key{place}; did you mean `{near}`? ({own})");
            return Err((
                if holder.is_empty() { line_of(yaml, &[key]) } else { line_of(yaml, &[holder, key]) },
                Problem::FrontMatter(text),
            ));
        }
    }
    Ok(())
}

/// Line of the last key of a path, from 1, or of the one before where it does not stand at a line's start.
fn line_of(yaml: &str, path: &[&str]) -> usize {
    let (mut found, mut from) = (1, 0);
    for key in path {
        let is_key = |line: &str| {
            let line = line.trim_start().trim_start_matches(['"', '\'']);
            line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
        };
        match yaml.lines().skip(from).position(is_key) {
            Some(at) => (found, from) = (from + at + 1, from + at + 1),
            None => return found,
        }
    }
    found
}

fn extensions(raw: &Map<String, Value>) -> Map<String, Value> {
    let mut ext = Map::new();
    for (key, value) in raw.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())) {
        if let Some((space, field)) = key.rsplit_once('.')
            && let Value::Object(fields) = ext.entry(space).or_insert_with(|| Value::Object(Map::new()))
        {
            fields.insert(field.to_string(), value.clone());
        }
    }
    ext
}

/// The front matter as dotprompt's metadata: known keys, schemas expanded, tools looked up, extensions gathered, and `raw`.
pub(super) fn metadata(front: &FrontMatter, surroundings: &dyn Surroundings) -> Map<String, Value> {
    let mut metadata = Map::from_iter([("ext".to_string(), json!({})), ("metadata".into(), json!({})), ("config".into(), json!({}))]);
    for key in COPIED {
        if let Some(value) = front.raw.get(*key).filter(|value| !value.is_null()) {
            metadata.insert((*key).into(), value.clone());
        }
    }
    for (key, schema) in [("input", &front.input_schema), ("output", &front.output_schema)] {
        if let (Some(schema), Some(holder)) = (schema, metadata.get_mut(key)) {
            holder["schema"] = schema.clone();
        }
    }
    if !front.raw.is_empty() {
        metadata.insert("ext".into(), Value::Object(front.ext.clone()));
        metadata.insert("raw".into(), Value::Object(front.raw.clone()));
    }
    if front.raw.get("tools").is_some_and(Value::is_array) {
        let mut definitions = front.raw.get("toolDefs").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut unknown = Vec::new();
        for name in &front.tools {
            match surroundings.tool(name) {
                Some(tool) => definitions.push(tool),
                None => unknown.push(Value::from(name.as_str())),
            }
        }
        metadata.insert("toolDefs".into(), Value::Array(definitions));
        metadata.insert("tools".into(), Value::Array(unknown));
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::parse::NoSurroundings;

    fn problem(yaml: &str) -> (usize, String) {
        let (line, problem) = read(yaml, &NoSurroundings).expect_err(yaml);
        (line, problem.to_string())
    }

    #[test]
    fn slips_are_refused_with_their_line() {
        for (yaml, line, near) in [
            ("model: x\ninputs:\n  schema: string", 2, "`input`"),
            ("input:\n  schema: string\n  defaults: {a: 1}", 3, "`default`"),
            ("input: {}\noutput:\n  shema: string", 3, "`schema`"),
        ] {
            let (found, text) = problem(yaml);
            assert_eq!(found, line, "{text}");
            assert!(text.contains(near) && text.contains("a dot"), "{text}");
        }
        assert!(read("custom: prop\ntext: x\ngame.model: y\noutput: {constrained: true}", &NoSurroundings).is_ok());
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        let (_, text) = problem("model: a\nconfig: {}\nmodel: b");
        assert!(text.contains("duplicate") && text.contains("model"), "{text}");
    }

    #[test]
    fn aliases_cannot_multiply() {
        let mut yaml = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (this, last) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
            yaml += &format!("{this}: &{this} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n");
        }
        assert!(problem(&yaml).1.contains("aliases"));
        assert!(problem("a: &x 1\nb: *x").1.contains("`*x`"));
        assert!(problem(&format!("a: {}", "[".repeat(2000))).1.contains("brackets"));
        assert!(read("description: Q&A, *bold* and R&D; see &amp; and * stars\nconfig: {stop: ['&a', '**']}", &NoSurroundings).is_ok());
    }

    #[test]
    fn the_editor_schema_agrees_with_the_reader() {
        let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let agree = |front: Value| {
            let yaml = serde_norway::to_string(&front).expect("YAML");
            let read = read(&yaml, &NoSurroundings);
            assert_eq!(validator.is_valid(&front), read.is_ok(), "{front} {read:?}");
        };
        // Every key with one letter changed, left out, put in or swapped.
        for (holder, keys) in [(None, KEYS), (Some("input"), INPUT_KEYS), (Some("output"), OUTPUT_KEYS)] {
            for key in keys {
                for i in 0..key.len() {
                    let (before, rest) = key.split_at(i);
                    let swapped: String = rest[1..].chars().take(1).chain(rest.chars().take(1)).chain(rest.chars().skip(2)).collect();
                    for slip in [
                        format!("{before}x{}", &rest[1..]),
                        format!("{before}{}", &rest[1..]),
                        format!("{before}x{rest}"),
                        format!("{before}{swapped}"),
                    ] {
                        agree(match holder {
                            None => json!({slip: null}),
                            Some(holder) => json!({holder: {slip: null}}),
                        });
                    }
                }
            }
        }
        for front in [
            json!({"model": 3}),
            json!({"config": []}),
            json!({"tools": "x"}),
            json!({"examples": {"dataset": "d@1", "count": 3, "choose": "random", "seed": 1}}),
            json!({"examples": {"dataset": "d@1", "choose": "nearest", "by": "m", "model": "up/m"}}),
            json!({"examples": {"dataset": "d", "count": 65}}),
            json!({"examples": {"dataset": "d", "ids": []}}),
            json!({"examples": {"dataset": "d", "model": "m"}}),
            json!({"examples": {"datset": "d"}}),
            json!({"examples": ["d"]}),
            json!({"custom": 1, "a.b": {}, "input": {"schema": "string"}}),
        ] {
            agree(front);
        }
    }
}
