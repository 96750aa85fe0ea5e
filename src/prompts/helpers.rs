//! The dotprompt helpers: `role`, `history`, `section`, `media` (structure), `json`, `ifEquals`, `unlessEquals`.
//!
//! Structure is never text: a structure helper notes what it means in [`Marks`] and writes a marker made of a sentinel that is random
//! per render and the note's number. A variable cannot contain the sentinel, so it can never become a message, a role or an image.

use handlebars::{Context, Handlebars, Helper, HelperDef, JsonTruthy, Output, RenderContext, RenderError, RenderErrorReason, Renderable};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Names that a template can call, for messages.
pub const NAMES: &[&str] = &[
    "role",
    "history",
    "section",
    "media",
    "json",
    "ifEquals",
    "unlessEquals",
    "if",
    "unless",
    "each",
    "with",
    "lookup",
    "raw",
    "eq",
    "ne",
    "gt",
    "gte",
    "lt",
    "lte",
    "and",
    "or",
    "not",
    "len",
];
pub(super) const STEP_TAG: &str = "{{__step}}";
const STEP: &str = "__step";
const STRUCTURE: &[&str] = &["role", "history", "section", "media", STEP];

/// Whether a name calls a helper.
pub fn is_helper(name: &str) -> bool {
    NAMES.contains(&name) || name == STEP
}

/// A registry with the helpers that need nothing of a render. Nothing is HTML-escaped.
pub(super) fn registry() -> Handlebars<'static> {
    let mut registry = Handlebars::new();
    registry.register_escape_fn(handlebars::no_escape);
    // `log` would write variables, which may be personal data, to the program's log.
    registry.unregister_helper("log");
    registry.register_helper("json", Box::new(Json));
    registry.register_helper("ifEquals", Box::new(Compare { wanted: true }));
    registry.register_helper("unlessEquals", Box::new(Compare { wanted: false }));
    registry.register_helper("blockHelperMissing", Box::new(Section));
    registry
}

/// What a structure helper meant.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mark {
    Role(String),
    History,
    Section(String),
    Media { url: String, content_type: Option<String> },
}

/// The notes of one render, and its step counter.
pub(super) struct Marks {
    sentinel: String,
    notes: Mutex<Vec<Mark>>,
    steps_left: AtomicUsize,
}

impl Marks {
    pub(super) fn new(steps: usize) -> Self {
        let sentinel = format!("\u{2}{:032x}:", rand::random::<u128>());
        Marks { sentinel, notes: Mutex::new(Vec::new()), steps_left: AtomicUsize::new(steps) }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.steps_left.load(Ordering::Relaxed) == 0
    }

    /// Makes the structure helpers of this render known to it.
    pub(super) fn register<'reg: 'rc, 'rc>(&'rc self, context: &mut RenderContext<'reg, 'rc>) {
        for &name in STRUCTURE {
            context.register_local_helper(name, Box::new(Structure { name, marks: self }));
        }
    }

    /// Cuts rendered text into plain pieces and marks, in order.
    pub(super) fn cut(&self, text: &str) -> Vec<Piece> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = Vec::new();
        for (i, part) in text.split(self.sentinel.as_str()).enumerate() {
            let mut rest = part;
            if i > 0 {
                let (number, after) = part.split_once(';').unwrap_or((part, ""));
                if let Some(mark) = number.parse::<usize>().ok().and_then(|n| notes.get(n)) {
                    pieces.push(Piece::Mark(mark.clone()));
                }
                rest = after;
            }
            if !rest.is_empty() {
                pieces.push(Piece::Text(rest.to_string()));
            }
        }
        pieces
    }

    fn note(&self, mark: Mark, out: &mut dyn Output) -> Result<(), RenderError> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(mark);
        out.write(&format!("{}{};", self.sentinel, notes.len() - 1))?;
        Ok(())
    }

    fn step(&self) -> Result<(), RenderError> {
        let spent = self.steps_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1).filter(|left| *left > 0));
        if spent.is_err() {
            self.steps_left.store(0, Ordering::Relaxed);
            return Err(RenderErrorReason::Other("too many steps".into()).into());
        }
        Ok(())
    }
}

