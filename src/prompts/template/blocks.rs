//! Blocks and partials: the part of [`super::eval`] that gives a body its surroundings.

use super::eval::{Done, Env, Names, Piece, Render, Scope, Stop, Turn};
use super::tree::{Block, Call, Head, Partial, Program};
use super::value::{Kind, Merged, Over, Val};
use crate::prompts::helpers::Helper;
use std::borrow::Cow;
use std::rc::Rc;

impl<'a> Render<'a> {
    pub(super) fn block(&mut self, block: &'a Block, env: Env<'_, 'a>) -> Done {
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
                self.step(merged.work() / 4)?;
                let entries = merged.entries();
                let count = entries.len();
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    let key = match key {
                        Cow::Borrowed(key) => Val::Key(key),
                        Cow::Owned(key) => Val::Made(key.into()),
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

    pub(super) fn partial(&mut self, partial: &'a Partial, env: Env<'_, 'a>) -> Done {
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
