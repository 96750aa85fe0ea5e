//! What a parsed template refers to: variables of the input, helpers, partials. A walk over the Handlebars tree.

use super::Problem;
use crate::types::error::did_you_mean;
use handlebars::Template;
use handlebars::template::{DecoratorTemplate, HelperTemplate, Parameter, Subexpression, TemplateElement};
use std::collections::{BTreeMap, BTreeSet};

/// A variable of the input that the template reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Its first path segment.
    pub name: String,
    /// Line in the body, from 1.
    pub line: usize,
    /// Read only by a condition, or inside one that asks for it: an empty text is meant when it is missing.
    pub optional: bool,
}

/// Variables in the order of their first appearance.
///
/// # Errors
/// The line and [`Problem::Unsupported`] for a helper that does not exist.
pub fn variables(template: &Template, known: impl Fn(&str) -> bool, helpers: &[&str]) -> Result<Vec<Variable>, (usize, Problem)> {
    let mut walk = Walk { known: &known, helpers, guards: Vec::new(), found: Vec::new() };
    walk.template(template, 0)?;
    Ok(walk.found)
}

struct Walk<'a> {
    known: &'a dyn Fn(&str) -> bool,
    helpers: &'a [&'a str],
    guards: Vec<String>,
    found: Vec<Variable>,
}

impl Walk<'_> {
    fn template(&mut self, template: &Template, scope: usize) -> Result<(), (usize, Problem)> {
        for (i, element) in template.elements.iter().enumerate() {
            let line = line_of(template, i);
            match element {
                TemplateElement::Expression(helper) | TemplateElement::HtmlExpression(helper) => self.expression(helper, line, scope)?,
                TemplateElement::HelperBlock(helper) => self.block(helper, line, scope)?,
                TemplateElement::PartialExpression(partial) => self.parameters(&partial.params, &partial.hash, line, scope)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn expression(&mut self, helper: &HelperTemplate, line: usize, scope: usize) -> Result<(), (usize, Problem)> {
        let name = helper.name.as_name().unwrap_or_default();
        if helper.params.is_empty() && helper.hash.is_empty() {
            if !(self.known)(name) {
                self.note(name, line, scope, false);
            }
            return self.parameter(&helper.name, line, scope);
        }
        self.helper_exists(name, line)?;
        self.parameters(&helper.params, &helper.hash, line, scope)
    }

    fn block(&mut self, helper: &HelperTemplate, line: usize, scope: usize) -> Result<(), (usize, Problem)> {
        let name = helper.name.as_name().unwrap_or_default();
        let is_section = helper.params.is_empty() && helper.hash.is_empty() && !(self.known)(name);
        let guards = self.guards.len();
        if is_section {
            self.note(name, line, scope, true);
        } else {
            self.helper_exists(name, line)?;
            self.parameters(&helper.params, &helper.hash, line, scope)?;
            self.guards.extend(helper.params.iter().filter_map(Parameter::as_name).filter_map(|raw| root_name(raw, scope)));
        }
        let inside = if is_section || matches!(name, "each" | "with") { scope + 1 } else { scope };
        if let Some(body) = &helper.template {
            self.template(body, inside)?;
        }
        if let Some(inverse) = &helper.inverse {
            self.template(inverse, scope)?;
        }
        self.guards.truncate(guards);
        Ok(())
    }

    fn parameters<'p>(
        &mut self,
        params: &'p [Parameter],
        hash: impl IntoIterator<Item = (&'p String, &'p Parameter)>,
        line: usize,
        scope: usize,
    ) -> Result<(), (usize, Problem)> {
        for parameter in params.iter().chain(hash.into_iter().map(|(_, value)| value)) {
            if let Parameter::Path(_) = parameter {
                self.note(parameter.as_name().unwrap_or_default(), line, scope, true);
            }
            self.parameter(parameter, line, scope)?;
        }
        Ok(())
    }

    fn parameter(&mut self, parameter: &Parameter, line: usize, scope: usize) -> Result<(), (usize, Problem)> {
        let Parameter::Subexpression(inner) = parameter else { return Ok(()) };
        let TemplateElement::Expression(helper) = Subexpression::as_element(inner) else { return Ok(()) };
        if let Some(name) = helper.name.as_name().filter(|_| !helper.params.is_empty() || !helper.hash.is_empty()) {
            self.helper_exists(name, line)?;
        }
        self.parameters(&helper.params, &helper.hash, line, scope)
    }

    fn helper_exists(&self, name: &str, line: usize) -> Result<(), (usize, Problem)> {
        if (self.known)(name) {
            return Ok(());
        }
        let nearest = did_you_mean(name, self.helpers.iter().copied());
        Err((line, Problem::Syntax(format!("there is no helper \"{name}\"{nearest}"))))
    }

    fn note(&mut self, raw: &str, line: usize, scope: usize, optional: bool) {
        let Some(name) = root_name(raw, scope) else { return };
        let optional = optional || self.guards.contains(&name);
        match self.found.iter_mut().find(|variable| variable.name == name) {
            Some(seen) if seen.optional && !optional => *seen = Variable { name, line, optional },
            Some(_) => {}
            None => self.found.push(Variable { name, line, optional }),
        }
    }
}

/// First segment of a path when it reads the template's own input, `None` for inner scopes and `@` variables.
fn root_name(raw: &str, scope: usize) -> Option<String> {
    let mut path = raw;
    let mut ups = 0;
    if let Some(rest) = path.strip_prefix("@root.").or_else(|| path.strip_prefix("@root/")) {
        (path, ups) = (rest, scope);
    }
    while let Some(rest) = path.strip_prefix("../") {
        (path, ups) = (rest, ups + 1);
    }
    let path = path.strip_prefix("./").or_else(|| path.strip_prefix("this.")).or_else(|| path.strip_prefix("this/")).unwrap_or(path);
    if ups != scope || path.starts_with('@') || matches!(path, "this" | "." | "") {
        return None;
    }
    let path = path.strip_prefix('[').map_or(path, |inner| inner.split(']').next().unwrap_or(inner));
    let end = path.find(['.', '/', '[']).unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_string())
}

