//! A tree to what the crate `handlebars` renders. White space is settled and everything is checked by then, so nothing here can fail.
//!
//! The crate's own: text, parentheses, `{{#if}}`, `{{#unless}}`, `{{{{raw}}}}`, inline partials, the list of partials. A name becomes a
//! call of one of our helpers ([`super::mend`]), because the crate looks names up, and writes them, otherwise than handlebars.js does.

use super::mend::Op;
use super::tree::{Block, Call, Expr, Head, Inline, Node, Partial, Partials, Path, Place, Print, Program};
use crate::prompts::helpers::Helper;
use handlebars::Handlebars;
use handlebars::template::{BlockParam, DecoratorTemplate, ExpressionSpecBuilder, HelperTemplate, Parameter, Subexpression};
use handlebars::template::{Template, TemplateElement};
use serde_json::Value;
use std::collections::HashMap;

/// A template that can be rendered many times.
pub struct Compiled {
    /// The prompt's body.
    pub body: Template,
    /// The crate with the partials from outside.
    pub partials: Handlebars<'static>,
    /// How deep a render goes.
    levels: usize,
}

/// Stack for a level, in bytes. An `if` takes some 6 KiB in a build without optimization, a body with inline partials counts once more.
const LEVEL_BYTES: usize = 24 * 1024;
/// Stack for what is around and inside of the levels, parentheses among it, in bytes.
const BASE_BYTES: usize = 512 * 1024;

impl Compiled {
    /// Compiles a body and the partials that it may include, which together go as many `levels` deep.
    pub fn new(body: &Program, outside: &Partials, levels: usize) -> Self {
        let whole = |program| Compiler::default().program(program, Body::Scope);
        let mut compiled = Compiled { body: Template::default(), partials: Handlebars::new(), levels };
        (compiled.body, compiled.partials) = compiled.with_stack(|| {
            let mut partials = Handlebars::new();
            outside.iter().for_each(|(name, program)| partials.register_template(name, whole(program)));
            (whole(body), partials)
        });
        compiled
    }

    /// Runs what recurses with the levels: on a larger stack if this one is too small. There are at most
    /// [`super::MAX_LEVELS`] of them, so that stack is bounded, too.
    pub fn with_stack<T>(&self, run: impl FnOnce() -> T) -> T {
        let bytes = BASE_BYTES + self.levels * LEVEL_BYTES;
        stacker::maybe_grow(bytes, bytes, run)
    }
}

/// What a body belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Something with a `this` of its own.
    Scope,
    /// `if`, or what stands behind `{{else}}`.
    Branch,
}

#[derive(Default)]
struct Compiler {
    /// Names from `as |…|` around here.
    names: Vec<String>,
}

impl Compiler {
    fn program(&mut self, program: &Program, body: Body) -> Template {
        let mut inside = Template::default();
        inside.elements.extend(program.inlines.values().map(|inline| self.inline(inline)));
        inside.elements.extend(program.body.iter().filter_map(|node| self.node(node)));
        if program.inlines.is_empty() {
            return inside;
        }
        // Inline partials are known in their body only.
        let ups = Parameter::Literal(usize::from(body == Body::Scope).into());
        // The crate notes each of them, with its name, whenever the body is entered.
        let cost: usize = program.inlines.keys().map(|name| 1 + name.len() / 64).sum();
        let mut whole = Template::default();
        whole.elements.push(block(Op::Body.name(), vec![ups, Parameter::Literal(cost.into())], (Some(inside), None), None));
        whole
    }

    fn node(&mut self, node: &Node) -> Option<TemplateElement> {
        match node {
            Node::Text(text) if text.value.is_empty() => None,
            Node::Text(text) => Some(TemplateElement::RawString(text.value.clone())),
            Node::Print(print) => self.print(print),
            Node::Block(block) => Some(self.block(block)),
            Node::Partial(partial) => Some(self.partial(partial)),
            // Inlines have been moved to the program that they stand in.
            Node::Comment(_) | Node::Inline(_) => None,
        }
    }

    fn print(&self, print: &Print) -> Option<TemplateElement> {
        let called = match &print.value {
            Expr::Path(path) => self.path(path),
            Expr::Call(call) => {
                let mut called = self.call(call);
                if let Op::Role | Op::History | Op::Section | Op::Media = called.op {
                    called.params.extend(place(call.place));
                }
                called
            }
            // The reader makes names of these.
            Expr::Undefined | Expr::Literal(_) => return None,
        };
        Some(*called.subexpression().element)
    }

    fn block(&mut self, tree: &Block) -> TemplateElement {
        let call = match &tree.head {
            Head::Section(path) => return self.scope(Op::Any, Parameter::Subexpression(self.path(path).subexpression()), tree),
            Head::Call(call) => call,
        };
        let op = match call.helper {
            Helper::Each => Op::Each,
            Helper::With => Op::With,
            helper => {
                let name = match helper {
                    Helper::Raw => "raw",
                    Helper::Unless | Helper::UnlessEquals => "unless",
                    _ => "if",
                };
                let op = if let Helper::IfEquals | Helper::UnlessEquals = helper { Op::Same } else { Op::Truthy };
                let condition = Called { op, ..self.call(call) }.subexpression();
                let bodies = (self.branch(&tree.program), self.branch(&tree.inverse));
                return block(name, vec![Parameter::Subexpression(condition)], bodies, None);
            }
        };
        let value = call.params.first().map_or_else(undefined, |value| self.value(value));
        self.scope(op, value, tree)
    }

