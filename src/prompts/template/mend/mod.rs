//! Our helpers for the crate `handlebars`: what it does otherwise than handlebars.js, they do as handlebars.js does.
//!
//! [`scope`] finds `this`, `../`, `@index` and names from `as |…|` in the crate's blocks, [`value`] looks up and compares, [`write`] turns
//! values into text and makes structure, [`block`] gives bodies their surroundings. The crate copies what it hands from helper to helper
//! or keeps in a block; a value is therefore handed on by its number in [`Run::values`], and no variable is ever copied.

mod block;
mod scope;
mod value;
mod write;

use super::eval::{Run, State, Stop};
use super::value::Val;
use crate::prompts::helpers::{Helper as Called, Test};
use handlebars::{Context, Handlebars, Helper, HelperDef, HelperResult, Output, PathAndJson, RenderContext, RenderError, ScopedJson};

/// A helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// `depth parts`: a name, `this`, `../name`.
    Get,
    /// `name parts`: a name from `as |…|`.
    Named,
    /// `depth name parts`: `@name`.
    Data,
    /// `value`: the value itself.
    Given,
    /// `holder key`.
    Lookup,
    /// `value indent=`.
    Json,
    /// `value`: its length.
    Len,
    /// `value includeZero=`: what `if` makes of it.
    Truthy,
    /// `value value`: `===`.
    Same,
    /// Comparisons and logic.
    Test(Test),
    /// `role line column`.
    Role,
    /// `line column`.
    History,
    /// `name line column`.
    Section,
    /// `line column url= contentType=`.
    Media,
    /// `{{#each value}}`.
    Each,
    /// `{{#with value}}`.
    With,
    /// `{{#value}}`.
    Any,
    /// `ups cost`: a body in which inline partials are known.
    Body,
    /// `name indent line column [key value]… this=`: a partial.
    Include,
}

/// All of them.
const OPS: [Op; 27] = [
    Op::Get,
    Op::Named,
    Op::Data,
    Op::Given,
    Op::Lookup,
    Op::Json,
    Op::Len,
    Op::Truthy,
    Op::Same,
    Op::Test(Test::Eq),
    Op::Test(Test::Ne),
    Op::Test(Test::Gt),
    Op::Test(Test::Gte),
    Op::Test(Test::Lt),
    Op::Test(Test::Lte),
    Op::Test(Test::And),
    Op::Test(Test::Or),
    Op::Test(Test::Not),
    Op::Role,
    Op::History,
    Op::Section,
    Op::Media,
    Op::Each,
    Op::With,
    Op::Any,
    Op::Body,
    Op::Include,
];

impl Op {
    /// Its name for the crate. None is ever written by a user.
    pub(super) fn name(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Named => "named",
            Op::Data => "data",
            Op::Given => "given",
            Op::Lookup => "lookup",
            Op::Json => "json",
            Op::Len => "len",
            Op::Truthy => "truthy",
            Op::Same => "same",
            Op::Test(Test::Eq) => "eq",
            Op::Test(Test::Ne) => "ne",
            Op::Test(Test::Gt) => "gt",
            Op::Test(Test::Gte) => "gte",
            Op::Test(Test::Lt) => "lt",
            Op::Test(Test::Lte) => "lte",
            Op::Test(Test::And) => "and",
            Op::Test(Test::Or) => "or",
            Op::Test(Test::Not) => "not",
            Op::Role => "role",
            Op::History => "history",
            Op::Section => "section",
            Op::Media => "media",
            Op::Each => "each",
            Op::With => "with",
            Op::Any => "any",
            Op::Body => "body",
            Op::Include => "include",
        }
    }

    /// Whether it has a value.
    fn is_value(self) -> bool {
        !matches!(self, Op::Role | Op::History | Op::Section | Op::Media | Op::Each | Op::With | Op::Any | Op::Body | Op::Include)
    }

    /// The one for a helper of the template. Conditions are the crate's own; their value is [`Op::Truthy`] or [`Op::Same`].
    pub(super) fn of(helper: Called) -> Self {
        match helper {
            Called::Role => Op::Role,
            Called::History => Op::History,
            Called::Section => Op::Section,
            Called::Media => Op::Media,
            Called::Json => Op::Json,
            Called::IfEquals | Called::UnlessEquals => Op::Same,
            Called::If | Called::Unless | Called::Raw => Op::Truthy,
            Called::Each => Op::Each,
            Called::With => Op::With,
            Called::Lookup => Op::Lookup,
            Called::Test(test) => Op::Test(test),
            Called::Len => Op::Len,
        }
    }
}

