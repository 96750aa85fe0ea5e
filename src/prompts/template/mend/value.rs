//! Helpers that have a value.

use super::super::eval::{Run, Stop};
use super::super::value::{Kind, Val, length};
use super::{Op, number, scope, text, texts};
use crate::prompts::helpers::Test;
use handlebars::{Helper, RenderContext};
use std::cmp::Ordering;

impl<'a> Run<'a> {
    /// The value of a call.
    pub(super) fn value(&mut self, op: Op, helper: &Helper<'_>, rc: &mut RenderContext<'_, '_>) -> Result<Val<'a>, Stop> {
        self.step(1 + texts(helper))?;
        match op {
            Op::Get => {
                let ups = number(helper, 0);
                let this = match rc.block().and_then(|block| block.base_value()).filter(|_| ups == 0) {
                    Some(this) => self.kept(this),
                    None => scope::look(rc, |blocks| scope::this(blocks, ups)).map_or(Val::Undefined, |this| self.kept(&this)),
                };
                self.follow(this, helper, 1)
            }
            Op::Named => {
                let (value, passed) = scope::look(rc, |blocks| scope::named(blocks, text(helper, 0)));
                self.step(passed / 16)?;
                let value = value.map_or(Val::Undefined, |value| self.kept(&value));
                self.follow(value, helper, 1)
            }
            Op::Data => {
                let value = self.data(helper, rc);
                self.follow(value, helper, 2)
            }
            Op::Given => Ok(self.param(helper, 0)),
            Op::Lookup => {
                let (holder, key) = (self.param(helper, 0), self.param(helper, 1));
                self.step(holder.cost() / 16 + holder.weight() / 64 + key.weight() / 64)?;
                Ok(match key.scalar() {
                    Some(key) if holder.is_truthy() => holder.get(&key),
                    _ if holder.is_truthy() => Val::Undefined,
                    _ => holder,
                })
            }
            Op::Json => {
                let text = self.json_text(helper)?;
                Ok(Val::Made(text.into()))
            }
            Op::Len => self.len(&self.param(helper, 0)),
            Op::Truthy => {
                let value = self.param(helper, 0);
                let counts_zero = self.named(helper, "includeZero").is_truthy() && matches!(value.kind(), Kind::Number(_));
                Ok(Val::Bool(value.is_truthy() || counts_zero))
            }
            Op::Same => self.compare(Test::Eq, helper).map(Val::Bool),
            Op::Test(test) => self.compare(test, helper).map(Val::Bool),
            _ => Ok(Val::Undefined),
        }
    }

    /// Follows the parts that the compiler wrote.
    fn follow(&mut self, mut value: Val<'a>, helper: &Helper<'_>, at: usize) -> Result<Val<'a>, Stop> {
        let parts = helper.param(at).and_then(|param| param.value().as_array());
        for part in parts.into_iter().flatten().filter_map(|part| part.as_str()) {
            self.step(value.cost() / 16 + value.weight() / 64 + part.len() / 64)?;
            value = value.get(part);
        }
        Ok(value)
    }

    fn data(&self, helper: &Helper<'_>, rc: &mut RenderContext<'_, '_>) -> Val<'a> {
        let (ups, name) = (number(helper, 0), text(helper, 1));
        if ups > 0 || matches!(name, "key" | "index" | "first" | "last") {
            let Ok(turn) = scope::look(rc, |blocks| scope::turn(blocks, ups)) else { return Val::Undefined };
            match (turn, name) {
                (Some(turn), "key") => return self.kept(&turn.key),
                (Some(turn), "index") => return Val::literal(&turn.index),
                (Some(turn), "first") => return Val::Bool(turn.index == 0),
                (Some(turn), "last") => return Val::Bool(turn.is_last),
                _ => {}
            }
        }
        match self.data.context.and_then(|context| context.get(name)) {
            _ if name == "root" => self.data.root.clone(),
            Some(value) => Val::Json(value),
            None if name == "metadata" => Val::Json(self.data.metadata),
            None => Val::Undefined,
        }
    }

    fn len(&mut self, value: &Val<'a>) -> Result<Val<'a>, Stop> {
        self.step(value.weight() / 64)?;
        Ok(match value.kind() {
            Kind::List(items) => Val::count(items.len()),
            Kind::Text(text) => Val::count(length(text)),
            Kind::Fields(fields) => Val::count(fields.len()),
            Kind::Merged(merged) => {
                self.step(merged.work() / 4)?;
                Val::count(merged.entries().len())
            }
            _ => Val::count(0),
        })
    }

    fn compare(&mut self, test: Test, helper: &Helper<'_>) -> Result<bool, Stop> {
        if let Test::And | Test::Or = test {
            let is_decided = helper.params().iter().any(|param| self.given(Some(param)).is_truthy() == (test == Test::Or));
            return Ok(is_decided == (test == Test::Or));
        }
        let (a, b) = (self.param(helper, 0), self.param(helper, 1));
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