/// Which partial includes which.
#[derive(Debug, Default)]
pub struct Partials {
    defined: BTreeSet<String>,
    /// Includer ("" is the prompt itself) to what it includes, with the line.
    uses: BTreeMap<String, Vec<(String, usize)>>,
}

impl Partials {
    /// Says that a partial of that name exists.
    pub fn define(&mut self, name: &str) {
        self.defined.insert(name.to_string());
    }

    /// Checks that every partial exists and that none leads back to itself.
    ///
    /// # Errors
    /// The line of the inclusion and what is wrong with it.
    pub fn check(&self) -> Result<(), (usize, Problem)> {
        for (name, line) in self.uses.values().flatten() {
            if !self.defined.contains(name) {
                let nearest = did_you_mean(name, self.defined.iter().map(String::as_str));
                return Err((*line, Problem::Syntax(format!("there is no partial \"{name}\"{nearest}"))));
            }
        }
        // Kahn's algorithm: what is left when no partial without open inclusions remains lies on or leads to a cycle.
        let mut open: BTreeMap<&str, BTreeSet<&str>> =
            self.uses.iter().map(|(from, to)| (from.as_str(), to.iter().map(|(name, _)| name.as_str()).collect())).collect();
        loop {
            let done: Vec<&str> =
                open.iter().filter(|(_, to)| to.iter().all(|name| !open.contains_key(name))).map(|(from, _)| *from).collect();
            if done.is_empty() {
                break;
            }
            open.retain(|from, _| !done.contains(from));
        }
        let on_cycle = open.keys().find(|name| !name.is_empty()).copied();
        let Some(name) = on_cycle else { return Ok(()) };
        let line = self.uses[name].iter().find(|(to, _)| open.contains_key(to.as_str())).map_or(1, |(_, line)| *line);
        Err((line, Problem::Recursive(name.to_string())))
    }
}

/// Adds the inclusions of a template to the graph; `owner` is the partial it is the body of, "" for the prompt.
///
/// # Errors
/// The line and [`Problem::Unsupported`] for block partials and partials whose name is computed.
pub fn partials(template: &Template, owner: &str, graph: &mut Partials) -> Result<(), (usize, Problem)> {
    for (i, element) in template.elements.iter().enumerate() {
        let line = line_of(template, i);
        match element {
            TemplateElement::PartialExpression(partial) => {
                let name = plain_name(partial, line)?;
                graph.uses.entry(owner.to_string()).or_default().push((name, line));
            }
            TemplateElement::PartialBlock(_) => return Err((line, Problem::Unsupported("a partial with a block ({{#> …}})".into()))),
            TemplateElement::DecoratorBlock(inline) => {
                let name = inline_name(inline, line)?;
                graph.define(&name);
                // An inline body counts for the partial and for the template around it, whichever of them runs it.
                if let Some(body) = &inline.template {
                    partials(body, &name, graph)?;
                }
            }
            TemplateElement::DecoratorExpression(_) => return Err((line, Problem::Unsupported("a decorator ({{* …}})".into()))),
            TemplateElement::HelperBlock(helper) => {
                for inner in [&helper.template, &helper.inverse].into_iter().flatten() {
                    partials(inner, owner, graph)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn plain_name(partial: &DecoratorTemplate, line: usize) -> Result<String, (usize, Problem)> {
    match partial.name.as_name() {
        Some(name) if !name.starts_with('@') => Ok(name.to_string()),
        _ => Err((line, Problem::Unsupported("a partial whose name is computed".into()))),
    }
}

fn inline_name(inline: &DecoratorTemplate, line: usize) -> Result<String, (usize, Problem)> {
    match (inline.name.as_name(), inline.params.first()) {
        (Some("inline"), Some(Parameter::Literal(serde_json::Value::String(name)))) => Ok(name.clone()),
        _ => Err((line, Problem::Unsupported("a block decorator other than {{#*inline \"name\"}}".into()))),
    }
}

fn line_of(template: &Template, element: usize) -> usize {
    template.mapping.get(element).map_or(1, |mapping| mapping.0)
}
