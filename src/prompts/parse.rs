//! A prompt file, read: YAML front matter, compiled body, and the variables it wants. What the user wrote stays in `raw`.

use super::references::{self, Variable};
use super::{Problem, PromptError, helpers, schema, validate};
use crate::types::Digest;
use handlebars::template::TemplateElement;
use handlebars::{Handlebars, Template, TemplateError};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const RESERVED: &[&str] =
    &["name", "variant", "version", "description", "model", "config", "input", "output", "tools", "toolDefs", "metadata", "ext"];

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
    /// Keys with a dot (`team.owner: x`), as nested objects.
    pub ext: Map<String, Value>,
    /// Everything, as written.
    pub raw: Map<String, Value>,
}

/// A prompt ready to render. Cheap to render many times; compiled once.
pub struct Prompt {
    /// Name in the library.
    pub name: String,
    /// Digest of the source.
    pub digest: Digest,
    /// Checked front matter.
    pub front: FrontMatter,
    /// Length of the source: about what it adds to a request, besides its variables.
    pub source_bytes: usize,
    /// Variables that the body reads, with file lines.
    pub variables: Vec<Variable>,
    pub(super) registry: Handlebars<'static>,
    pub(super) body: Template,
    pub(super) body_line: usize,
}

impl Prompt {
    /// Reads a prompt file. Inline partials only.
    ///
    /// # Errors
    /// [`PromptError`] with the line of the first problem.
    pub fn parse(name: &str, source: &str) -> Result<Self, PromptError> {
        Self::parse_with(name, source, &BTreeMap::new())
    }

    /// As [`Prompt::parse`], with named partials (their front matter is ignored).
    ///
    /// # Errors
    /// [`PromptError`] with the line of the first problem.
    pub fn parse_with(name: &str, source: &str, partials: &BTreeMap<String, String>) -> Result<Self, PromptError> {
        if source.len() > validate::MAX_SOURCE_BYTES {
            return Err(Problem::SourceTooLarge(source.len()).of(name));
        }
        let parts = split(source);
        let front = front_matter(parts.yaml).map_err(|(line, problem)| problem.at(name, parts.yaml_line + line.saturating_sub(1)))?;
        let located = |(line, problem): (usize, Problem)| problem.at(name, parts.body_line + line.max(1) - 1);
        let mut body = compile(parts.body).map_err(located)?;
        let mut registry = helpers::registry();
        for (partial, text) in partials {
            let text = split(text).body;
            let template = compile(text).map_err(|(line, problem)| problem.at(partial, line))?;
            registry.register_template(partial, template);
        }
        validate::partials(&body, registry.get_templates().iter().map(|(name, template)| (name.as_str(), template))).map_err(located)?;
        let mut variables = references::variables(&body, helpers::is_helper, helpers::NAMES).map_err(located)?;
        variables.iter_mut().for_each(|variable| variable.line += parts.body_line - 1);
        meter(&mut body);
        for partial in partials.keys() {
            let mut template = registry.get_template(partial).cloned().unwrap_or_default();
            meter(&mut template);
            registry.register_template(partial, template);
        }
        let (digest, source_bytes) = (Digest::of(source), source.len());
        Ok(Prompt { name: name.into(), digest, source_bytes, front, variables, registry, body, body_line: parts.body_line })
    }

    /// Names of the variables that a caller must give: required by the schema, or read by the body when there is no schema;
    /// those with a default are left out.
    pub fn required_variables(&self) -> Vec<String> {
        let mut names = match &self.front.input_schema {
            Some(schema) => schema::required(schema),
            None => self.variables.iter().filter(|variable| !variable.optional).map(|variable| variable.name.clone()).collect(),
        };
        names.retain(|name| !self.front.defaults.contains_key(name));
        names
    }
}

struct Parts<'a> {
    yaml: &'a str,
    yaml_line: usize,
    body: &'a str,
    body_line: usize,
}

/// Cuts a file at its `---` lines. Comment and empty lines may stand above the first one (a licence header).
fn split(source: &str) -> Parts<'_> {
    let whole = Parts { yaml: "", yaml_line: 1, body: source, body_line: 1 };
    let (mut yaml, mut at) = (None, 0);
    for (number, line) in source.split_inclusive('\n').enumerate() {
        let text = line.trim_end();
        let next = at + line.len();
        match yaml {
            None if text == "---" => yaml = Some((next, number + 2)),
            None if text.is_empty() || text.starts_with('#') => {}
            None => return whole,
            Some((start, yaml_line)) if text == "---" => {
                let body = &source[next..];
                let lead = body.len() - body.trim_start().len();
                let body_line = number + 2 + body[..lead].matches('\n').count();
                return Parts { yaml: &source[start..at], yaml_line, body: body.trim(), body_line };
            }
            Some(_) => {}
        }
        at = next;
    }
    whole
}

