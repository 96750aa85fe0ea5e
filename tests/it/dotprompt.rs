//! The public conformance suite of the dotprompt specification, case by case, compared as strictly as the JavaScript reference runner
//! does: messages with their parts, and every key of the metadata, nothing more and nothing less. And what is written about the format:
//! the examples of the page, the schema for editors.

use crate::support::{Refit, skip};
use refit::prompts::front::SCHEMA;
use refit::prompts::parse::Surroundings;
use refit::prompts::render::{Part, Turn};
use refit::prompts::schema::to_json_schema;
use refit::prompts::{Input, Missing, Prompt};
use refit::types::chat::{Content, Message};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Cases in the suite as it was when this was written; a case is an entry below `tests:`.
const CASES: usize = 117;

#[test]
fn the_conformance_suite_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/dotprompt-spec");
    if !folder.is_dir() {
        return skip("dotprompt::the_conformance_suite_passes", "../shared/data/dotprompt-spec is not there");
    }
    let (mut passed, mut failures) = (0, Vec::new());
    for file in files(&folder) {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        let suites: Vec<Value> = serde_norway::from_str(&text).expect("YAML");
        for suite in &suites {
            for case in suite["tests"].as_array().expect("a list of tests") {
                match run(suite, case) {
                    Ok(()) => passed += 1,
                    Err(problem) => failures.push(format!("{}, {}: {}: {problem}", file.display(), suite["name"], case["desc"])),
                }
            }
        }
    }
    let _ = writeln!(std::io::stderr().lock(), "dotprompt: {passed} passed, {} failed", failures.len());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert_eq!(passed, CASES, "the suite has changed: the number of its cases stands in this file");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.extension().and_then(|extension| extension.to_str()) {
            _ if path.is_dir() => found.extend(files(&path)),
            Some("yaml") => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// What a suite says its prompt may refer to.
struct Suite<'a>(&'a Value);

impl Surroundings for Suite<'_> {
    fn partial(&self, name: &str) -> Option<String> {
        ["partials", "resolverPartials"].iter().find_map(|key| self.0[*key][name].as_str()).map(String::from)
    }

    fn schema(&self, name: &str) -> Option<Value> {
        self.0["schemas"].get(name).cloned()
    }

    fn tool(&self, name: &str) -> Option<Value> {
        self.0["tools"].get(name).cloned()
    }
}

/// One case. Source of what is compared: `js/test/spec.test.ts` of the reference implementation.
fn run(suite: &Value, case: &Value) -> Result<(), String> {
    let template = suite["template"].as_str().ok_or("no template")?;
    let prompt = Prompt::parse_with("case", template, &Suite(suite)).map_err(|error| error.to_string())?;
    let editors = jsonschema::validator_for(&serde_json::from_str(SCHEMA).expect("JSON")).expect("a schema");
    if !editors.is_valid(&Value::Object(prompt.front.raw.clone())) {
        return Err("the schema for editors refuses the front matter".into());
    }
    // The case's data lies over the suite's.
    let mut data = suite["data"].as_object().cloned().unwrap_or_default();
    data.extend(case["data"].as_object().cloned().unwrap_or_default());
    let data = Value::Object(data);
    let history: Vec<Message> = data["messages"].as_array().into_iter().flatten().map(from_dotprompt).collect();
    let input = Input {
        variables: data["input"].as_object(),
        history: &history,
        context: data["context"].as_object(),
        defaults: case["options"]["input"]["default"].as_object(),
        missing: Missing::Empty,
    };
    let turns = prompt.turns(&input).map_err(|error| error.to_string())?;

    // What rendering gives: all metadata but the input's, and the messages.
    let mut rendered = prompt.metadata(&Map::new()).map_err(|error| error.to_string())?;
    let raw = rendered.shift_remove("raw");
    rendered.shift_remove("input");
    rendered.insert("messages".into(), turns.iter().map(to_dotprompt).collect());
    let mut expected = case["expect"].as_object().cloned().ok_or("no expectation")?;
    let expected_raw = expected.shift_remove("raw");
    let expected_input = expected.shift_remove("input");
    for key in ["ext", "config", "metadata"] {
        expected.entry(key).or_insert_with(|| json!({}));
    }
    same("rendered", &Value::Object(rendered), &Value::Object(expected.clone()))?;
    if let Some(expected_raw) = expected_raw {
        same("raw", &raw.unwrap_or_default(), &expected_raw)?;
    }

    // The metadata alone, with the options of the call laid over it.
    let options = case["options"].as_object().cloned().unwrap_or_default();
    let mut metadata = prompt.metadata(&options).map_err(|error| error.to_string())?;
    metadata.shift_remove("raw");
    expected.shift_remove("messages");
    expected.extend(expected_input.map(|input| ("input".to_string(), input)));
    same("metadata", &Value::Object(metadata), &Value::Object(expected))
}

