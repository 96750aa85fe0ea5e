//! `response_format`, `tools` and `tool_choice` as a grammar of the reply.

use super::ask::wrong;
use crate::engine::grammar::{Compiled, Constraint, Language};
use crate::engine::schema;
use crate::engine::tokenizer::Tokenizer;
use crate::engine::tools::{self, BEGIN, MAX_CALLS, Span, Tool};
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};

/// As the OpenAI API has it.
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// What a reply must be.
#[derive(Debug, PartialEq)]
pub(super) enum Format {
    /// Any text.
    Free,
    /// The language from the first token on.
    Json(Language),
    /// Calls, or JSON where a format is asked for, too.
    Calls(Language),
    /// Text, and calls once it begins one.
    MayCall(Language),
}

impl Format {
    /// The grammar, compiled. Blocking, for a bounded time.
    ///
    /// # Errors
    /// The field whose schema cannot be enforced.
    pub(super) fn compile(&self, tokenizer: &Tokenizer) -> Result<Option<Compiled>, Failure> {
        let (language, field) = match self {
            Format::Free => return Ok(None),
            Format::Json(language) => (language, "response_format"),
            Format::Calls(language) | Format::MayCall(language) => (language, "tools"),
        };
        let compiled = tokenizer.grammars()?.compile(language);
        compiled.map(Some).map_err(|problem| {
            let failure =
                Failure::on(Code::INVALID_VALUE, field, format!("{field}: the schema cannot be enforced while decoding: {problem}"));
            failure.with_hint("simplify the schema, or leave it out and check the reply")
        })
    }

    /// The constraint of one reply.
    pub(super) fn constraint(&self, compiled: Compiled) -> Option<Constraint> {
        match self {
            Format::Free => None,
            Format::Json(_) => Some(Constraint::format(compiled)),
            Format::Calls(_) => Some(Constraint::calls(compiled)),
            Format::MayCall(_) => Some(Constraint::calls_after(BEGIN, compiled)),
        }
    }
}

/// Which tool a reply calls.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// The tools that may be called, and what the reply must be.
///
/// # Errors
/// The field at fault, with its path.
pub(super) fn read(fields: &Map<String, Value>) -> Result<(Vec<Tool>, Format), Failure> {
    let get = |field: &str| fields.get(field).filter(|value| !value.is_null());
    let schema = get("response_format").map_or(Ok(None), response_format)?;
    let tools = get("tools").map_or(Ok(Vec::new()), read_tools)?;
    let choice = get("tool_choice").map_or(Ok(Choice::Auto), |choice| read_choice(choice, &tools))?;
    let parallel = match get("parallel_tool_calls") {
        None => true,
        Some(Value::Bool(parallel)) => *parallel,
        Some(_) => return Err(wrong("parallel_tool_calls", "expected true or false".into())),
    };
    let calls = if parallel { MAX_CALLS } else { 1 };
    let grammar = |tools: &[Tool], span, or: Option<&Value>| Language::Lark(tools::grammar(tools, calls, span, or));
    let format = match (choice, schema) {
        // Nobody is told of tools that must not be called.
        (Choice::None, Some(schema)) => return Ok((Vec::new(), Format::Json(Language::Json(schema)))),
        (Choice::None, None) => return Ok((Vec::new(), Format::Free)),
        (Choice::Named(name), _) => {
            let named: Vec<Tool> = tools.iter().filter(|tool| tool.name == name).cloned().collect();
            Format::Calls(Language::Lark(tools::grammar(&named, 1, Span::Whole, None)))
        }
        (Choice::Required, _) => Format::Calls(grammar(&tools, Span::Whole, None)),
        (Choice::Auto, Some(schema)) if !tools.is_empty() => Format::Calls(grammar(&tools, Span::Whole, Some(&schema))),
        (Choice::Auto, None) if !tools.is_empty() => Format::MayCall(grammar(&tools, Span::AfterBegin, None)),
        (_, Some(schema)) => Format::Json(Language::Json(schema)),
        (_, None) => Format::Free,
    };
    Ok((tools, format))
}

/// The schema that a reply must fit; none where any text will do.
fn response_format(format: &Value) -> Result<Option<Value>, Failure> {
    const FIELD: &str = "response_format";
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => {
            let Some(Value::Object(named)) = format.get("json_schema") else {
                return Err(Failure::on(Code::MISSING_FIELD, "response_format.json_schema", "response_format.json_schema is missing"));
            };
            let Some(schema) = named.get("schema").filter(|schema| !schema.is_null()) else { return Ok(Some(json!({"type": "object"}))) };
            enforceable(FIELD, schema)?;
            Ok(Some(schema.clone()))
        }
        Some(other) => Err(Failure::on(Code::UNSUPPORTED, FIELD, format!("local models do not support the response_format \"{other}\""))),
        None => Err(wrong("response_format.type", "expected text, json_object or json_schema".into())),
    }
}

fn enforceable(field: &str, schema: &Value) -> Result<(), Failure> {
    schema::check(schema).map_err(|(path, problem)| {
        let place = if path.is_empty() { "the schema".to_string() } else { format!("the schema at {path}") };
        wrong(field, format!("{place}: {problem}"))
    })
}

