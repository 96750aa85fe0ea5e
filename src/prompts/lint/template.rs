//! The body of a prompt: which variables it reads, where and how, held against the input schema; partials that nothing includes.

use super::{Finding, Place, Severity, finding};
use crate::prompts::helpers::Helper;
use crate::prompts::parse::Prompt;
use crate::prompts::schema;
use crate::prompts::template::tree::{Block, Call, Expr, Head, Node, Path, Place as TreePlace, Program};
use crate::types::error::did_you_mean;
use serde_json::Value;
use std::collections::BTreeSet;

/// How a variable is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `{{x}}`.
    Printed,
    /// `{{#each x}}`.
    Looped,
    /// As an argument, or to be tested.
    Given,
}

/// A variable of the input that the template reads.
#[derive(Debug, Clone)]
pub(super) struct Use {
    /// Name and fields: `address.city` is two.
    pub(super) path: Vec<String>,
    pub(super) place: Place,
    how: How,
    /// Inside a partial, whose variables may be those of a loop.
    in_partial: bool,
}

/// Every variable that the body reads.
pub(super) fn uses(prompt: &Prompt) -> Vec<Use> {
    let mut walk = Walk { names: Vec::new(), found: Vec::new(), in_partial: false };
    walk.program(&prompt.body, 0);
    // Partials from outside have places of their own files.
    walk.in_partial = true;
    prompt.outside.values().for_each(|partial| walk.program(partial, 0));
    walk.found
}

struct Walk {
    /// Names that a block gives to what it goes through.
    names: Vec<String>,
    found: Vec<Use>,
    in_partial: bool,
}

impl Walk {
    fn program(&mut self, program: &Program, scope: usize) {
        for node in &program.body {
            match node {
                Node::Print(print) => self.value(&print.value, scope, How::Printed),
                Node::Block(block) => self.block(block, scope),
                Node::Partial(partial) => {
                    let given = partial.context.iter().chain(partial.hash.iter().map(|(_, value)| value));
                    given.for_each(|value| self.value(value, scope, How::Given));
                }
                _ => {}
            }
        }
        let before = std::mem::replace(&mut self.in_partial, true);
        program.inlines.values().for_each(|inline| self.program(&inline.program, scope));
        self.in_partial = before;
    }

    fn block(&mut self, block: &Block, scope: usize) {
        match &block.head {
            Head::Section(path) => self.note(path, scope, How::Given),
            Head::Call(call) => self.call(call, scope, if call.helper == Helper::Each { How::Looped } else { How::Given }),
        }
        let names = self.names.len();
        self.names.extend(block.names.iter().cloned());
        block.program.iter().for_each(|body| self.program(body, scope + usize::from(block.has_scope())));
        self.names.truncate(names);
        block.inverse.iter().for_each(|body| self.program(body, scope));
    }

    fn call(&mut self, call: &Call, scope: usize, how: How) {
        let given = call.params.iter().chain(call.hash.iter().map(|(_, value)| value));
        given.for_each(|value| self.value(value, scope, how));
    }

    fn value(&mut self, value: &Expr, scope: usize, how: How) {
        match value {
            Expr::Path(path) => self.note(path, scope, how),
            Expr::Call(call) => self.call(call, scope, How::Given),
            Expr::Undefined | Expr::Literal(_) => {}
        }
    }

    fn note(&mut self, path: &Path, scope: usize, how: How) {
        let Some(names) = root_path(path, scope) else { return };
        let is_local = !path.is_data && !path.is_scoped && path.depth == 0 && self.names.contains(&names[0]);
        if !is_local {
            self.found.push(Use { path: names, place: at(path.place), how, in_partial: self.in_partial });
        }
    }
}

fn at(place: TreePlace) -> Place {
    (place.line, place.column)
}

/// Name and fields of a path that reads the prompt's own input; none for inner scopes and `@` values.
fn root_path(path: &Path, scope: usize) -> Option<Vec<String>> {
    let names = match path.is_data {
        true if path.parts.first().is_some_and(|first| first == "root") => &path.parts[1..],
        true => return None,
        false if path.depth == scope => &path.parts[..],
        false => return None,
    };
    (!names.is_empty()).then(|| names.to_vec())
}

/// What the body says, held against the schema.
pub(super) fn check(prompt: &Prompt, uses: &[Use], findings: &mut Vec<Finding>) {
    unused_partials(prompt, findings);
    let Some(schema) = &prompt.front.input_schema else { return };
    let known = schema::properties(schema);
    let is_open = schema["additionalProperties"] == true || schema["additionalProperties"].is_object();
    let mut told = BTreeSet::new();
    for one in uses {
        let name = &one.path[0];
        if !known.contains(name) {
            if !is_open && !one.in_partial && !prompt.front.defaults.contains_key(name) && told.insert(name.clone()) {
                let nearest = did_you_mean(name, known.iter().map(String::as_str));
                let message = format!("\"{name}\" is used here, but it is not among the prompt's variables{nearest}");
                let way_out = "Correct the name, or add it to the list under input: schema: at the top of the file.";
                findings.push(finding(one.place, Severity::Error, "undefined-variable", (message, way_out)));
            }
            continue;
        }
        against_schema(one, schema, findings);
    }
}

