//! Blocks and partials: what gives a body its surroundings.

use super::super::eval::{Done, Piece, Run};
use super::super::value::{Kind, Merged, Over, Val};
use super::scope::{self, RESUME, UPS};
use super::{Mend, Op, Site, number, text, texts, wrong};
use handlebars::{BlockContext, BlockParams, HelperResult, Output, RenderContext, Renderable, Template};
use std::borrow::Cow;
use std::sync::Arc;

/// The entry of a list or an object, by key, and its place among all.
struct Entry<'a> {
    key: Val<'a>,
    value: Val<'a>,
    index: usize,
    count: usize,
}

impl<'a> Mend<'_, 'a> {
    /// `{{#each x}}`, `{{#with x}}`, `{{#x}}`.
    pub(super) fn block<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let value = {
            let mut run = self.state.lock();
            run.step(1 + texts(site.helper))?;
            run.param(site.helper, 0)
        };
        let (program, inverse) = (site.helper.template(), site.helper.inverse());
        match (self.op, value.kind()) {
            (Op::Each, _) | (Op::Any, Kind::List(_)) => self.each(site, value, rc, out),
            (Op::Any, Kind::Bool(true)) => site.render(program, rc, out),
            (Op::Any, Kind::Bool(false) | Kind::Undefined | Kind::Null) => site.render(inverse, rc, out),
            (Op::Any, _) | (_, Kind::Number(_)) => self.inside(site, value, rc, out),
            _ if value.is_truthy() => self.inside(site, value, rc, out),
            _ => site.render(inverse, rc, out),
        }
    }

    /// The first body with another `this`.
    fn inside<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        this: Val<'a>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let mut block = BlockContext::new();
        {
            let mut run = self.state.lock();
            let this = run.keep(this);
            site.name(&mut block, &this, &run.keep(Val::Undefined))?;
            block.set_base_value(this);
        }
        rc.push_block(block);
        site.render(site.helper.template(), rc, out)?;
        rc.pop_block();
        Ok(())
    }

    fn each<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        items: Val<'a>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let entry = |key, value, (index, count)| Entry { key, value, index, count };
        match items.kind() {
            Kind::List(list) if !list.is_empty() => {
                let entries = list.iter().enumerate().map(|(i, item)| entry(Val::count(i), Val::Json(item), (i, list.len())));
                self.turns(site, entries, rc, out)
            }
            Kind::Fields(fields) if !fields.is_empty() => {
                let entries = fields.iter().enumerate();
                let entries = entries.map(|(i, (key, value))| entry(Val::Key(key), Val::Json(value), (i, fields.len())));
                self.turns(site, entries, rc, out)
            }
            Kind::Merged(merged) => {
                self.state.lock().step(merged.work() / 4)?;
                let entries = merged.entries();
                let count = entries.len();
                let entries = entries.into_iter().enumerate().map(|(i, (key, value))| {
                    let key = match key {
                        Cow::Borrowed(key) => Val::Key(key),
                        Cow::Owned(key) => Val::Made(key.into()),
                    };
                    entry(key, value, (i, count))
                });
                self.turns(site, entries, rc, out)
            }
            _ => site.render(site.helper.inverse(), rc, out),
        }
    }

    fn turns<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        entries: impl Iterator<Item = Entry<'a>>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        rc.push_block(BlockContext::new());
        for Entry { key, value, index, count } in entries {
            let before = {
                let mut run = self.state.lock();
                run.step(1)?;
                let before = run.values.len();
                let (value, key) = (run.keep(value), run.keep(key));
                if let Some(block) = rc.block_mut() {
                    site.name(block, &value, &key)?;
                    block.set_base_value(value);
                    block.set_local_var("index", index.into());
                    block.set_local_var("key", key);
                    block.set_local_var("last", (index + 1 == count).into());
                }
                before
            };
            site.render(site.helper.template(), rc, out)?;
            self.state.lock().values.truncate(before);
        }
        rc.pop_block();
        Ok(())
    }

    /// A body in which inline partials are known: they are the first things in it.
    pub(super) fn body<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        self.state.lock().step(number(site.helper, 1))?;
        let mut block = BlockContext::new();
        block.set_local_var(UPS, number(site.helper, 0).into());
        rc.push_block(block);
        site.render(site.helper.template(), rc, out)?;
        rc.pop_block();
        Ok(())
    }

    /// `{{> name context key=value}}`.
    pub(super) fn include<'reg: 'rc, 'rc>(
        &self,
        site: &Site<'_, 'reg, 'rc>,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let (name, indent) = (text(site.helper, 0), text(site.helper, 1));
        let (inline, passed) = scope::look(rc, |blocks| scope::partial(blocks, name));
        let found = inline.or_else(|| site.registry.get_template(name).map(|template| (template, 0)));
        let Some((template, resume)) = found else {
            return Err(wrong(site.helper, 2, format!("the partial \"{name}\" is not defined where it is included")).into());
        };
        let mut block = BlockContext::new();
        block.set_local_var(RESUME, resume.into());
        let outer = {
            let mut run = self.state.lock();
            run.step(1 + passed / 8 + texts(site.helper))?;
            let this = run.partial_this(site, rc);
            block.set_base_value(run.keep(this));
            if indent.is_empty() { Vec::new() } else { std::mem::take(&mut run.pieces) }
        };
        rc.push_block(block);
        site.render(Some(template), rc, out)?;
        rc.pop_block();
        if !indent.is_empty() {
            let mut run = self.state.lock();
            let included = std::mem::replace(&mut run.pieces, outer);
            run.indented(included, indent)?;
        }
        Ok(())
    }
}

