//! The body of a prompt: which variables it reads, where and how, held against the input schema; partials that nothing includes.

use super::{Finding, Place, Severity, finding};
use crate::prompts::helpers::Helper;
use crate::prompts::parse::Prompt;
use crate::prompts::schema;
use crate::prompts::template::tree::{Block, Call, Expr, Head, Inline, Node, Partial, Path, Place as TreePlace, Program};
use crate::types::error::did_you_mean;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

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
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Use {
    /// Name and fields: `address.city` is two.
    pub(super) path: Vec<String>,
    pub(super) place: Place,
    how: How,
    /// `@root.x`: the input wherever it stands.
    is_absolute: bool,
    /// In another file, whose places say nothing here.
    is_outside: bool,
}

/// Every variable of the input that the body reads, also through partials: those that are included where `this` is the input.
pub(super) fn uses(prompt: &Prompt) -> Vec<Use> {
    let flags = prompt.front.input_schema.as_ref().map(schema::flags).unwrap_or_default();
    let mut known = Known { flags, bodies: BTreeMap::new(), reads: BTreeMap::new() };
    for (name, program) in &prompt.outside {
        known.define(program, true);
        known.bodies.insert(name, (program, true));
    }
    known.define(&prompt.body, false);
    let mut walk = Walk::new(&mut known, false);
    walk.program(&prompt.body, 0);
    walk.found
}

/// The partials, and what each reads where `this` is the input.
struct Known<'p> {
    flags: Vec<String>,
    /// Body, and whether it stands in another file.
    bodies: BTreeMap<&'p str, (&'p Program, bool)>,
    reads: BTreeMap<&'p str, Rc<Vec<Use>>>,
}

impl<'p> Known<'p> {
    fn define(&mut self, program: &'p Program, is_outside: bool) {
        inlines(program, &mut |inline| {
            self.bodies.insert(&inline.name, (&inline.program, is_outside));
        });
    }

    fn reads_of(&mut self, name: &'p str) -> Rc<Vec<Use>> {
        if let Some(reads) = self.reads.get(name) {
            return reads.clone();
        }
        let Some(&(program, is_outside)) = self.bodies.get(name) else { return Rc::default() };
        let mut walk = Walk::new(self, is_outside);
        walk.program(program, 0);
        let found = Rc::new(walk.found);
        self.reads.insert(name, found.clone());
        found
    }
}

struct Walk<'w, 'p> {
    known: &'w mut Known<'p>,
    is_outside: bool,
    /// Names that a block gives to what it goes through.
    names: Vec<&'p str>,
    found: Vec<Use>,
    /// Places of what was found: one that several partials lead to is told once.
    places: HashSet<(Place, bool)>,
    /// Inclusions that were looked at: the partial, what hides its variables, and whether it sees the input as `this`.
    included: BTreeSet<(&'p str, Vec<&'p str>, bool)>,
}

impl<'w, 'p> Walk<'w, 'p> {
    fn new(known: &'w mut Known<'p>, is_outside: bool) -> Self {
        Walk { known, is_outside, names: Vec::new(), found: Vec::new(), places: HashSet::new(), included: BTreeSet::new() }
    }

    fn program(&mut self, program: &'p Program, scope: usize) {
        for node in &program.body {
            match node {
                Node::Print(print) => self.value(&print.value, scope, How::Printed),
                Node::Block(block) => self.block(block, scope),
                Node::Partial(partial) => self.partial(partial, scope),
                _ => {}
            }
        }
    }

    fn partial(&mut self, partial: &'p Partial, scope: usize) {
        let given = partial.context.iter().chain(partial.hash.iter().map(|(_, value)| value));
        given.for_each(|value| self.value(value, scope, How::Given));
        let hidden: Vec<&str> = partial.hash.iter().map(|(name, _)| name.as_str()).collect();
        let sees_input = scope == 0 && partial.context.is_none();
        if !self.included.insert((&partial.name, hidden.clone(), sees_input)) {
            return;
        }
        for one in self.known.reads_of(&partial.name).iter() {
            let is_read = one.is_absolute || (sees_input && !hidden.contains(&one.path[0].as_str()));
            if is_read && self.places.insert((one.place, one.is_outside)) {
                self.found.push(one.clone());
            }
        }
    }