fn read_tools(value: &Value) -> Result<Vec<Tool>, Failure> {
    let Value::Array(items) = value else { return Err(wrong("tools", "expected a list".into())) };
    if items.len() > MAX_TOOLS {
        return Err(wrong("tools", format!("expected at most {MAX_TOOLS}, found {}", items.len())));
    }
    let tools: Vec<Tool> = items.iter().enumerate().map(|(at, item)| tool(at, item)).collect::<Result<_, _>>()?;
    let twice = (1..tools.len()).find(|at| tools[..*at].iter().any(|tool| tool.name == tools[*at].name));
    match twice {
        Some(at) => Err(wrong(&format!("tools[{at}].function.name"), format!("\"{}\" stands there twice", tools[at].name))),
        None => Ok(tools),
    }
}

fn tool(at: usize, item: &Value) -> Result<Tool, Failure> {
    let field = |name: &str| format!("tools[{at}].{name}");
    match item.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(other) => {
            return Err(Failure::on(Code::UNSUPPORTED, field("type"), format!("local models do not support tools of type \"{other}\"")));
        }
        None => return Err(wrong(&field("type"), "expected \"function\"".into())),
    }
    let function = item.get("function").unwrap_or(&Value::Null);
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        return Err(wrong(&field("function.name"), format!("expected 1 to {MAX_NAME} letters, digits, _ and -")));
    }
    let path = field("function.parameters");
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) => {
            let mut schema = schema.clone();
            let kind = schema.entry("type").or_insert_with(|| "object".into());
            if kind != "object" {
                return Err(wrong(&path, "expected the schema of an object".into()));
            }
            Value::Object(schema)
        }
        Some(_) => return Err(wrong(&path, "expected a schema".into())),
    };
    enforceable(&path, &parameters)?;
    Ok(Tool { name: name.to_string(), parameters, written: item.clone() })
}

fn read_choice(value: &Value, tools: &[Tool]) -> Result<Choice, Failure> {
    const FIELD: &str = "tool_choice";
    let choice = match value {
        Value::String(word) => match word.as_str() {
            "none" => return Ok(Choice::None),
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            _ => return Err(wrong(FIELD, "expected none, auto, required or a function".into())),
        },
        other => match (other.get("type").and_then(Value::as_str), other.pointer("/function/name").and_then(Value::as_str)) {
            (Some("function"), Some(name)) => Choice::Named(name.to_string()),
            (Some("function") | None, _) => {
                return Err(wrong(FIELD, "expected {\"type\": \"function\", \"function\": {\"name\": …}}".into()));
            }
            (Some(kind), _) => {
                return Err(Failure::on(Code::UNSUPPORTED, FIELD, format!("local models do not support a tool_choice of type \"{kind}\"")));
            }
        },
    };
    match &choice {
        Choice::Auto => Ok(choice),
        _ if tools.is_empty() => Err(wrong(FIELD, "it needs \"tools\"".into())),
        Choice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(wrong("tool_choice.function.name", "no tool has this name".into()))
        }
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Value) -> Result<(Vec<Tool>, Format), Failure> {
        read(body.as_object().expect("an object"))
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {"type": "string"}}}}})
    }

    #[test]
    fn what_is_wrong_with_tools_is_named_with_its_path() {
        let refused = |body: Value| asked(body).expect_err("must be refused").param().unwrap_or_default();
        let schema = |schema: Value| json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]});
        for (body, field) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [function("f"), {"type": "function", "function": {"name": "a b"}}]}), "tools[1].function.name"),
            (json!({"tools": [function("f"), function("f")]}), "tools[1].function.name"),
            (schema(json!({"type": "string"})), "tools[0].function.parameters"),
            (schema(json!({"properties": {"x": {"not": {}}}})), "tools[0].function.parameters"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [function("f")], "tool_choice": "any"}), "tool_choice"),
            (
                json!({"tools": [function("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
                "tool_choice.function.name",
            ),
            (json!({"tools": [function("f")], "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
            (json!({"tools": [function("f")], "parallel_tool_calls": 1}), "parallel_tool_calls"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"response_format": {"type": "grammar"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"if": {}}}}}), "response_format"),
        ] {
            assert_eq!(refused(body.clone()), field, "{body}");
        }
    }

    #[test]
    fn the_choice_decides_what_a_reply_must_be() {
        let tools = json!([function("f"), function("g")]);
        let format = json!({"type": "json_object"});
        let of = |more: Value| {
            let mut body = json!({"tools": tools});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            asked(body).expect("taken").1
        };
        assert!(matches!(of(json!({})), Format::MayCall(Language::Lark(lark)) if lark.starts_with("start: rest more{0,15}\n")));
        assert!(
            matches!(of(json!({"parallel_tool_calls": false})), Format::MayCall(Language::Lark(lark)) if lark.starts_with("start: rest\n"))
        );
        assert!(
            matches!(of(json!({"tool_choice": "required"})), Format::Calls(Language::Lark(lark)) if lark.starts_with("start: call more{0,15}\n"))
        );
        let named = of(json!({"tool_choice": {"type": "function", "function": {"name": "g"}}}));
        assert!(matches!(named, Format::Calls(Language::Lark(lark)) if !lark.contains("tool_1") && lark.contains("\\\"g\\\"")));
        assert!(matches!(of(json!({"response_format": format})), Format::Calls(Language::Lark(lark)) if lark.contains("| format\n")));
        assert!(matches!(of(json!({"response_format": format, "tool_choice": "none"})), Format::Json(_)));
        assert_eq!(of(json!({"tool_choice": "none"})), Format::Free);
    }
}
