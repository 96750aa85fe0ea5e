//! The tree of a template. Shapes follow handlebars.js, because its rules for white space are written for them.

use crate::prompts::helpers::Helper;
use serde_json::Value;
use std::collections::BTreeMap;

/// A place in a prompt's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
}

/// Partials by name.
pub type Partials = BTreeMap<String, Program>;

/// A sequence of nodes: a whole template, or the body of a block.
#[derive(Debug, Default)]
pub struct Program {
    /// Nodes in order.
    pub body: Vec<Node>,
    /// Partials that are defined in it, by name; known everywhere in it. Of two with one name the later one counts.
    pub inlines: BTreeMap<String, Inline>,
    /// Made of an `{{else if …}}`: its one node is a block.
    pub is_chained: bool,
}

/// One piece of a template.
#[derive(Debug)]
pub enum Node {
    /// Text as it is.
    Text(Text),
    /// `{{value}}` or `{{helper value}}`.
    Print(Print),
    /// `{{! … }}`.
    Comment(Strip),
    /// `{{#…}}…{{/…}}`.
    Block(Box<Block>),
    /// `{{> name}}`.
    Partial(Box<Partial>),
    /// `{{#*inline "name"}}…{{/inline}}`; moved to [`Program::inlines`] once white space is done.
    Inline(Inline),
}

/// `~` before and behind a tag's inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strip {
    /// `{{~`.
    pub open: bool,
    /// `~}}`.
    pub close: bool,
}

/// Text with the marks that the white-space rules need.
#[derive(Debug, Default)]
pub struct Text {
    /// As written; emptied once white space is done.
    pub original: String,
    /// What is left of it.
    pub value: String,
    /// A line's indentation was taken from its end.
    pub left_stripped: bool,
    /// The rest of a line was taken from its start.
    pub right_stripped: bool,
}

/// A value that is written out.
#[derive(Debug)]
pub struct Print {
    /// The value.
    pub value: Expr,
    /// Its tildes.
    pub strip: Strip,
}

/// A block.
#[derive(Debug)]
pub struct Block {
    /// What decides about it.
    pub head: Head,
    /// Names between `as |` and `|`.
    pub names: Vec<String>,
    /// Rendered when the head says yes.
    pub program: Option<Program>,
    /// Rendered when it says no.
    pub inverse: Option<Program>,
    /// Tildes of the opening tag.
    pub open: Strip,
    /// Tildes of `{{else}}`.
    pub middle: Strip,
    /// Tildes of the closing tag.
    pub close: Strip,
    /// Where it opens.
    pub place: Place,
}

/// What a block begins with.
#[derive(Debug)]
pub enum Head {
    /// `{{#items}}`: a value by itself.
    Section(Path),
    /// `{{#if …}}`: a helper.
    Call(Call),
}

/// A partial's inclusion.
#[derive(Debug)]
pub struct Partial {
    /// Its name.
    pub name: String,
    /// What it sees as `this`; the current one without.
    pub context: Option<Expr>,
    /// What it sees besides.
    pub hash: Vec<(String, Expr)>,
    /// White space before a tag that has its line for itself; put before each of the partial's lines.
    pub indent: String,
    /// Its tildes.
    pub strip: Strip,
    /// Where it stands.
    pub place: Place,
}

/// A partial that is defined inside a template.
#[derive(Debug)]
pub struct Inline {
    /// Its name.
    pub name: String,
    /// Its body.
    pub program: Program,
    /// Tildes of the opening tag.
    pub open: Strip,
    /// Tildes of the closing tag.
    pub close: Strip,
    /// Where it opens.
    pub place: Place,
}

/// Something with a value.
#[derive(Debug)]
pub enum Expr {
    /// `undefined`.
    Undefined,
    /// A text, number, truth value or `null`.
    Literal(Value),
    /// A variable.
    Path(Path),
    /// `(helper …)`, or the helper of a tag.
    Call(Call),
}

/// A helper with what it is given.
#[derive(Debug)]
pub struct Call {
    /// Which one.
    pub helper: Helper,
    /// Values by position.
    pub params: Vec<Expr>,
    /// Values by name.
    pub hash: Vec<(String, Expr)>,
    /// Where it stands.
    pub place: Place,
}

/// The way to a value: `user.name`, `../title`, `@index`.
#[derive(Debug)]
pub struct Path {
    /// Begins with `@`.
    pub is_data: bool,
    /// Begins with `this` or a dot: never a helper and never a name from `as |…|`.
    pub is_scoped: bool,
    /// Number of `../`.
    pub depth: usize,
    /// Names in order; none for `this`.
    pub parts: Vec<String>,
    /// As written.
    pub original: String,
    /// Where it stands.
    pub place: Place,
}

impl Block {
    /// Both bodies, where there are any.
    pub fn bodies(&self) -> impl Iterator<Item = &Program> {
        self.program.iter().chain(&self.inverse)
    }

    /// Whether its first body has a `this` of its own: one more `../` leads out of it.
    pub fn has_scope(&self) -> bool {
        match &self.head {
            Head::Section(_) => true,
            Head::Call(call) => matches!(call.helper, Helper::Each | Helper::With),
        }
    }
}
