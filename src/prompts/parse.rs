//! A prompt file, read: YAML front matter, the body as a tree, and the variables it wants.

use super::front::{self, FrontMatter};
use super::references::{self, Variable};
use super::template::compile::Compiled;
use super::template::read::{Fault, read};
use super::template::tree::Partials;
use super::template::tree::{Place, Program};
use super::{Problem, PromptError, schema, validate};
use crate::types::Digest;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a prompt may refer to by name and does not contain. All of it is optional.
pub trait Surroundings {
    /// The text of a partial; its front matter, where it has one, is left out.
    fn partial(&self, _name: &str) -> Option<String> {
        None
    }

    /// JSON Schema of a name that a Picoschema uses as a type.
    fn schema(&self, _name: &str) -> Option<Value> {
        None
    }

    /// Definition of a tool.
    fn tool(&self, _name: &str) -> Option<Value> {
        None
    }
}

/// Nothing around.
pub struct NoSurroundings;

impl Surroundings for NoSurroundings {}

/// Partials by name.
impl Surroundings for BTreeMap<String, String> {
    fn partial(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// A prompt ready to render. Cheap to render many times; read once.
pub struct Prompt {
    /// Name in the library.
    pub name: String,
    /// Digest of the source.
    pub digest: Digest,
    /// Checked front matter.
    pub front: FrontMatter,
    /// Length of the source: about what it adds to a request, besides its variables.
    pub source_bytes: usize,
    /// Variables that the body reads, also through partials, with file lines.
    pub variables: Vec<Variable>,
    /// Names of the partials from outside that it draws in, directly or through others.
    pub partials: Vec<String>,
    pub(super) body: Program,
    pub(super) outside: Partials,
    /// Both of them, as they are rendered.
    pub(super) compiled: Compiled,
    /// Value of `@metadata`.
    pub(super) metadata: Value,
    /// What [`Prompt::required_variables`] says.
    pub(super) required: Vec<String>,
}

impl Prompt {
    /// Reads a prompt file. Inline partials only.
    ///
    /// # Errors
    /// [`PromptError`] with the line of the first problem.
    pub fn parse(name: &str, source: &str) -> Result<Self, PromptError> {
        Self::parse_with(name, source, &NoSurroundings)
    }

    /// As [`Prompt::parse`], with what the prompt may refer to by name. Partials are asked for as they are met.
    ///
    /// # Errors
    /// [`PromptError`] with the line of the first problem; a partial's problem names the partial.
    pub fn parse_with(name: &str, source: &str, surroundings: &dyn Surroundings) -> Result<Self, PromptError> {
        if source.len() > validate::MAX_SOURCE_BYTES {
            return Err(Problem::SourceTooLarge(source.len()).of(name));
        }
        let parts = split(source);
        let in_yaml = |(line, problem): (usize, Problem)| problem.at(name, parts.yaml_line + line.saturating_sub(1));
        let front = front::read(parts.yaml, surroundings).map_err(in_yaml)?;
        let body = read(parts.body, parts.body_place).map_err(|fault| located(fault, name))?;
        let outside = outside(&body, surroundings)?;
        let levels = validate::partials(&body, &outside).map_err(|(owner, fault)| located(fault, owner.as_deref().unwrap_or(name)))?;
        let flags = front.input_schema.as_ref().map(schema::flags).unwrap_or_default();
        let variables = references::variables(&body, &outside, &flags).map_err(|fault| located(fault, name))?;
        let metadata = json!({"prompt": front::metadata(&front, surroundings)});
        let mut prompt = Prompt {
            name: name.into(),
            digest: Digest::of(source),
            source_bytes: source.len(),
            variables,
            partials: outside.keys().cloned().collect(),
            required: Vec::new(),
            front,
            compiled: Compiled::new(&body, &outside, levels),
            body,
            outside,
            metadata,
        };
        prompt.required = prompt.required_names();
        Ok(prompt)
    }

    /// Names of the variables that a caller must give: required by the schema, or read by the body when there is no schema;
    /// those with a default are left out.
    pub fn required_variables(&self) -> Vec<String> {
        self.required.clone()
    }

    fn required_names(&self) -> Vec<String> {
        let mut names = match &self.front.input_schema {
            Some(schema) => schema::required(schema),
            None => self.variables.iter().filter(|variable| !variable.optional).map(|variable| variable.name.clone()).collect(),
        };
        names.retain(|name| !self.front.defaults.contains_key(name));
        names
    }

    /// The front matter as dotprompt's metadata (known keys, `config`, `ext`, `raw`, schemas expanded), with `runtime` laid over it:
    /// `config` key by key, everything else whole.
    ///
    /// # Errors
    /// [`Problem::Schema`] for a schema in `runtime`.
    pub fn metadata(&self, runtime: &Map<String, Value>) -> Result<Map<String, Value>, PromptError> {
        let mut metadata = self.metadata["prompt"].as_object().cloned().unwrap_or_default();
        for (key, value) in runtime {
            let mut value = value.clone();
            if let (true, Some(given)) = (key == "input" || key == "output", value.get("schema").filter(|schema| !schema.is_null())) {
                value["schema"] = schema::to_json_schema(given).map_err(|problem| problem.of(&self.name))?;
            }
            match (key.as_str(), metadata.get_mut(key), value) {
                ("config", Some(Value::Object(config)), Value::Object(over)) => config.extend(over),
                (_, _, value) => drop(metadata.insert(key.clone(), value)),
            }
        }
        Ok(metadata)
    }
}

fn located((place, problem): Fault, owner: &str) -> PromptError {
    problem.at_place(owner, place)
}

/// Reads the partials that a body includes, and those that they include.
fn outside(body: &Program, surroundings: &dyn Surroundings) -> Result<Partials, PromptError> {
    let mut outside = Partials::new();
    let mut wanted: Vec<String> = validate::inclusions(body).iter().map(|(name, _)| name.to_string()).collect();
    while let Some(name) = wanted.pop() {
        if outside.contains_key(&name) {
            continue;
        }
        // A name that nobody knows may be an inline partial's; whether it is, is checked with the whole.
        let Some(source) = surroundings.partial(&name) else { continue };
        if source.len() > validate::MAX_SOURCE_BYTES {
            return Err(Problem::SourceTooLarge(source.len()).of(&name));
        }
        if outside.len() == validate::MAX_PARTIALS {
            let text = format!("more than {} partials are included", validate::MAX_PARTIALS);
            return Err(Problem::TooNested(text).of(&name));
        }
        let parts = split(&source);
        let program = read(parts.body, parts.body_place).map_err(|fault| located(fault, &name))?;
        wanted.extend(validate::inclusions(&program).iter().map(|(name, _)| name.to_string()));
        outside.insert(name, program);
    }
    Ok(outside)
}

/// A file in its two parts.
struct Parts<'a> {
    yaml: &'a str,
    yaml_line: usize,
    body: &'a str,
    body_place: Place,
}

/// Cuts a file at its `---` lines. Comment and empty lines may stand above the first one (a licence header). Without them all of it is
/// the body, to the byte; with them the body has no white space around it.
fn split(source: &str) -> Parts<'_> {
    let start = Place { line: 1, column: 1 };
    let whole = Parts { yaml: "", yaml_line: 1, body: source, body_place: start };
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
                let lead = &body[..body.len() - body.trim_start().len()];
                let column = lead.rsplit('\n').next().map_or(0, |indent| indent.chars().count()) + 1;
                let body_place = Place { line: number + 2 + lead.matches('\n').count(), column };
                return Parts { yaml: &source[start..at], yaml_line, body: super::template::value::trimmed(body), body_place };
            }
            Some(_) => {}
        }
        at = next;
    }
    whole
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
        let places = prompt.variables.iter().map(|v| (v.name.as_str(), v.line, v.column)).collect::<Vec<_>>();
        assert_eq!(places, [("a", 10, 6), ("b", 11, 3)]);
    }

    #[test]
    fn problems_name_their_line() {
        let line = |source: &str| match Prompt::parse("p", source) {
            Err(PromptError::At { line, .. }) => line,
            Err(other) => panic!("no line in {other}"),
            Ok(_) => panic!("parsed: {source}"),
        };
        assert_eq!(line("---\na: 1\nb: [\n---\nx"), 4);
        assert_eq!(line("---\nmodel: x\ninput:\n  schema: {a: sting}\n---\nx"), 4);
        assert_eq!(line("---\nmodel: x\n---\none\n{{#if a}}never closed"), 5);
        assert_eq!(line("one\n{{jsn a}}"), 2);
        assert_eq!(line("one\n\n{{> nowhere}}"), 3);
    }

    #[test]
    fn partials_are_drawn_in_as_they_are_met() {
        let around =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect::<BTreeMap<_, _>>();
        let partials = around(&[("greet", "---\ndescription: x\n---\nHi {{> who}}"), ("who", "{{name}}"), ("unused", "{{#if")]);
        let prompt = Prompt::parse_with("p", "{{> greet}}!", &partials).expect("parses");
        assert_eq!(
            (prompt.partials.as_slice(), prompt.required_variables()),
            (&["greet".to_string(), "who".into()][..], vec!["name".into()])
        );
        let error = Prompt::parse_with("p", "{{> bad}}", &around(&[("bad", "x\n{{#if a}}")])).err().expect("refused").to_string();
        assert!(error.starts_with("prompt \"bad\", line 2"), "{error}");
        let error = Prompt::parse_with("p", "{{> a}}", &around(&[("a", "{{> b}}"), ("b", "{{> a}}")])).err().expect("refused").to_string();
        assert!(error.contains("includes itself"), "{error}");
    }

    #[test]
    fn runtime_metadata_lies_over_the_front_matter() {
        let prompt = Prompt::parse("p", "---\nmodel: a\nconfig: {temperature: 0, seed: 1}\nx.y: 1\n---\nz").expect("parses");
        let over = json!({"model": "b", "config": {"seed": 2}, "output": {"schema": {"n": "integer"}}});
        let metadata = prompt.metadata(over.as_object().expect("an object")).expect("merges");
        assert_eq!((&metadata["model"], &metadata["config"]), (&json!("b"), &json!({"temperature": 0, "seed": 2})));
        assert_eq!((&metadata["ext"], &metadata["output"]["schema"]["type"]), (&json!({"x": {"y": 1}}), &json!("object")));
    }
}