impl<'reg: 'rc, 'rc> Site<'_, 'reg, 'rc> {
    fn render(&self, body: Option<&'rc Template>, rc: &mut RenderContext<'reg, 'rc>, out: &mut dyn Output) -> HelperResult {
        body.map_or(Ok(()), |body| body.render(self.registry, self.context, rc, out))
    }

    /// Gives a block the names from `as |…|`.
    fn name(&self, block: &mut BlockContext<'rc>, first: &serde_json::Value, second: &serde_json::Value) -> HelperResult {
        let names = self.helper.block_param().map(|name| (name, None));
        let Some((item, key)) = names.or(self.helper.block_param_pair().map(|(item, key)| (item, Some(key)))) else { return Ok(()) };
        let mut params = BlockParams::new();
        if let Some(key) = key {
            params.add_value(key, second.clone())?;
        }
        params.add_value(item, first.clone())?;
        block.set_block_params(params);
        Ok(())
    }
}

impl<'a> Run<'a> {
    /// What a partial sees as `this`.
    fn partial_this(&self, site: &Site<'_, '_, '_>, rc: &mut RenderContext<'_, '_>) -> Val<'a> {
        let helper = site.helper;
        let base = match helper.hash_get("this") {
            Some(context) => self.given(Some(context)),
            None => scope::look(rc, |blocks| scope::this(blocks, 0)).map_or(Val::Undefined, |this| self.kept(&this)),
        };
        let pairs = (4..helper.params().len()).step_by(2);
        let pairs: Vec<_> = pairs.map(|at| (text(helper, at).to_string(), self.param(helper, at + 1))).collect();
        if pairs.is_empty() { base } else { Val::Merged(Arc::new(Merged::new(base, Over::Pairs(pairs)))) }
    }

    /// Writes what a partial gave, each of its lines behind the white space before the partial's tag.
    fn indented(&mut self, pieces: Vec<Piece>, indent: &str) -> Done {
        let mut at_start = true;
        for piece in pieces {
            let Piece::Text(text) = piece else {
                if std::mem::replace(&mut at_start, false) {
                    self.write(indent)?;
                }
                self.pieces.push(piece);
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