fn front_matter(yaml: &str) -> Result<FrontMatter, (usize, Problem)> {
    if yaml.trim().is_empty() {
        return Ok(FrontMatter::default());
    }
    let value: Value = serde_norway::from_str(yaml)
        .map_err(|error| (error.location().map_or(1, |at| at.line()), Problem::FrontMatter(first_line(&error.to_string()))))?;
    let raw = match value {
        Value::Null => Map::new(),
        Value::Object(map) => map,
        other => return Err((1, Problem::FrontMatter(format!("expected keys and values, not {other}")))),
    };
    let line = |key: &str| yaml.lines().position(|line| line.trim_start().starts_with(key)).map_or(1, |i| i + 1);
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
    let schema_of = |holder: &Map<String, Value>, key: &str| match holder.get("schema") {
        None | Some(Value::Null) => Ok(None),
        Some(schema) => schema::to_json_schema(schema).map(Some).map_err(|problem| (line(key), problem)),
    };
    Ok(FrontMatter {
        model: text("model")?,
        description: text("description")?,
        config: map("config", raw.get("config"))?,
        defaults: map("default", input.get("default"))?,
        input_schema: schema_of(&input, "input")?,
        output_schema: schema_of(&output, "output")?,
        output_format: output.get("format").and_then(Value::as_str).map(String::from),
        ext: extensions(&raw),
        raw,
    })
}

fn extensions(raw: &Map<String, Value>) -> Map<String, Value> {
    let mut ext = Map::new();
    for (key, value) in raw.iter().filter(|(key, _)| !RESERVED.contains(&key.as_str())) {
        if let Some((space, field)) = key.rsplit_once('.')
            && let Value::Object(fields) = ext.entry(space).or_insert_with(|| Value::Object(Map::new()))
        {
            fields.insert(field.to_string(), value.clone());
        }
    }
    ext
}

fn compile(body: &str) -> Result<Template, (usize, Problem)> {
    validate::scan(body)?;
    Template::compile(body).map_err(|error: TemplateError| {
        let line = error.pos().map_or(1, |(line, _)| line);
        (line, Problem::Syntax(first_line(&error.reason().to_string())))
    })
}

/// Puts a call of the step counter in front of every template, block body and partial, so that loops end.
fn meter(template: &mut Template) {
    for element in &mut template.elements {
        match element {
            TemplateElement::HelperBlock(helper) => [&mut helper.template, &mut helper.inverse].into_iter().flatten().for_each(meter),
            TemplateElement::DecoratorBlock(inline) => inline.template.iter_mut().for_each(meter),
            _ => {}
        }
    }
    let step = Template::compile(helpers::STEP_TAG).expect("a constant template of one tag");
    // The step has the place of what it stands before, so that lines in errors stay right.
    let place = template.mapping.first().or(step.mapping.first()).cloned();
    template.elements.splice(0..0, step.elements);
    template.mapping.splice(0..0, place);
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_and_body_keep_their_file_lines() {
        let prompt = Prompt::parse(
            "p",
            "# licence\n---\nmodel: mock/echo\ninput:\n  schema:\n    a: string\n    b?: string\n---\n\nHi {{a}}\n{{b}}",
        )
        .expect("parses");
        assert_eq!(prompt.front.model.as_deref(), Some("mock/echo"));
        assert_eq!(prompt.required_variables(), ["a"]);
        assert_eq!(prompt.variables.iter().map(|v| (v.name.as_str(), v.line)).collect::<Vec<_>>(), [("a", 10), ("b", 11)]);
    }

    #[test]
    fn problems_name_their_line() {
        let line = |source: &str| match Prompt::parse("p", source) {
            Err(PromptError::At { line, .. }) => line,
            Err(other) => panic!("no line in {other}"),
            Ok(_) => panic!("parsed: {source}"),
        };
        assert_eq!(line("---\na: 1\nb: [\n---\nx"), 4);
        assert_eq!(line("---\nmodel: x\ninput:\n  schema: {a: sting}\n---\nx"), 3);
        assert_eq!(line("---\nmodel: x\n---\none\n{{#if a}}never closed"), 5);
        assert_eq!(line("one\n{{jsn a}}"), 2);
        assert_eq!(line("one\n\n{{> nowhere}}"), 3);
    }

    #[test]
    fn partials_that_lead_back_are_refused() {
        for source in [
            "{{#*inline \"a\"}}{{> a}}{{/inline}}{{> a}}",
            "{{#*inline \"a\"}}{{> b}}{{/inline}}{{#*inline \"b\"}}{{#if x}}{{> a}}{{/if}}{{/inline}}{{> a}}",
        ] {
            assert!(matches!(Prompt::parse("p", source), Err(PromptError::At { problem: Problem::Recursive(_), .. })), "{source}");
        }
        assert!(Prompt::parse("p", "{{#*inline \"a\"}}x{{/inline}}{{> a}}{{> a}}").is_ok());
    }
}