/// Equality in which, as in the reference runner's, the order of keys means nothing.
fn same(what: &str, found: &Value, expected: &Value) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}\n     found {found}\n  expected {expected}")) }
}

fn from_dotprompt(message: &Value) -> Message {
    let parts = message["content"].as_array().cloned().unwrap_or_default();
    Message { role: message["role"].as_str().unwrap_or_default().into(), content: Some(Content::Parts(parts)), extra: Map::new() }
}

fn to_dotprompt(turn: &Turn) -> Value {
    match turn {
        Turn::Own { role, parts } => json!({"role": role, "content": parts.iter().map(part).collect::<Vec<_>>()}),
        Turn::Earlier { message, is_placed } => {
            let mut whole = json!({"role": message.role, "content": message.content});
            if *is_placed {
                whole["metadata"] = json!({"purpose": "history"});
            }
            whole
        }
    }
}

fn part(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"text": text}),
        Part::Media { url, content_type: None } => json!({"media": {"url": url}}),
        Part::Media { url, content_type: Some(kind) } => json!({"media": {"url": url, "contentType": kind}}),
        Part::Section(name) => json!({"metadata": {"purpose": name, "pending": true}}),
    }
}

/// The fenced blocks of a page: language and text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut is_open = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(language) => {
                is_open = !is_open;
                if is_open {
                    blocks.push((language.to_string(), String::new()));
                }
            }
            None if is_open => blocks.iter_mut().last().into_iter().for_each(|(_, text)| *text += &format!("{line}\n")),
            None => {}
        }
    }
    blocks
}

#[test]
fn the_examples_of_the_page_run() {
    let blocks = blocks(include_str!("../../src/docs/prompts.md"));
    let (refit, mut count) = (Refit::new(), 0);
    for (i, (language, text)) in blocks.iter().enumerate() {
        let following = |expected: &str, ahead: usize| match blocks.get(i + ahead) {
            Some((language, text)) if language == expected => text,
            other => panic!("behind this stands no block of {expected} but {other:?}:\n{text}"),
        };
        match language.as_str() {
            "handlebars" => {
                refit.write("example.prompt", text.trim_end_matches('\n'));
                refit.write("example.json", following("json", 1));
                let done = refit.run(&["prompt", "render", "example.prompt", "--vars", "example.json"]).expect(0);
                assert_eq!(&done.stdout, following("text", 2), "{text}");
                count += 1;
            }
            "yaml" => {
                let schema = to_json_schema(&serde_norway::from_str(text).expect("YAML")).expect("expands");
                let expected: Value = serde_json::from_str(following("json", 1)).expect("JSON");
                same(text, &schema, &expected).expect("as the page says");
                count += 1;
            }
            _ => {}
        }
    }
    assert!(count >= 7, "only {count} examples were found");
}

#[test]
fn the_editor_schema_is_printed_served_and_takes_every_front_matter() {
    let refit = Refit::new();
    let printed = refit.run(&["prompt", "schema"]).expect(0).json();
    let server = refit.serve(&[]);
    let served = server.get("/schemas/prompt.json", None);
    assert_eq!((served.status, served.header("content-type")), (200, Some("application/schema+json")));
    assert_eq!((&served.json(), &printed), (&printed, &serde_json::from_str(SCHEMA).expect("JSON")));
    let validator = jsonschema::validator_for(&printed).expect("a schema");
    let front_matters = |source: &str| {
        let prompt = Prompt::parse("p", source).unwrap_or_else(|error| panic!("{error}"));
        let raw = Value::Object(prompt.front.raw);
        assert!(validator.is_valid(&raw), "{raw}");
    };
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/prompts")).expect("prompts") {
        front_matters(&std::fs::read_to_string(entry.expect("an entry").path()).expect("a text"));
    }
    for (language, text) in blocks(include_str!("../../src/docs/prompts.md")) {
        if language == "handlebars" {
            front_matters(&text);
        }
    }
    assert!(!validator.is_valid(&json!({"ouput": {"format": "json"}})) && !validator.is_valid(&json!({"input": {"shema": "string"}})));
}
