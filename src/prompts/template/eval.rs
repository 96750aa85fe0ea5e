//! Tree and variables to pieces. Structure (a message, a section, an image) is a piece of its own that only helpers make, so no text can
//! become one. Every node, loop turn and compared kilobyte is a step, and both steps and written bytes have an end.
//!
//! Source: handlebars.js 4.7 (`lib/handlebars/runtime.js` and its helpers), with the options that dotprompt uses.

use super::space::is_blank;
use super::tree::{Block, Call, Expr, Head, Inline, Node, Partial, Path, Place, Program};
use super::value::{Kind, Merged, Over, Val, length};
use crate::prompts::helpers::{self, Helper, Test};
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

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
struct Scope<'s, 'a> {
    this: Val<'a>,
    outer: Option<&'s Scope<'s, 'a>>,
}

/// A turn of a loop.
struct Turn<'s, 'a> {
    key: Val<'a>,
    index: usize,
    is_last: bool,
    outer: Option<&'s Turn<'s, 'a>>,
}

/// Names from `as |…|`.
struct Names<'s, 'a> {
    names: &'a [String],
    values: [Val<'a>; 2],
    outer: Option<&'s Names<'s, 'a>>,
}

/// Inline partials of a body, with what is around it.
struct Inlines<'s, 'a> {
    list: &'a BTreeMap<String, Inline>,
    env: Env<'s, 'a>,
}

/// Everything around a node.
#[derive(Clone, Copy)]
struct Env<'s, 'a> {
    scope: &'s Scope<'s, 'a>,
    turn: Option<&'s Turn<'s, 'a>>,
    names: Option<&'s Names<'s, 'a>>,
    inlines: Option<&'s Inlines<'s, 'a>>,
    /// What is around the body that the node stands in: what its inline partials reach with `../`.
    defined_in: Option<&'s Scope<'s, 'a>>,
}

struct Render<'a> {
    data: &'a Data<'a>,
    limits: Limits,
    pieces: Vec<Piece>,
    /// The earlier messages have their place.
    has_history: bool,
}

type Done = Result<(), Stop>;