    fn block(&mut self, block: &'p Block, scope: usize) {
        let mut is_flag = false;
        match &block.head {
            Head::Section(path) => {
                let named = root_path(path, scope).filter(|named| named.len() == 1);
                is_flag = named.is_some_and(|named| self.known.flags.contains(&named[0]));
                self.note(path, scope, How::Given);
            }
            Head::Call(call) => self.call(call, scope, if call.helper == Helper::Each { How::Looped } else { How::Given }),
        }
        let names = self.names.len();
        self.names.extend(block.names.iter().map(String::as_str));
        // Inside of `{{#flag}}`, `this` stays what it is.
        let inner = scope + usize::from(block.has_scope() && !is_flag);
        block.program.iter().for_each(|body| self.program(body, inner));
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
        let is_local = !path.is_data && !path.is_scoped && path.depth == 0 && self.names.contains(&names[0].as_str());
        if !is_local {
            let (place, is_outside) = (at(path.place), self.is_outside);
            self.places.insert((place, is_outside));
            self.found.push(Use { path: names, place, how, is_absolute: path.is_data, is_outside });
        }
    }
}

/// Every partial that is defined in a program, wherever in it.
fn inlines<'p>(program: &'p Program, visit: &mut dyn FnMut(&'p Inline)) {
    for inline in program.inlines.values() {
        visit(inline);
        inlines(&inline.program, visit);
    }
    for node in &program.body {
        if let Node::Block(block) = node {
            block.bodies().for_each(|body| inlines(body, visit));
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
            if !is_open && !one.is_outside && !prompt.front.defaults.contains_key(name) && told.insert(name.clone()) {
                let nearest = did_you_mean(name, known.iter().map(String::as_str));
                let message = format!("\"{name}\" is used here, but it is not among the prompt's variables{nearest}");
                let way_out = "Correct the name, or add it to the list under input: schema: at the top of the file.";
                findings.push(finding(one.place, Severity::Error, "undefined-variable", (message, way_out)));
            }
            continue;
        }
        if !one.is_outside {
            against_schema(one, schema, findings);
        }
    }
}

fn against_schema(one: &Use, schema: &Value, findings: &mut Vec<Finding>) {
    let mut at = schema;
    for (depth, name) in one.path.iter().enumerate() {
        let (kinds, properties) = (schema::kinds(at), at["properties"].as_object());
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
    let (kinds, shown) = (schema::kinds(at), one.path.join("."));
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

/// Inline partials that the body never comes to.
fn unused_partials(prompt: &Prompt, findings: &mut Vec<Finding>) {
    let mut defined: Vec<&Inline> = Vec::new();
    inlines(&prompt.body, &mut |inline| defined.push(inline));
    prompt.outside.values().for_each(|program| inlines(program, &mut |inline| defined.push(inline)));
    let mut bodies: HashMap<&str, Vec<&Program>> = HashMap::new();
    for inline in &defined {
        bodies.entry(&inline.name).or_default().push(&inline.program);
    }
    for (name, program) in &prompt.outside {
        bodies.entry(name).or_default().push(program);
    }
    let (mut reached, mut open) = (HashSet::new(), vec![&prompt.body]);
    while let Some(program) = open.pop() {
        inclusions(program, &mut |name| {
            if reached.insert(name) {
                open.extend(bodies.get(name).into_iter().flatten());
            }
        });
    }
    let mut own = Vec::new();
    inlines(&prompt.body, &mut |inline| own.push(inline));
    for inline in own.into_iter().filter(|inline| !reached.contains(inline.name.as_str())) {
        let name = &inline.name;
        let message = format!("the partial \"{name}\" is written here, but nothing includes it");
        let way_out = format!("Include it with {{{{> {name}}}}} where it belongs, or take it out.");
        findings.push(finding(at(inline.place), Severity::Warning, "unused-partial", (message, &way_out)));
    }
}

/// Partials that a program includes, not from inside of the ones it defines.
fn inclusions<'t>(program: &'t Program, visit: &mut dyn FnMut(&'t str)) {
    for node in &program.body {
        match node {
            Node::Partial(partial) => visit(&partial.name),
            Node::Block(block) => block.bodies().for_each(|body| inclusions(body, visit)),
            _ => {}
        }
    }
}