/// Makes the helpers known for one render, and its root.
pub(super) fn prepare<'s>(rc: &mut RenderContext<'_, 's>, state: &'s State<'_>) {
    for op in OPS {
        rc.register_local_helper(op.name(), Box::new(Mend { op, state }));
    }
    let mut run = state.lock();
    let root = run.data.root.clone();
    let root = run.keep(root);
    if let Some(block) = rc.block_mut() {
        block.set_base_value(root);
    }
}

/// A helper in a render.
struct Mend<'s, 'a> {
    op: Op,
    state: &'s State<'a>,
}

/// A call, with what the crate hands down.
struct Site<'h, 'reg, 'rc> {
    helper: &'h Helper<'rc>,
    registry: &'reg Handlebars<'reg>,
    context: &'rc Context,
}

impl HelperDef for Mend<'_, '_> {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        rc: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        let mut run = self.state.lock();
        let value = run.value(self.op, helper, rc)?;
        Ok(run.hand_on(value))
    }

    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        registry: &'reg Handlebars<'reg>,
        context: &'rc Context,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let site = Site { helper, registry, context };
        match self.op {
            Op::Each | Op::With | Op::Any => self.block(&site, rc, out),
            Op::Body => self.body(&site, rc, out),
            Op::Include => self.include(&site, rc, out),
            op => {
                let mut run = self.state.lock();
                // Nothing that a tag makes is needed behind it.
                let kept = run.values.len();
                run.step(if op.is_value() { 1 } else { 1 + texts(helper) })?;
                run.print(op, helper, rc)?;
                run.values.truncate(kept);
                Ok(())
            }
        }
    }
}

impl<'a> Run<'a> {
    /// Keeps a value and gives its number.
    fn keep(&mut self, value: Val<'a>) -> serde_json::Value {
        self.values.push(value);
        (self.values.len() - 1).into()
    }

    /// The value of a number.
    fn kept(&self, number: &serde_json::Value) -> Val<'a> {
        let at = number.as_u64().and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.values.get(at)).cloned().unwrap_or(Val::Undefined)
    }

    /// A value as the crate takes it from a helper. What it takes as a constant instead stands in the template.
    fn hand_on<'rc>(&mut self, value: Val<'a>) -> ScopedJson<'rc> {
        match value {
            Val::Undefined => ScopedJson::Missing,
            // Read by the crate's own `if`; ours know a truth value when they see one.
            Val::Bool(value) => ScopedJson::Derived(value.into()),
            value => ScopedJson::Derived(self.keep(value)),
        }
    }

    /// What a helper was given.
    fn given(&self, param: Option<&PathAndJson<'_>>) -> Val<'a> {
        let Some(param) = param.filter(|param| !param.is_value_missing()) else { return Val::Undefined };
        match (param.try_get_constant_value(), param.value()) {
            (Some(literal), _) => Val::literal(literal),
            (None, serde_json::Value::Bool(value)) => Val::Bool(*value),
            (None, number) => self.kept(number),
        }
    }

    fn param(&self, helper: &Helper<'_>, at: usize) -> Val<'a> {
        self.given(helper.param(at))
    }

    fn named(&self, helper: &Helper<'_>, name: &str) -> Val<'a> {
        self.given(helper.hash_get(name))
    }
}

/// Steps for texts of the template in a call: they are copied or compared.
fn texts(helper: &Helper<'_>) -> usize {
    let given = helper.params().iter().chain(helper.hash().values());
    given.filter_map(|param| param.try_get_constant_value()?.as_str()).map(|text| text.len() / 64).sum()
}

/// A whole number that the compiler wrote.
fn number(helper: &Helper<'_>, at: usize) -> usize {
    helper.param(at).and_then(|param| param.value().as_u64()).and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}

/// A text that the compiler wrote.
fn text<'rc>(helper: &Helper<'rc>, at: usize) -> &'rc str {
    helper.param(at).and_then(|param| param.try_get_constant_value()).and_then(|text| text.as_str()).unwrap_or_default()
}

/// A refusal at the place that the compiler wrote.
fn wrong(helper: &Helper<'_>, line_at: usize, problem: impl Into<String>) -> Stop {
    Stop::Wrong(super::tree::Place { line: number(helper, line_at), column: number(helper, line_at + 1) }, problem.into())
}