impl<'a> Render<'a> {
    fn step(&mut self, steps: usize) -> Done {
        if self.limits.steps < steps {
            return Err(Stop::Spent);
        }
        self.limits.steps -= steps;
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Done {
        if self.limits.bytes < bytes {
            return Err(Stop::Full);
        }
        self.limits.bytes -= bytes;
        Ok(())
    }

    fn write(&mut self, text: &str) -> Done {
        self.count(text.len())?;
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Text(text.to_string())),
        }
        Ok(())
    }

    fn program(&mut self, program: &'a Program, env: Env<'_, 'a>) -> Done {
        if program.inlines.is_empty() {
            return self.nodes(program, env);
        }
        let inlines = Inlines { list: &program.inlines, env };
        self.nodes(program, Env { inlines: Some(&inlines), ..env })
    }

    fn nodes(&mut self, program: &'a Program, env: Env<'_, 'a>) -> Done {
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

    // ---- values ----

    fn value(&mut self, expr: &'a Expr, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        self.step(1)?;
        match expr {
            Expr::Undefined => Ok(Val::Undefined),
            Expr::Literal(value) => Ok(Val::Json(value)),
            Expr::Path(path) => self.look_up(path, env),
            Expr::Call(call) => self.call(call, env),
        }
    }

    fn follow(&mut self, mut value: Val<'a>, parts: &[String]) -> Result<Val<'a>, Stop> {
        for part in parts {
            self.step(value.cost() / 16 + value.weight() / 64)?;
            value = value.get(part);
        }
        Ok(value)
    }

    fn look_up(&mut self, path: &'a Path, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
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

    fn at_data(&self, name: &str, ups: usize, env: Env<'_, 'a>) -> Val<'a> {
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

    fn param(&mut self, call: &'a Call, at: usize, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        call.params.get(at).map_or(Ok(Val::Undefined), |param| self.value(param, env))
    }

    fn named(&mut self, call: &'a Call, name: &str, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
        let found = call.hash.iter().rev().find(|(key, _)| key == name);
        found.map_or(Ok(Val::Undefined), |(_, value)| self.value(value, env))
    }

    /// The value of a helper that has one.
    fn call(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Result<Val<'a>, Stop> {
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
                        self.step(merged.size() / 16)?;
                        Val::Count(merged.entries().len())
                    }
                    _ => Val::Count(0),
                })
            }
            Helper::Test(test) => self.test(test, call, env).map(Val::Bool),
            _ => Ok(Val::Undefined),
        }
    }

    fn test(&mut self, test: Test, call: &'a Call, env: Env<'_, 'a>) -> Result<bool, Stop> {
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

    // ---- output ----

    /// Writes a value as JavaScript turns it into text.
    fn show(&mut self, value: &Val<'a>) -> Done {
        match value.kind() {
            Kind::Undefined | Kind::Null => Ok(()),
            Kind::Text(text) => self.write(text),
            Kind::Bool(value) => self.write(if value { "true" } else { "false" }),
            Kind::Number(number) => self.write(&number.to_string()),
            Kind::Fields(_) | Kind::Merged(_) => self.write("[object Object]"),
            Kind::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.step(1)?;
                    self.write(if i == 0 { "" } else { "," })?;
                    self.show(&Val::Json(item))?;
                }
                Ok(())
            }
        }
    }

    /// A helper in a tag of its own.
    fn print(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Done {
        match call.helper {
            Helper::History if self.has_history => {
                return Err(Stop::Wrong(
                    call.place,
                    "{{history}} has its place already: the earlier messages stand in a prompt once".into(),
                ));
            }
            Helper::History => {
                self.has_history = true;
                self.pieces.push(Piece::History);
            }
            Helper::Role => {
                let role = self.text_of(call, 0, "role", env)?;
                helpers::role(&role).map_err(|problem| Stop::Wrong(call.place, problem))?;
                self.pieces.push(Piece::Role(role));
            }
            Helper::Section => {
                let name = self.text_of(call, 0, "section", env)?;
                self.pieces.push(Piece::Section(name));
            }
            Helper::Media => {
                let url = self.named(call, "url", env)?;
                let content_type = self.named(call, "contentType", env)?;
                let url = url.scalar().filter(|url| !is_blank(url));
                let url = url.ok_or_else(|| Stop::Wrong(call.place, "the url of {{media}} is empty".into()))?.into_owned();
                let content_type = content_type.scalar().filter(|kind| !kind.is_empty()).map(|kind| kind.into_owned());
                self.count(url.len() + content_type.as_ref().map_or(0, String::len))?;
                self.pieces.push(Piece::Media { url, content_type });
            }
            _ => {
                let value = self.call(call, env)?;
                // What `json` made is counted where it is made.
                if let (Helper::Json, Val::Made(text)) = (call.helper, &value) {
                    self.limits.bytes += text.len();
                }
                self.show(&value)?;
            }
        }
        Ok(())
    }

    fn text_of(&mut self, call: &'a Call, at: usize, name: &str, env: Env<'_, 'a>) -> Result<String, Stop> {
        let value = self.param(call, at, env)?;
        let text = value.scalar().filter(|text| !is_blank(text));
        let text = text.ok_or_else(|| Stop::Wrong(call.place, format!("{name} needs a text, and what it is given has none")))?;
        self.count(text.len())?;
        Ok(text.into_owned())
    }

    fn json_arguments(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Result<(Val<'a>, String), Stop> {
        let (value, indent) = (self.param(call, 0, env)?, self.named(call, "indent", env)?);
        let indent = match indent.kind() {
            Kind::Number(number) => " ".repeat(number.float().clamp(0.0, 10.0) as usize),
            Kind::Text(text) => text.chars().take(10).collect(),
            _ => String::new(),
        };
        Ok((value, indent))
    }

    /// `JSON.stringify`; what is missing is `null`.
    fn json(&mut self, value: &Val<'a>, indent: &str, depth: usize, out: &mut String) -> Done {
        let before = out.len();
        match value.kind() {
            Kind::Undefined | Kind::Null => out.push_str("null"),
            Kind::Bool(value) => out.push_str(if value { "true" } else { "false" }),
            Kind::Number(number) => out.push_str(&number.to_string()),
            Kind::Text(text) => {
                if text.len() > self.limits.bytes {
                    return Err(Stop::Full);
                }
                out.push_str(&Value::from(text).to_string());
            }
            Kind::List(items) => {
                let items = items.iter().map(|item| (None, Val::Json(item)));
                return self.json_list(items, ('[', ']'), (indent, depth), out);
            }
            Kind::Fields(fields) => {
                let fields = fields.iter().map(|(key, value)| (Some(key.as_str()), Val::Json(value)));
                return self.json_list(fields, ('{', '}'), (indent, depth), out);
            }
            Kind::Merged(merged) => {
                self.step(merged.size() / 16)?;
                let entries = merged.entries();
                let fields = entries.iter().filter(|(_, value)| !matches!(value, Val::Undefined));
                return self.json_list(fields.map(|(key, value)| (Some(key.as_ref()), value.clone())), ('{', '}'), (indent, depth), out);
            }
        }
        self.count(out.len() - before)
    }

    fn json_list<'k>(
        &mut self,
        items: impl Iterator<Item = (Option<&'k str>, Val<'a>)>,
        brackets: (char, char),
        (indent, depth): (&str, usize),
        out: &mut String,
    ) -> Done {
        out.push(brackets.0);
        let mut is_empty = true;
        let line = |out: &mut String, depth: usize| {
            if !indent.is_empty() {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        for (key, value) in items {
            let before = out.len();
            if !std::mem::replace(&mut is_empty, false) {
                out.push(',');
            }
            line(out, depth + 1);
            if let Some(key) = key {
                out.push_str(&Value::from(key).to_string());
                out.push_str(if indent.is_empty() { ":" } else { ": " });
            }
            self.count(out.len() - before)?;
            self.json(&value, indent, depth + 1, out)?;
        }
        let before = out.len();
        if !is_empty {
            line(out, depth);
        }
        out.push(brackets.1);
        self.count(out.len() - before + 1)
    }

    // ---- blocks ----

    fn block(&mut self, block: &'a Block, env: Env<'_, 'a>) -> Done {
        let call = match &block.head {
            Head::Section(path) => {
                let value = self.look_up(path, env)?;
                return match value.kind() {
                    Kind::Bool(true) => self.branch(&block.program, env),
                    Kind::Bool(false) | Kind::Undefined | Kind::Null => self.branch(&block.inverse, env),
                    Kind::List(_) => self.each(block, value, env),
                    _ => self.inside(block, value, env),
                };
            }
            Head::Call(call) => call,
        };
        match call.helper {
            Helper::Each => {
                let items = self.param(call, 0, env)?;
                self.each(block, items, env)
            }
            Helper::With => {
                let value = self.param(call, 0, env)?;
                let is_zero = matches!(value.kind(), Kind::Number(_));
                if value.is_truthy() || is_zero { self.inside(block, value, env) } else { self.branch(&block.inverse, env) }
            }
            Helper::Raw => self.branch(&block.program, env),
            _ => {
                let holds = self.condition(call, env)?;
                self.branch(if holds { &block.program } else { &block.inverse }, env)
            }
        }
    }

    fn condition(&mut self, call: &'a Call, env: Env<'_, 'a>) -> Result<bool, Stop> {
        let value = self.param(call, 0, env)?;
        if let Helper::IfEquals | Helper::UnlessEquals = call.helper {
            let other = self.param(call, 1, env)?;
            self.step(value.weight().min(other.weight()) / 1024)?;
            return Ok(value.is_same(&other) == (call.helper == Helper::IfEquals));
        }
        let counts_zero = self.named(call, "includeZero", env)?.is_truthy() && matches!(value.kind(), Kind::Number(_));
        Ok((value.is_truthy() || counts_zero) == (call.helper == Helper::If))
    }

    /// A body that sees what the block sees.
    fn branch(&mut self, body: &'a Option<Program>, env: Env<'_, 'a>) -> Done {
        match body {
            Some(program) => self.program(program, Env { defined_in: Some(env.scope), ..env }),
            None => Ok(()),
        }
    }

    /// The first body with another `this`.
    fn inside(&mut self, block: &'a Block, this: Val<'a>, env: Env<'_, 'a>) -> Done {
        let Some(program) = &block.program else { return Ok(()) };
        let names = Names { names: &block.names, values: [this.clone(), Val::Undefined], outer: env.names };
        let names = if block.names.is_empty() { env.names } else { Some(&names) };
        let scope = Scope { this, outer: Some(env.scope) };
        self.program(program, Env { scope: &scope, names, defined_in: Some(env.scope), ..env })
    }

    fn each(&mut self, block: &'a Block, items: Val<'a>, env: Env<'_, 'a>) -> Done {
        match items.kind() {
            Kind::List(list) if !list.is_empty() => {
                for (i, item) in list.iter().enumerate() {
                    self.turn(block, (Val::Count(i), Val::Json(item)), (i, list.len()), env)?;
                }
            }
            Kind::Fields(fields) if !fields.is_empty() => {
                for (i, (key, value)) in fields.iter().enumerate() {
                    self.turn(block, (Val::Key(key), Val::Json(value)), (i, fields.len()), env)?;
                }
            }
            Kind::Merged(merged) => {
                self.step(merged.size() / 16)?;
                let entries = merged.entries();
                let count = entries.len();
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    let key = match key {
                        std::borrow::Cow::Borrowed(key) => Val::Key(key),
                        std::borrow::Cow::Owned(key) => Val::Made(key.into()),
                    };
                    self.turn(block, (key, value), (i, count), env)?;
                }
            }
            _ => self.branch(&block.inverse, env)?,
        }
        Ok(())
    }

    fn turn(&mut self, block: &'a Block, (key, item): (Val<'a>, Val<'a>), (index, count): (usize, usize), env: Env<'_, 'a>) -> Done {
        self.step(1)?;
        let Some(program) = &block.program else { return Ok(()) };
        let names = Names { names: &block.names, values: [item.clone(), key.clone()], outer: env.names };
        let names = if block.names.is_empty() { env.names } else { Some(&names) };
        let turn = Turn { key, index, is_last: index + 1 == count, outer: env.turn };
        let scope = Scope { this: item, outer: Some(env.scope) };
        self.program(program, Env { scope: &scope, turn: Some(&turn), names, defined_in: Some(env.scope), ..env })
    }

    // ---- partials ----

    fn partial(&mut self, partial: &'a Partial, env: Env<'_, 'a>) -> Done {
        let mut this = match &partial.context {
            Some(context) => self.value(context, env)?,
            None => env.scope.this.clone(),
        };
        if !partial.hash.is_empty() {
            let mut pairs = Vec::with_capacity(partial.hash.len());
            for (name, value) in &partial.hash {
                pairs.push((name.as_str(), self.value(value, env)?));
            }
            this = Val::Merged(Rc::new(Merged::new(this, Over::Pairs(pairs))));
        }
        if partial.indent.is_empty() {
            return self.include(partial, this, env);
        }
        let before = std::mem::take(&mut self.pieces);
        self.include(partial, this, env)?;
        let included = std::mem::replace(&mut self.pieces, before);
        self.indented(&included, &partial.indent)
    }

    fn include(&mut self, partial: &'a Partial, this: Val<'a>, env: Env<'_, 'a>) -> Done {
        let mut inlines = env.inlines;
        while let Some(frame) = inlines {
            self.step(1)?;
            if let Some(inline) = frame.list.get(&partial.name) {
                // The body sees what is around the place where it is defined.
                let around = frame.env.defined_in;
                let scope = Scope { this, outer: around };
                let env = Env { scope: &scope, turn: env.turn, names: frame.env.names, inlines: env.inlines, defined_in: around };
                return self.program(&inline.program, env);
            }
            inlines = frame.env.inlines;
        }
        match self.data.partials.get(&partial.name) {
            Some(program) => {
                let scope = Scope { this, outer: None };
                self.program(program, Env { scope: &scope, names: None, defined_in: None, ..env })
            }
            None => Err(Stop::Wrong(partial.place, format!("the partial \"{}\" is not defined where it is included", partial.name))),
        }
    }

    /// Writes what a partial gave, each of its lines behind the white space before the partial's tag.
    fn indented(&mut self, pieces: &[Piece], indent: &str) -> Done {
        let mut at_start = true;
        for piece in pieces {
            let Piece::Text(text) = piece else {
                if std::mem::replace(&mut at_start, false) {
                    self.write(indent)?;
                }
                self.pieces.push(piece.clone());
                continue;
            };
            // Counted when the partial wrote it.
            self.limits.bytes += text.len();
            for line in text.split_inclusive('\n') {
                if at_start {
                    self.write(indent)?;
                }
                self.write(line)?;
                at_start = line.ends_with('\n');
            }
        }
        Ok(())
    }
}