/// A piece of rendered text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Mark(Mark),
}

struct Structure<'a> {
    name: &'static str,
    marks: &'a Marks,
}

impl HelperDef for Structure<'_> {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> Result<(), RenderError> {
        let mark = match self.name {
            STEP => return self.marks.step(),
            "history" => Mark::History,
            "role" => Mark::Role(text_argument(helper, "role")?),
            "section" => Mark::Section(text_argument(helper, "section")?),
            _ => Mark::Media {
                url: hash_text(helper, "url").ok_or_else(|| RenderErrorReason::ParamNotFoundForName("media", "url".into()))?,
                content_type: hash_text(helper, "contentType"),
            },
        };
        self.marks.note(mark, out)
    }
}

fn text_argument(helper: &Helper<'_>, name: &'static str) -> Result<String, RenderError> {
    let value = helper.param(0).and_then(|param| param.value().as_str());
    value.map(String::from).ok_or_else(|| RenderErrorReason::ParamNotFoundForIndex(name, 0).into())
}

fn hash_text(helper: &Helper<'_>, key: &str) -> Option<String> {
    helper.hash_get(key).and_then(|value| value.value().as_str()).map(String::from)
}

/// `{{json value indent=2}}`.
struct Json;

impl HelperDef for Json {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> Result<(), RenderError> {
        let value = helper.param(0).ok_or(RenderErrorReason::ParamNotFoundForIndex("json", 0))?.value();
        let indent = helper.hash_get("indent").and_then(|indent| indent.value().as_u64()).unwrap_or(0).min(16) as usize;
        if indent == 0 {
            out.write(&value.to_string())?;
            return Ok(());
        }
        let spaces = " ".repeat(indent);
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut text, formatter))
            .map_err(RenderErrorReason::from)?;
        out.write(&String::from_utf8_lossy(&text))?;
        Ok(())
    }
}

/// `{{#ifEquals a b}}…{{else}}…{{/ifEquals}}` and its opposite; strict: `5` is not `"5"`.
struct Compare {
    wanted: bool,
}

impl HelperDef for Compare {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        registry: &'reg Handlebars<'reg>,
        context: &'rc Context,
        render: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> Result<(), RenderError> {
        let (Some(a), Some(b)) = (helper.param(0), helper.param(1)) else {
            return Err(RenderErrorReason::ParamNotFoundForIndex("ifEquals", 1).into());
        };
        let equal = match (a.value().as_f64(), b.value().as_f64()) {
            (Some(a), Some(b)) => a == b,
            // A missing value is JavaScript's undefined: equal to another missing one, not to null.
            _ => a.value() == b.value() && a.is_value_missing() == b.is_value_missing(),
        };
        let branch = if equal == self.wanted { helper.template() } else { helper.inverse() };
        branch.map_or(Ok(()), |template| template.render(registry, context, render, out))
    }
}

/// `{{#items}}…{{/items}}`, which handlebars.js has and the Rust crate leaves to a hook: `each` over lists, `with` over objects,
/// `if` for the rest.
struct Section;

impl HelperDef for Section {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        registry: &'reg Handlebars<'reg>,
        context: &'rc Context,
        render: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> Result<(), RenderError> {
        let inside = render.context();
        let root = inside.as_deref().unwrap_or(context);
        let value = render.evaluate(root, helper.name())?.as_json().clone();
        let items = match value {
            Value::Array(items) => items,
            other if other.is_truthy(false) => vec![other],
            _ => Vec::new(),
        };
        if items.is_empty() {
            return helper.inverse().map_or(Ok(()), |template| template.render(registry, context, render, out));
        }
        let Some(body) = helper.template() else { return Ok(()) };
        for item in items {
            if item == Value::Bool(true) {
                body.render(registry, context, render, out)?;
                continue;
            }
            let mut block = handlebars::BlockContext::new();
            block.set_base_value(item);
            render.push_block(block);
            let rendered = body.render(registry, context, render, out);
            render.pop_block();
            rendered?;
        }
        Ok(())
    }
}
