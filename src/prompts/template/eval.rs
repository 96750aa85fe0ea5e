//! Tree and variables to pieces. Structure (a message, a section, an image) is a piece of its own that only helpers make, so no text can
//! become one. Every node, loop turn and compared kilobyte is a step, and both steps and written bytes have an end.
//!
//! Source: handlebars.js 4.7 (`lib/handlebars/runtime.js` and its helpers), with the options that dotprompt uses.

use super::tree::{Call, Expr, Inline, Node, Path, Place, Program};
use super::value::{Kind, Val, length};
use crate::prompts::helpers::{Helper, Test};
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Partials by name.
pub type Partials = BTreeMap<String, Program>;

/// A piece of what was rendered.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// A message begins.
    Role(String),
    /// The earlier messages stand here.
    History,
    /// A place that an application fills.
    Section(String),
    /// A file.
    Media {
        /// Address or data URL.
        url: String,
        /// MIME type.
        content_type: Option<String>,
    },
}

/// Why a render ended early.
#[derive(Debug)]
pub enum Stop {
    /// Too many bytes.
    Full,
    /// Too many steps.
    Spent,
    /// A helper was given what it cannot use.
    Wrong(Place, String),
}

/// What a render may use up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nodes, loop turns, inclusions.
    pub steps: usize,
    /// Bytes of text.
    pub bytes: usize,
}

/// What a render reads.
pub struct Data<'a> {
    /// `this` of the whole template.
    pub root: Val<'a>,
    /// Values for `@name`.
    pub context: Option<&'a Map<String, Value>>,
    /// Value of `@metadata`.
    pub metadata: &'a Value,
    /// Partials from outside of the template.
    pub partials: &'a Partials,
}

/// Renders.
///
/// # Errors
/// [`Stop`].
pub fn render<'a>(program: &'a Program, data: &'a Data<'a>, limits: Limits) -> Result<Vec<Piece>, Stop> {
    let mut render = Render { data, limits, pieces: Vec::new(), has_history: false };
    let scope = Scope { this: data.root.clone(), outer: None };
    let env = Env { scope: &scope, turn: None, names: None, inlines: None, defined_in: None };
    render.program(program, env)?;
    Ok(render.pieces)
}

/// A `this` and those around it.
pub(super) struct Scope<'s, 'a> {
    pub(super) this: Val<'a>,
    pub(super) outer: Option<&'s Scope<'s, 'a>>,
}

/// A turn of a loop.
pub(super) struct Turn<'s, 'a> {
    pub(super) key: Val<'a>,
    pub(super) index: usize,
    pub(super) is_last: bool,
    pub(super) outer: Option<&'s Turn<'s, 'a>>,
}

/// Names from `as |…|`.
pub(super) struct Names<'s, 'a> {
    pub(super) names: &'a [String],
    pub(super) values: [Val<'a>; 2],
    pub(super) outer: Option<&'s Names<'s, 'a>>,
}

/// Inline partials of a body, with what is around it.
pub(super) struct Inlines<'s, 'a> {
    pub(super) list: &'a BTreeMap<String, Inline>,
    pub(super) env: Env<'s, 'a>,
}

/// Everything around a node.
#[derive(Clone, Copy)]
pub(super) struct Env<'s, 'a> {
    pub(super) scope: &'s Scope<'s, 'a>,
    pub(super) turn: Option<&'s Turn<'s, 'a>>,
    pub(super) names: Option<&'s Names<'s, 'a>>,
    pub(super) inlines: Option<&'s Inlines<'s, 'a>>,
    /// What is around the body that the node stands in: what its inline partials reach with `../`.
    pub(super) defined_in: Option<&'s Scope<'s, 'a>>,
}

pub(super) struct Render<'a> {
    pub(super) data: &'a Data<'a>,
    pub(super) limits: Limits,
    pub(super) pieces: Vec<Piece>,
    /// The earlier messages have their place.
    pub(super) has_history: bool,
}

pub(super) type Done = Result<(), Stop>;

impl<'a> Render<'a> {
    pub(super) fn step(&mut self, steps: usize) -> Done {
        if self.limits.steps < steps {
            return Err(Stop::Spent);
        }
        self.limits.steps -= steps;
        Ok(())
    }

    pub(super) fn count(&mut self, bytes: usize) -> Done {
        if self.limits.bytes < bytes {
            return Err(Stop::Full);
        }
        self.limits.bytes -= bytes;
        Ok(())
    }

