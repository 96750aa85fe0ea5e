//! Which variables of the input a template reads, through its partials as well: a walk over the tree.

use super::Problem;
use super::helpers::Helper;
use super::template::read::Fault;
use super::template::tree::Partials;
use super::template::tree::{Block, Call, Expr, Head, Node, Partial, Path, Place, Program};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// A variable of the input that the template reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Its first path segment.
    pub name: String,
    /// Line in the prompt's file, from 1.
    pub line: usize,
    /// Character in that line, from 1.
    pub column: usize,
    /// Read only by a condition, or inside one that asks for it: an empty text is meant when it is missing.
    pub optional: bool,
}

/// Most variables that may be counted through inclusions of partials: bounds what many inclusions of many variables cost.
const MAX_NOTES: usize = 50_000;

/// Variables in the order of their first appearance. `flags` are those that the schema declares as boolean: inside of
/// `{{#flag}}…{{/flag}}`, `this` stays what it is. Partials must be known not to lead back to themselves.
///
/// # Errors
/// The place of a `../` that leads out of the prompt or of a partial.
pub fn variables(body: &Program, outside: &Partials, flags: &[String]) -> Result<Vec<Variable>, Fault> {
    let mut known = Known { flags, bodies: BTreeMap::new(), reads: BTreeMap::new(), notes: 0 };
    for (name, program) in outside {
        known.define(program, 0);
        known.bodies.insert(name, (program, 0, false));
    }
    known.define(body, 0);
    let mut walk = Walk::new(&mut known, 0);
    walk.program(body, 0)?;
    let found = walk.found;
    let inlines: Vec<&str> = known.bodies.iter().filter(|(_, (.., is_inline))| *is_inline).map(|(name, _)| *name).collect();
    for name in inlines {
        known.reads_of(name)?;
    }
    Ok(found)
}

/// The partials, and what each reads of the `this` that it is given.
struct Known<'p> {
    flags: &'p [String],
    /// Body, number of scopes around it, and whether it stands in this prompt's own text.
    bodies: BTreeMap<&'p str, (&'p Program, usize, bool)>,
    reads: BTreeMap<&'p str, Rc<Vec<Variable>>>,
    /// Variables counted through inclusions so far.
    notes: usize,
}

impl<'p> Known<'p> {
    fn define(&mut self, program: &'p Program, scope: usize) {
        for inline in program.inlines.values() {
            self.bodies.insert(&inline.name, (&inline.program, scope, true));
            self.define(&inline.program, scope);
        }
        for node in &program.body {
            if let Node::Block(block) = node {
                block.program.iter().for_each(|body| self.define(body, scope + usize::from(block.has_scope())));
                block.inverse.iter().for_each(|body| self.define(body, scope));
            }
        }
    }

    fn reads_of(&mut self, name: &'p str) -> Result<Rc<Vec<Variable>>, Fault> {
        if let Some(reads) = self.reads.get(name) {
            return Ok(reads.clone());
        }
        let Some(&(program, around, _)) = self.bodies.get(name) else { return Ok(Rc::default()) };
        let mut walk = Walk::new(self, around);
        walk.program(program, 0)?;
        let found = Rc::new(walk.found);
        self.reads.insert(name, found.clone());
        Ok(found)
    }
}

struct Walk<'w, 'p> {
    known: &'w mut Known<'p>,
    /// Blocks that `../` leads out of and that leave `this` as it is: those around the text itself, and sections of flags.
    around: usize,
    guards: Vec<String>,
    names: Vec<&'p str>,
    found: Vec<Variable>,
    /// Where each name stands in `found`.
    index: HashMap<String, usize>,
}

impl<'w, 'p> Walk<'w, 'p> {
    fn new(known: &'w mut Known<'p>, around: usize) -> Self {
        Walk { known, around, guards: Vec::new(), names: Vec::new(), found: Vec::new(), index: HashMap::new() }
    }

