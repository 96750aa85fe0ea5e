//! The body of a prompt: which variables it reads, where and how, held against the input schema; partials that nothing includes.

use super::{Finding, Place, Severity, finding};
use crate::prompts::parse::Prompt;
use crate::prompts::{helpers, schema};
use crate::types::error::did_you_mean;
use handlebars::Template;
use handlebars::template::{HelperTemplate, Parameter, Subexpression, TemplateElement};
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
pub(super) fn uses(prompt: &Prompt, source: &str) -> Vec<Use> {
    let first = source.lines().nth(prompt.body_line.saturating_sub(1)).unwrap_or_default();
    let lead = first.chars().count() - first.trim_start().chars().count();
    let mut walk = Walk { locals: Vec::new(), found: Vec::new(), in_partial: false, first_line: prompt.body_line, lead };
    walk.template(&prompt.body, 0);
    walk.found
}

struct Walk {
    /// Names that a block gives to what it goes through.
    locals: Vec<String>,
    found: Vec<Use>,
    in_partial: bool,
    first_line: usize,
    /// White space before the body's first character, which the template does not have.
    lead: usize,
}

impl Walk {
    fn place(&self, (line, column): Place) -> Place {
        (line + self.first_line - 1, if line == 1 { column + self.lead } else { column })
    }

    fn template(&mut self, template: &Template, scope: usize) {
        for (i, element) in template.elements.iter().enumerate() {
            let place = self.place(template.mapping.get(i).map_or((1, 1), |mapping| (mapping.0, mapping.1)));
            match element {
                TemplateElement::Expression(helper) | TemplateElement::HtmlExpression(helper) => {
                    let name = helper.name.as_name().unwrap_or_default();
                    if helper.params.is_empty() && helper.hash.is_empty() && !helpers::is_helper(name) {
                        self.note(&helper.name, place, scope, How::Printed);
                    }
                    self.arguments(helper, place, scope, How::Given);
                }
                TemplateElement::HelperBlock(helper) => self.block(helper, place, scope),
                TemplateElement::PartialExpression(partial) => {
                    partial.params.iter().chain(partial.hash.values()).for_each(|given| self.note(given, place, scope, How::Given));
                }
                TemplateElement::DecoratorBlock(inline) => {
                    let before = std::mem::replace(&mut self.in_partial, true);
                    inline.template.iter().for_each(|body| self.template(body, scope));
                    self.in_partial = before;
                }
                _ => {}
            }
        }
    }

    fn block(&mut self, helper: &HelperTemplate, place: Place, scope: usize) {
        let name = helper.name.as_name().unwrap_or_default();
        let is_section = helper.params.is_empty() && helper.hash.is_empty() && !helpers::is_helper(name);
        if is_section {
            self.note(&helper.name, place, scope, How::Given);
        } else {
            self.arguments(helper, place, scope, if name == "each" { How::Looped } else { How::Given });
        }
        let locals = self.locals.len();
        self.locals.extend(block_names(helper));
        let inside = if is_section || matches!(name, "each" | "with") { scope + 1 } else { scope };
        helper.template.iter().for_each(|body| self.template(body, inside));
        self.locals.truncate(locals);
        helper.inverse.iter().for_each(|body| self.template(body, scope));
    }

    fn arguments(&mut self, helper: &HelperTemplate, place: Place, scope: usize, how: How) {
        for given in helper.params.iter().chain(helper.hash.values()) {
            self.note(given, place, scope, how);
        }
    }

    fn note(&mut self, given: &Parameter, place: Place, scope: usize, how: How) {
        match given {
            Parameter::Subexpression(inner) => {
                if let TemplateElement::Expression(helper) = Subexpression::as_element(inner) {
                    self.arguments(helper, place, scope, How::Given);
                }
            }
            Parameter::Literal(_) => {}
            _ => {
                let Some(path) = root_path(given.as_name().unwrap_or_default(), scope) else { return };
                // In a partial, a plain name may be that of whatever includes it.
                if !self.locals.contains(&path[0]) {
                    self.found.push(Use { path, place, how, in_partial: self.in_partial });
                }
            }
        }
    }
}

/// Names after `as |…|`.
fn block_names(helper: &HelperTemplate) -> Vec<String> {
    use handlebars::template::BlockParam;
    let names: Vec<&Parameter> = match &helper.block_param {
        Some(BlockParam::Single(one)) => vec![one],
        Some(BlockParam::Pair((one, two))) => vec![one, two],
        _ => Vec::new(),
    };
    names.into_iter().filter_map(|name| name.as_name().map(str::to_string)).collect()
}

/// Name and fields of a path that reads the template's own input; none for inner scopes and `@` variables.
fn root_path(raw: &str, scope: usize) -> Option<Vec<String>> {
    let (mut path, mut ups) = (raw, 0);
    if let Some(rest) = path.strip_prefix("@root.").or_else(|| path.strip_prefix("@root/")) {
        (path, ups) = (rest, scope);
    }
    while let Some(rest) = path.strip_prefix("../") {
        (path, ups) = (rest, ups + 1);
    }
    let path = path.strip_prefix("./").or_else(|| path.strip_prefix("this.")).unwrap_or(path);
    if ups != scope || path.starts_with('@') || matches!(path, "this" | "." | "") {
        return None;
    }
    let names: Vec<_> = path.split(['.', '/']).map(|name| name.trim_matches(['[', ']']).to_string()).collect();
    (!names[0].is_empty()).then_some(names)
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
    let mut defined: Vec<(String, Place, &Template)> = Vec::new();
    let mut reached: Vec<String> = Vec::new();
    inclusions(&prompt.body, &mut defined, &mut reached);
    let mut at = 0;
    while at < reached.len() {
        let name = reached[at].clone();
        let bodies: Vec<&Template> = defined.iter().filter(|(own, ..)| *own == name).map(|(.., body)| *body).collect();
        for body in bodies {
            let (mut inner, mut more) = (Vec::new(), Vec::new());
            inclusions(body, &mut inner, &mut more);
            defined.extend(inner);
            reached.extend(more.into_iter().filter(|name| !reached.contains(name)).collect::<Vec<_>>());
        }
        at += 1;
    }
    for (name, (line, column), _) in defined.into_iter().filter(|(name, ..)| !reached.contains(name)) {
        let message = format!("the partial \"{name}\" is written here, but nothing includes it");
        let way_out = format!("Include it with {{{{> {name}}}}} where it belongs, or take it out.");
        let place = (line + prompt.body_line - 1, column);
        findings.push(finding(place, Severity::Warning, "unused-partial", (message, &way_out)));
    }
}

/// Partials that a template defines, and those that it includes, not from inside of the ones it defines.
fn inclusions<'t>(template: &'t Template, defined: &mut Vec<(String, Place, &'t Template)>, reached: &mut Vec<String>) {
    for (i, element) in template.elements.iter().enumerate() {
        match element {
            TemplateElement::PartialExpression(partial) => reached.extend(partial.name.as_name().map(str::to_string)),
            TemplateElement::DecoratorBlock(inline) => {
                let name = inline.params.first().and_then(|name| match name {
                    Parameter::Literal(Value::String(name)) => Some(name.clone()),
                    _ => None,
                });
                let place = template.mapping.get(i).map_or((1, 1), |mapping| (mapping.0, mapping.1));
                defined.extend(name.zip(inline.template.as_ref()).map(|(name, body)| (name, place, body)));
            }
            TemplateElement::HelperBlock(helper) => {
                [&helper.template, &helper.inverse].into_iter().flatten().for_each(|inner| inclusions(inner, defined, reached));
            }
            _ => {}
        }
    }
}