    /// A block whose first body has a `this` of its own.
    fn scope(&mut self, op: Op, value: Parameter, tree: &Block) -> TemplateElement {
        self.names.extend_from_slice(&tree.names);
        let program = tree.program.as_ref().map(|program| self.program(program, Body::Scope));
        self.names.truncate(self.names.len() - tree.names.len());
        let name = |name: &String| Parameter::Name(name.clone());
        let names = match tree.names.as_slice() {
            [] => None,
            [item] => Some(BlockParam::Single(name(item))),
            [item, key, ..] => Some(BlockParam::Pair((name(item), name(key)))),
        };
        block(op.name(), vec![value], (program, self.branch(&tree.inverse)), names)
    }

    fn branch(&mut self, program: &Option<Program>) -> Option<Template> {
        program.as_ref().map(|program| self.program(program, Body::Branch))
    }

    /// Fields come by position, because their order is the one in which a loop meets them.
    fn partial(&mut self, partial: &Partial) -> TemplateElement {
        let mut params = vec![Parameter::Literal(partial.name.as_str().into()), Parameter::Literal(partial.indent.as_str().into())];
        params.extend(place(partial.place));
        for (key, value) in &partial.hash {
            params.extend([Parameter::Literal(key.as_str().into()), self.value(value)]);
        }
        let context = partial.context.iter().map(|context| ("this".to_string(), self.value(context)));
        *Called { op: Op::Include, params, hash: context.collect() }.subexpression().element
    }

    fn inline(&mut self, inline: &Inline) -> TemplateElement {
        let spec = ExpressionSpecBuilder::default()
            .name(Parameter::Name("inline".into()))
            .params(vec![Parameter::Literal(inline.name.as_str().into())])
            .hash(HashMap::new())
            .omit_pre_ws(false)
            .omit_pro_ws(false)
            .build()
            .expect("every field is set");
        let mut decorator = DecoratorTemplate::new(spec, false);
        decorator.template = Some(self.program(&inline.program, Body::Scope));
        TemplateElement::DecoratorBlock(Box::new(decorator))
    }

    fn value(&self, expr: &Expr) -> Parameter {
        match expr {
            Expr::Undefined => undefined(),
            Expr::Literal(value) => Parameter::Literal(value.clone()),
            Expr::Path(path) => Parameter::Subexpression(self.path(path).subexpression()),
            Expr::Call(call) => Parameter::Subexpression(self.call(call).subexpression()),
        }
    }

    fn path(&self, path: &Path) -> Called {
        let literal = |value: Value| Parameter::Literal(value);
        let parts = |parts: &[String]| literal(parts.iter().map(String::as_str).collect());
        let (op, params) = match path.parts.split_first() {
            Some((first, rest)) if path.is_data => {
                (Op::Data, vec![literal(path.depth.into()), literal(first.as_str().into()), parts(rest)])
            }
            Some((first, rest)) if !path.is_scoped && self.names.contains(first) => {
                (Op::Named, vec![literal(first.as_str().into()), parts(rest)])
            }
            None if path.is_data => (Op::Given, vec![undefined()]),
            _ => (Op::Get, vec![literal(path.depth.into()), parts(&path.parts)]),
        };
        Called { op, params, hash: HashMap::new() }
    }

    fn call(&self, call: &Call) -> Called {
        Called {
            op: Op::of(call.helper),
            params: call.params.iter().map(|param| self.value(param)).collect(),
            hash: call.hash.iter().map(|(key, value)| (key.clone(), self.value(value))).collect(),
        }
    }
}

/// A call of one of our helpers.
struct Called {
    op: Op,
    params: Vec<Parameter>,
    hash: HashMap<String, Parameter>,
}

impl Called {
    fn subexpression(self) -> Subexpression {
        Subexpression::new(Parameter::Name(self.op.name().into()), self.params, self.hash)
    }
}

type Bodies = (Option<Template>, Option<Template>);

fn block(name: &str, params: Vec<Parameter>, (template, inverse): Bodies, names: Option<BlockParam>) -> TemplateElement {
    let spec = ExpressionSpecBuilder::default()
        .name(Parameter::Name(name.into()))
        .params(params)
        .hash(HashMap::new())
        .omit_pre_ws(false)
        .omit_pro_ws(false)
        .build()
        .expect("every field is set");
    let mut helper = HelperTemplate::new(spec, true, false);
    (helper.template, helper.inverse, helper.block_param) = (template, inverse, names);
    TemplateElement::HelperBlock(Box::new(helper))
}

/// The crate has no word for it, but a name that it never looks up counts as missing.
fn undefined() -> Parameter {
    Parameter::Name("undefined".into())
}

fn place(place: Place) -> [Parameter; 2] {
    [Parameter::Literal(place.line.into()), Parameter::Literal(place.column.into())]
}