    pub(super) fn write(&mut self, text: &str) -> Done {
        self.count(text.len())?;
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Text(text.to_string())),
        }
        Ok(())
    }

    pub(super) fn program(&mut self, program: &'a Program, env: Env<'_, 'a>) -> Done {
        if program.inlines.is_empty() {
            return self.nodes(program, env);
        }
        let inlines = Inlines { list: &program.inlines, env };
        self.nodes(program, Env { inlines: Some(&inlines), ..env })
    }

    pub(super) fn nodes(&mut self, program: &'a Program, env: Env<'_, 'a>) -> Done {
        for node in &program.body {
            self.step(1)?;
            match node {
                Node::Text(text) => self.write(&text.value)?,
                Node::Print(print) => match &print.value {
                    Expr::Call(call) => self.print(call, env)?,
                    value => {
                        let value = self.value(value, env)?;
                        self.show(&value)?;
                    }
                },
                Node::Block(block) => self.block(block, env)?,
                Node::Partial(partial) => self.partial(partial, env)?,
                Node::Comment(_) | Node::Inline(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn value(&mut self, expr: &'a Expr, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        self.step(1)?;
        match expr {
            Expr::Undefined => Ok(Val::Undefined),
            Expr::Literal(value) => Ok(Val::Json(value)),
            Expr::Path(path) => self.look_up(path, env),
            Expr::Call(call) => self.call(call, env),
        }
    }

    pub(super) fn follow(&mut self, mut value: Val<'a>, parts: &[String]) -> Result<Val<'a>, Stop> {
        for part in parts {
            self.step(value.cost() / 16 + value.weight() / 64)?;
            value = value.get(part);
        }
        Ok(value)
    }

    pub(super) fn look_up(&mut self, path: &'a Path, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        if path.is_data {
            let Some((first, rest)) = path.parts.split_first() else { return Ok(Val::Undefined) };
            return self.follow(self.at_data(first, path.depth, env), rest);
        }
        if let (false, Some(first)) = (path.is_scoped, path.parts.first()) {
            let mut names = env.names;
            while let Some(frame) = names {
                if let Some(at) = frame.names.iter().position(|name| name == first) {
                    return self.follow(frame.values.get(at).cloned().unwrap_or(Val::Undefined), &path.parts[1..]);
                }
                names = frame.outer;
            }
        }
        let mut scope = Some(env.scope);
        for _ in 0..path.depth {
            scope = scope.and_then(|scope| scope.outer);
        }
        scope.map_or(Ok(Val::Undefined), |scope| self.follow(scope.this.clone(), &path.parts))
    }

    pub(super) fn at_data(&self, name: &str, ups: usize, env: Env<'_, 'a>) -> Val<'a> {
        let mut turn = env.turn;
        for _ in 0..ups {
            let Some(inner) = turn else { return Val::Undefined };
            turn = inner.outer;
        }
        match (turn, name) {
            (Some(turn), "key") => turn.key.clone(),
            (Some(turn), "index") => Val::Count(turn.index),
            (Some(turn), "first") => Val::Bool(turn.index == 0),
            (Some(turn), "last") => Val::Bool(turn.is_last),
            (_, "root") => self.data.root.clone(),
            _ => match self.data.context.and_then(|context| context.get(name)) {
                Some(value) => Val::Json(value),
                None if name == "metadata" => Val::Json(self.data.metadata),
                None => Val::Undefined,
            },
        }
    }

    pub(super) fn param(&mut self, call: &'a Call, at: usize, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        call.params.get(at).map_or(Ok(Val::Undefined), |param| self.value(param, env))
    }

    pub(super) fn named(&mut self, call: &'a Call, name: &str, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        let found = call.hash.iter().rev().find(|(key, _)| key == name);
        found.map_or(Ok(Val::Undefined), |(_, value)| self.value(value, env))
    }

    /// The value of a helper that has one.
    pub(super) fn call(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        match call.helper {
            Helper::Lookup => {
                let (holder, key) = (self.param(call, 0, env)?, self.param(call, 1, env)?);
                self.step(holder.cost() / 16 + holder.weight() / 64 + key.weight() / 64)?;
                Ok(match key.scalar() {
                    Some(key) if holder.is_truthy() => holder.get(&key),
                    _ if holder.is_truthy() => Val::Undefined,
                    _ => holder,
                })
            }
            Helper::Json => {
                let (value, indent) = self.json_arguments(call, env)?;
                let mut text = String::new();
                self.json(&value, &indent, 0, &mut text)?;
                Ok(Val::Made(text.into()))
            }
            Helper::Len => {
                let value = self.param(call, 0, env)?;
                self.step(value.weight() / 64)?;
                Ok(match value.kind() {
                    Kind::List(items) => Val::Count(items.len()),
                    Kind::Text(text) => Val::Count(length(text)),
                    Kind::Fields(fields) => Val::Count(fields.len()),
                    Kind::Merged(merged) => {
                        self.step(merged.work() / 4)?;
                        Val::Count(merged.entries().len())
                    }
                    _ => Val::Count(0),
                })
            }
            Helper::Test(test) => self.test(test, call, env).map(Val::Bool),
            _ => Ok(Val::Undefined),
        }
    }

    pub(super) fn test(&mut self, test: Test, call: &'a Call, env: Env<'_, 'a>) -> Result<bool, Stop> {
        if let Test::And | Test::Or = test {
            for param in &call.params {
                if self.value(param, env)?.is_truthy() == (test == Test::Or) {
                    return Ok(test == Test::Or);
                }
            }
            return Ok(test == Test::And);
        }
        let (a, b) = (self.param(call, 0, env)?, self.param(call, 1, env)?);
        self.step(a.weight().min(b.weight()) / 1024)?;
        let order = match (a.kind(), b.kind()) {
            (Kind::Number(a), Kind::Number(b)) => a.compare(b),
            (Kind::Text(a), Kind::Text(b)) => Some(a.cmp(b)),
            _ => None,
        };
        Ok(match test {
            Test::Eq => a.is_same(&b),
            Test::Ne => !a.is_same(&b),
            Test::Gt => order == Some(Ordering::Greater),
            Test::Gte => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Test::Lt => order == Some(Ordering::Less),
            Test::Lte => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            _ => !a.is_truthy(),
        })
    }
}