fn against_schema(one: &Use, schema: &Value, findings: &mut Vec<Finding>) {
    let mut at = schema;
    for (depth, name) in one.path.iter().enumerate() {
        let (kinds, properties) = (kinds(at), at["properties"].as_object());
        let shown = one.path[..depth].join(".");
        match properties.and_then(|properties| properties.get(name)) {
            Some(inner) => at = inner,
            // What a schema does not say may be anything; lists have numbers and a length.
            None if kinds.is_empty() || kinds.contains(&"array") => return,
            None if kinds.contains(&"object") && at["additionalProperties"] != false => return,
            None if kinds.contains(&"object") => {
                let nearest = did_you_mean(name, properties.into_iter().flatten().map(|(name, _)| name.as_str()));
                let message = format!("\"{shown}\" has no field \"{name}\"{nearest}");
                let way_out = "Correct the name, or add the field to the schema of this variable.";
                return findings.push(finding(one.place, Severity::Error, "unknown-field", (message, way_out)));
            }
            None => {
                let message = format!("\"{shown}\" is a {}, which has no field \"{name}\"", kinds.join(" or "));
                let way_out = "Leave the part after the dot out, or declare the variable with fields of its own in the schema.";
                return findings.push(finding(one.place, Severity::Error, "unknown-field", (message, way_out)));
            }
        }
    }
    let (kinds, shown) = (kinds(at), one.path.join("."));
    let is = |kind: &str| kinds.contains(&kind);
    if one.how == How::Printed && (is("array") || is("object")) {
        let message =
            format!("\"{shown}\" is {}, and is printed in a form that no model expects", if is("array") { "a list" } else { "an object" });
        let way_out =
            format!("Write {{{{json {shown}}}}} to print it as JSON, or go through it with {{{{#each {shown}}}}} … {{{{/each}}}}.");
        findings.push(finding(one.place, Severity::Warning, "printed-value", (message, &way_out)));
    }
    if one.how == How::Looped && !kinds.is_empty() && !is("array") && !is("object") {
        let message = format!("\"{shown}\" is a {}, and {{{{#each}}}} needs a list", kinds.join(" or "));
        let way_out = format!("Write {{{{{shown}}}}} without {{{{#each}}}}, or declare it as a list in the schema: {shown}(array): string");
        findings.push(finding(one.place, Severity::Error, "not-a-list", (message, &way_out)));
    }
}

/// Types that a schema names, without `null`.
fn kinds(schema: &Value) -> Vec<&str> {
    let all: Vec<_> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    all.into_iter().filter(|kind| *kind != "null").collect()
}

/// Inline partials that the body never comes to.
fn unused_partials(prompt: &Prompt, findings: &mut Vec<Finding>) {
    let (mut defined, mut reached) = (Vec::new(), Vec::new());
    inclusions(&prompt.body, &mut defined, &mut reached);
    let mut next = 0;
    while next < reached.len() {
        let name = reached[next].clone();
        let inlines = defined.iter().filter(|(own, ..)| *own == name).map(|(.., body)| *body);
        let bodies: Vec<&Program> = inlines.chain(prompt.outside.get(&name)).collect();
        for body in bodies {
            let mut more = Vec::new();
            inclusions(body, &mut defined, &mut more);
            reached.extend(more.into_iter().filter(|name| !reached.contains(name)).collect::<Vec<_>>());
        }
        next += 1;
    }
    for (name, place, _) in defined.into_iter().filter(|(name, ..)| !reached.contains(name)) {
        let message = format!("the partial \"{name}\" is written here, but nothing includes it");
        let way_out = format!("Include it with {{{{> {name}}}}} where it belongs, or take it out.");
        findings.push(finding(place, Severity::Warning, "unused-partial", (message, &way_out)));
    }
}

/// Partials that a program defines, and those that it includes, not from inside of the ones it defines.
fn inclusions<'t>(program: &'t Program, defined: &mut Vec<(String, Place, &'t Program)>, reached: &mut Vec<String>) {
    defined.extend(program.inlines.values().map(|inline| (inline.name.clone(), at(inline.place), &inline.program)));
    for node in &program.body {
        match node {
            Node::Partial(partial) => reached.push(partial.name.clone()),
            Node::Block(block) => block.bodies().for_each(|body| inclusions(body, defined, reached)),
            _ => {}
        }
    }
}