    fn program(&mut self, program: &'p Program, scope: usize) -> Result<(), Fault> {
        for node in &program.body {
            match node {
                Node::Print(print) => match &print.value {
                    Expr::Path(path) => self.path(path, scope, false)?,
                    Expr::Call(call) => self.call(call, scope)?,
                    _ => {}
                },
                Node::Block(block) => self.block(block, scope)?,
                Node::Partial(partial) => self.partial(partial, scope)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &'p Block, scope: usize) -> Result<(), Fault> {
        let guards = self.guards.len();
        let is_flag = self.is_flag(block, scope);
        match &block.head {
            Head::Section(path) => {
                self.path(path, scope, true)?;
                self.guards.extend(self.root_name(path, scope).filter(|_| is_flag));
            }
            Head::Call(call) => {
                self.call(call, scope)?;
                let paths = call.params.iter().filter_map(|param| if let Expr::Path(path) = param { Some(path) } else { None });
                let asked: Vec<String> = paths.filter_map(|path| self.root_name(path, scope)).collect();
                self.guards.extend(asked);
            }
        }
        self.names.extend(block.names.iter().map(String::as_str));
        if let Some(body) = &block.program {
            self.around += usize::from(is_flag);
            self.program(body, scope + usize::from(block.has_scope() && !is_flag))?;
            self.around -= usize::from(is_flag);
        }
        self.names.truncate(self.names.len() - block.names.len());
        if let Some(body) = &block.inverse {
            self.program(body, scope)?;
        }
        self.guards.truncate(guards);
        Ok(())
    }

    /// Whether a block is `{{#flag}}`: of a variable that is true or false, and nothing that could be gone through.
    fn is_flag(&self, block: &Block, scope: usize) -> bool {
        let Head::Section(path) = &block.head else { return false };
        let has_fields = path.parts.len() > 1 + usize::from(path.is_data);
        !has_fields && self.root_name(path, scope).is_some_and(|name| self.known.flags.contains(&name))
    }

    /// Conditions and loops may do without a value; what writes one needs it.
    fn call(&mut self, call: &'p Call, scope: usize) -> Result<(), Fault> {
        let optional = !matches!(call.helper, Helper::Json | Helper::Role | Helper::Section | Helper::Media);
        for value in call.params.iter().chain(call.hash.iter().map(|(_, value)| value)) {
            self.value(value, scope, optional)?;
        }
        Ok(())
    }

    fn value(&mut self, value: &'p Expr, scope: usize, optional: bool) -> Result<(), Fault> {
        match value {
            Expr::Path(path) => self.path(path, scope, optional),
            Expr::Call(call) => self.call(call, scope),
            Expr::Undefined | Expr::Literal(_) => Ok(()),
        }
    }

    fn partial(&mut self, partial: &'p Partial, scope: usize) -> Result<(), Fault> {
        for value in partial.context.iter().chain(partial.hash.iter().map(|(_, value)| value)) {
            self.value(value, scope, true)?;
        }
        let reads = self.known.reads_of(&partial.name)?;
        let is_own = self.known.bodies.get(partial.name.as_str()).is_some_and(|(.., is_inline)| *is_inline);
        let sees_root = scope == 0 && partial.context.is_none();
        if !sees_root {
            return Ok(());
        }
        self.known.notes += reads.len();
        if self.known.notes > MAX_NOTES {
            let text = "partials with many variables are included very often: include them in a loop, or less".to_string();
            return Err((partial.place, Problem::TooNested(text)));
        }
        for read in reads.iter().filter(|read| !partial.hash.iter().any(|(name, _)| *name == read.name)) {
            let place = if is_own { Place { line: read.line, column: read.column } } else { partial.place };
            self.note(read.name.clone(), place, read.optional);
        }
        Ok(())
    }

    fn path(&mut self, path: &Path, scope: usize, optional: bool) -> Result<(), Fault> {
        if !path.is_data && path.depth > scope + self.around {
            let out = if scope + self.around == 0 {
                "there is no block with a `this` of its own around it"
            } else {
                "fewer blocks are around it"
            };
            let text =
                format!("`{}` leads out: {out}; take `../` away, or give a partial what it needs, {{{{> card name=name}}}}", path.original);
            return Err((path.place, Problem::Syntax(text)));
        }
        if let Some(name) = self.root_name(path, scope) {
            self.note(name, path.place, optional);
        }
        Ok(())
    }

    /// First segment of a path when it reads the text's own input, `None` for inner scopes, names from `as |…|` and `@` values.
    fn root_name(&self, path: &Path, scope: usize) -> Option<String> {
        let (first, second) = (path.parts.first()?, path.parts.get(1));
        match path.is_data {
            true if first == "root" => second.cloned(),
            true => None,
            false if !path.is_scoped && self.names.contains(&first.as_str()) => None,
            false => (path.depth == scope).then(|| first.clone()),
        }
    }

    fn note(&mut self, name: String, place: Place, optional: bool) {
        let optional = optional || self.guards.contains(&name);
        let variable = Variable { name, line: place.line, column: place.column, optional };
        match self.index.get(&variable.name) {
            Some(&at) if self.found[at].optional && !optional => self.found[at] = variable,
            Some(_) => {}
            None => {
                self.index.insert(variable.name.clone(), self.found.len());
                self.found.push(variable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::template::read::read;

    fn found(source: &str, outside: &[(&str, &str)]) -> Vec<(String, bool)> {
        let read = |text: &str| read(text, Place { line: 1, column: 1 }).expect("reads");
        let outside: Partials = outside.iter().map(|(name, text)| (name.to_string(), read(text))).collect();
        let variables = variables(&read(source), &outside, &["flag".to_string()]).expect("walks");
        variables.into_iter().map(|variable| (variable.name, variable.optional)).collect()
    }

    #[test]
    fn reads_are_found_in_every_place() {
        let pairs = |pairs: &[(&str, bool)]| pairs.iter().map(|(name, optional)| (name.to_string(), *optional)).collect::<Vec<_>>();
        assert_eq!(
            found("{{a.b}}{{#each c}}{{d}}{{../e}}{{@root.f}}{{/each}}", &[]),
            pairs(&[("a", false), ("c", true), ("e", false), ("f", false)])
        );
        assert_eq!(found("{{#if a}}{{a}}{{/if}}{{json b}}{{media url=c}}", &[]), pairs(&[("a", true), ("b", false), ("c", false)]));
        assert_eq!(found("{{#each l as |x|}}{{x.y}}{{z}}{{/each}}", &[]), pairs(&[("l", true)]));
        assert_eq!(
            found("{{> p name=a}}{{> q}}", &[("p", "{{name}}{{tone}}"), ("q", "{{#if b}}{{b}}{{/if}}")]),
            pairs(&[("a", true), ("tone", false), ("b", true)])
        );
        assert_eq!(found("{{#*inline \"p\"}}{{a}}{{/inline}}{{#each l}}{{> p}}{{/each}}", &[]), pairs(&[("l", true)]));
        assert_eq!(found("{{> p user}}", &[("p", "{{name}}")]), pairs(&[("user", true)]));
        // Inside of a flag's section stand the prompt's own variables; of anything else, its fields.
        assert_eq!(
            found("{{#flag}}{{flag}}{{a}}{{> q}}{{/flag}}", &[("q", "{{b}}")]),
            pairs(&[("flag", true), ("a", false), ("b", false)])
        );
        assert_eq!(found("{{#user}}{{a}}{{/user}}{{#flag.x}}{{b}}{{/flag.x}}", &[]), pairs(&[("user", true), ("flag", true)]));
        assert_eq!(
            found("{{#flag}}{{#each l}}{{../../a}}{{../a}}{{/each}}{{/flag}}", &[]),
            pairs(&[("flag", true), ("l", true), ("a", false)])
        );
    }

    #[test]
    fn steps_out_of_the_prompt_are_refused() {
        let refuse = |source: &str| variables(&read(source, Place { line: 1, column: 1 }).expect("reads"), &Partials::new(), &[]).is_err();
        assert!(refuse("{{../a}}") && refuse("{{#if x}}{{../a}}{{/if}}") && refuse("{{#each x}}{{../../a}}{{/each}}"));
        assert!(refuse("{{#*inline \"p\"}}{{../a}}{{/inline}}"));
        assert!(!refuse("{{#each x}}{{#if y}}{{../a}}{{/if}}{{/each}}"));
    }
}
