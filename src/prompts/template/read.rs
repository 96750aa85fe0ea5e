//! Text to tree. Everything that will not render is refused here, with its place and with what to write instead.
//!
//! Source: the grammar of handlebars.js 4.7 (`spec/handlebars.l`, `spec/handlebars.yy` of the dotprompt repository say the same).

use super::scan::{Reader, Tag};
use super::space;
use super::tree::{Block, Call, Expr, Head, Inline, Node, Partial, Path, Place, Print, Program, Strip, Text};
use super::{MAX_DEPTH, MAX_LEVELS};
use crate::prompts::Problem;
use crate::prompts::helpers::{self, Asked, Helper, Position};
use serde_json::Value;

/// A problem and where it is.
pub type Fault = (Place, Problem);

/// Reads a template whose first character stands at `start` of its file.
///
/// # Errors
/// [`Problem::Syntax`], [`Problem::Unsupported`] and [`Problem::TooNested`] with the place of the first one.
pub fn read(source: &str, start: Place) -> Result<Program, Fault> {
    let mut parser = Parser { reader: Reader::new(source, start), depth: 0, levels: 0, names: Vec::new() };
    let (mut program, end) = parser.program()?;
    match end {
        End::File => {
            space::control(&mut program);
            Ok(program)
        }
        End::Else(_, place) => fault(place, "{{else}} stands outside of a block"),
        End::Chain(arm) => fault(arm.place, "{{else …}} stands outside of a block"),
        End::Close(name, _, place) => fault(place, format!("{{{{/{name}}}}} closes a block that was never opened")),
    }
}

/// A fault of syntax.
pub(super) fn fault<T>(place: Place, problem: impl Into<String>) -> Result<T, Fault> {
    Err((place, Problem::Syntax(problem.into())))
}

struct Parser<'s> {
    reader: Reader<'s>,
    depth: usize,
    levels: usize,
    /// Names from `as |…|` around here.
    names: Vec<String>,
}

/// What ended a sequence of nodes.
enum End {
    File,
    Else(Strip, Place),
    Chain(Arm),
    Close(String, Strip, Place),
}

/// The opening of a block, or an `{{else if …}}`.
struct Arm {
    head: Head,
    names: Vec<String>,
    /// As it must stand in the closing tag.
    title: String,
    strip: Strip,
    place: Place,
}

/// An arm with its body.
type Filled = (Arm, Program);

impl Parser<'_> {
    fn program(&mut self) -> Result<(Program, End), Fault> {
        let mut program = Program::default();
        let body = &mut program.body;
        loop {
            let mut texts = Vec::new();
            let has_tag = self.reader.text(&mut texts);
            body.extend(texts.into_iter().map(|text| Node::Text(Text { value: text.clone(), original: text, ..Text::default() })));
            if !has_tag {
                return Ok((program, End::File));
            }
            let place = self.reader.place();
            let (tag, open) = self.reader.tag()?;
            match tag {
                Tag::Comment(strip) => body.push(Node::Comment(strip)),
                Tag::RawBlock => body.push(self.raw_block(place)?),
                Tag::Value { is_triple } => body.push(self.print(place, open, is_triple)?),
                Tag::Partial => body.push(self.partial(place, open)?),
                Tag::Inline => body.push(Node::Inline(self.inline(place, open)?)),
                Tag::Block { is_inverted } => body.push(self.block(place, open, is_inverted)?),
                Tag::Else => {
                    let strip = self.reader.close(open)?;
                    return Ok((program, End::Else(strip, place)));
                }
                Tag::Chain => {
                    let arm = self.arm(place, open)?;
                    return Ok((program, End::Chain(arm)));
                }
                Tag::Close => {
                    let name = self.reader.callee()?.original;
                    let strip = self.reader.close(open)?;
                    return Ok((program, End::Close(name, strip, place)));
                }
                Tag::Unsupported(what) => return Err((place, Problem::Unsupported(what.into()))),
            }
        }
    }

    fn print(&mut self, place: Place, open: bool, is_triple: bool) -> Result<Node, Fault> {
        let (path, args) = (self.reader.callee()?, self.reader.arguments(0)?);
        let value = match self.classify(path, args, Position::Tag, place)? {
            (Head::Section(path), _) => Expr::Path(path),
            (Head::Call(call), _) => Expr::Call(call),
        };
        let strip = if is_triple { self.reader.close_triple(open)? } else { self.reader.close(open)? };
        Ok(Node::Print(Print { value, strip }))
    }

    /// A helper's call, or a variable; with the names from `as |…|`.
    fn classify(&self, path: Path, args: Args, position: Position, place: Place) -> Result<(Head, Vec<String>), Fault> {
        let Args { params, hash, names } = args;
        let name = path.parts.first().filter(|_| path.is_simple() && !self.names.contains(&path.parts[0]));
        let helper = match name {
            Some(name) => {
                let asked = Asked { name, position, params: params.len(), hash: hash.iter().map(|(key, _)| key.as_str()).collect() };
                helpers::resolve(&asked).or_else(|problem| fault(place, problem))?
            }
            None if params.is_empty() && hash.is_empty() => None,
            None => return fault(place, format!("\"{}\" is a variable: nothing can stand behind it in its tag", path.original)),
        };
        let takes_names = position == Position::Block && matches!(helper, Some(Helper::Each | Helper::With));
        if !names.is_empty() && !takes_names {
            return fault(place, "names between | and | go with {{#each …}} and {{#with …}} only");
        }
        let head = match helper {
            None => Head::Section(path),
            Some(helper) => {
                if let (Helper::Role, Some(Expr::Literal(role))) = (helper, params.first()) {
                    helpers::role(role.as_str().unwrap_or(&role.to_string())).or_else(|problem| fault(place, problem))?;
                }
                Head::Call(Call { helper, params, hash, place })
            }
        };
        Ok((head, names))
    }

    fn arm(&mut self, place: Place, open: bool) -> Result<Arm, Fault> {
        let (path, args) = (self.reader.callee()?, self.reader.arguments(0)?);
        let title = path.original.clone();
        let (head, names) = self.classify(path, args, Position::Block, place)?;
        let strip = self.reader.close(open)?;
        Ok(Arm { head, names, title, strip, place })
    }

    fn enter(&mut self, place: Place) -> Result<(), Fault> {
        self.levels += 1;
        if self.depth > MAX_DEPTH {
            return Err((place, Problem::TooNested(format!("blocks are nested deeper than {MAX_DEPTH}"))));
        }
        if self.levels > MAX_LEVELS {
            return Err((
                place,
                Problem::TooNested(format!("blocks and their {{{{else …}}}} branches are nested deeper than {MAX_LEVELS}")),
            ));
        }
        Ok(())
    }

    /// The body behind an opening tag or a branch.
    fn body(&mut self, names: &[String]) -> Result<(Program, End), Fault> {
        self.names.extend_from_slice(names);
        let body = self.program();
        self.names.truncate(self.names.len() - names.len());
        body
    }

    fn block(&mut self, place: Place, open: bool, is_inverted: bool) -> Result<Node, Fault> {
        let first = self.arm(place, open)?;
        let (title, levels) = (first.title.clone(), self.levels);
        self.depth += 1;
        self.enter(place)?;
        let (body, mut end) = self.body(&first.names)?;
        let mut arms: Vec<Filled> = vec![(first, body)];
        let mut otherwise = None;
        loop {
            end = match end {
                End::Chain(arm) if is_inverted => return fault(arm.place, "{{^…}} takes a plain {{else}} only"),
                End::Chain(arm) if otherwise.is_some() => return fault(arm.place, "an {{else …}} stands behind the last {{else}}"),
                End::Chain(arm) => {
                    self.enter(arm.place)?;
                    let (body, next) = self.body(&arm.names)?;
                    arms.push((arm, body));
                    next
                }
                End::Else(_, at) if otherwise.is_some() => return fault(at, "a block has one {{else}} at most"),
                End::Else(strip, _) => {
                    let (body, next) = self.program()?;
                    otherwise = Some((body, strip));
                    next
                }
                End::File => return fault(place, format!("{{{{#{title}}}}} is never closed: {{{{/{title}}}}} is missing")),
                End::Close(name, _, at) if name != title => {
                    return fault(at, format!("{{{{/{name}}}}} closes {{{{#{title}}}}} of line {}: write {{{{/{title}}}}}", place.line));
                }
                End::Close(_, strip, _) => {
                    (self.depth, self.levels) = (self.depth - 1, levels);
                    return Ok(Node::Block(Box::new(fold(arms, otherwise, strip, is_inverted))));
                }
            };
        }
    }

    fn raw_block(&mut self, place: Place) -> Result<Node, Fault> {
        let (path, args) = (self.reader.callee()?, self.reader.arguments(0)?);
        let title = path.original.clone();
        let (head, names) = self.classify(path, args, Position::RawBlock, place)?;
        let text = self.reader.raw_text(&title, place)?;
        let body = vec![Node::Text(Text { value: text.clone(), original: text, ..Text::default() })];
        let (program, none) = (Some(Program { body, ..Program::default() }), Strip::default());
        Ok(Node::Block(Box::new(Block { head, names, program, inverse: None, open: none, middle: none, close: none, place })))
    }

    fn partial(&mut self, place: Place, open: bool) -> Result<Node, Fault> {
        let name = self.reader.partial_name(place)?;
        let Args { mut params, hash, names } = self.reader.arguments(0)?;
        if params.len() > 1 || !names.is_empty() {
            return fault(place, format!("a partial takes one value and fields by name: write {{{{> {name} customer tone=\"formal\"}}}}"));
        }
        let strip = self.reader.close(open)?;
        Ok(Node::Partial(Box::new(Partial { name, context: params.pop(), hash, indent: String::new(), strip, place })))
    }

    fn inline(&mut self, place: Place, open: bool) -> Result<Inline, Fault> {
        let (path, args) = (self.reader.callee()?, self.reader.arguments(0)?);
        let strip = self.reader.close(open)?;
        let name = match (path.original.as_str(), args.params.as_slice(), args.hash.len() + args.names.len()) {
            ("inline", [Expr::Literal(Value::String(name))], 0) => name.clone(),
            _ => return Err((place, Problem::Unsupported("a block that begins with {{#* and is not {{#*inline \"name\"}}".into()))),
        };
        let levels = self.levels;
        self.depth += 1;
        self.enter(place)?;
        let (program, end) = self.program()?;
        (self.depth, self.levels) = (self.depth - 1, levels);
        match end {
            End::Close(closed, close, _) if closed == "inline" => Ok(Inline { name, program, open: strip, close, place }),
            _ => fault(place, format!("{{{{#*inline \"{name}\"}}}} is never closed: {{{{/inline}}}} is missing")),
        }
    }
}

/// What stands behind a name in a tag.
#[derive(Default)]
pub(super) struct Args {
    pub(super) params: Vec<Expr>,
    pub(super) hash: Vec<(String, Expr)>,
    pub(super) names: Vec<String>,
}

/// One block of its arms: each `{{else if …}}` is a block alone in the `{{else}}` before it.
fn fold(mut arms: Vec<Filled>, otherwise: Option<(Program, Strip)>, close: Strip, is_inverted: bool) -> Block {
    let mut inverse = otherwise;
    while arms.len() > 1 {
        let is_first_branch = arms.len() == 2;
        let Some((arm, body)) = arms.pop() else { break };
        let strip = arm.strip;
        // A branch behind a branch is closed, so to speak, by its own opening: handlebars.js has it so.
        let block = join(arm, body, inverse, if is_first_branch { close } else { strip });
        inverse = Some((Program { body: vec![Node::Block(Box::new(block))], is_chained: true, ..Program::default() }, strip));
    }
    let (arm, body) = arms.remove(0);
    let mut block = join(arm, body, inverse, close);
    if is_inverted {
        std::mem::swap(&mut block.program, &mut block.inverse);
    }
    block
}

fn join(arm: Arm, body: Program, inverse: Option<(Program, Strip)>, close: Strip) -> Block {
    let (inverse, middle) = inverse.map_or((None, Strip::default()), |(program, strip)| (Some(program), strip));
    let Arm { head, names, strip, place, .. } = arm;
    Block { head, names, program: Some(body), inverse, open: strip, middle, close, place }
}

impl Path {
    /// One plain name: what may be a helper's.
    fn is_simple(&self) -> bool {
        !self.is_data && !self.is_scoped && self.depth == 0 && self.parts.len() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &str) -> (Place, String) {
        let (place, problem) = read(source, Place { line: 1, column: 1 }).expect_err(source);
        (place, problem.to_string())
    }

    #[test]
    fn refusals_name_place_and_way_out() {
        for (source, line, column, text) in [
            ("a\n {{#if a}}b", 2, 2, "{{/if}} is missing"),
            ("{{#if a}}\n{{/unless}}", 2, 1, "write {{/if}}"),
            ("{{else}}", 1, 1, "outside of a block"),
            ("a {{name", 1, 3, "}} is missing"),
            ("{{> (lookup a 'b')}}", 1, 1, "computed"),
            ("{{#> card}}x{{/card}}", 1, 1, "{{> card"),
            ("{{> @partial-block}}", 1, 1, "block"),
            ("{{user name}}", 1, 1, "no helper \"user\""),
            ("{{role \"usr\"}}", 1, 1, "did you mean \"user\"?"),
            ("{{a.b c}}", 1, 1, "nothing can stand behind it"),
            ("{{#a as |x|}}{{/a}}", 1, 1, "{{#each"),
            ("{{json a b=1}}", 1, 1, "takes no \"b\""),
            ("{{json \"a}}", 1, 8, "quotation mark"),
        ] {
            let (place, problem) = refusal(source);
            assert!(problem.contains(text), "{source}: {problem}");
            assert_eq!((place.line, place.column), (line, column), "{source}: {problem}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| format!("{}x{}", "{{#if a}}".repeat(n), "{{/if}}".repeat(n));
        let read = |source: &str| read(source, Place { line: 1, column: 1 });
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert!(matches!(read(&nested(MAX_DEPTH + 1)), Err((_, Problem::TooNested(_)))));
        assert!(matches!(read(&nested(5000)), Err((_, Problem::TooNested(_)))));
        let chain = |n: usize| format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if b}}".repeat(n));
        assert!(read(&chain(MAX_LEVELS - 1)).is_ok());
        assert!(matches!(read(&chain(MAX_LEVELS)), Err((_, Problem::TooNested(_)))));
        let parentheses = |n: usize| format!("{{{{json {}a{}}}}}", "(not ".repeat(n), ")".repeat(n));
        assert!(read(&parentheses(super::super::MAX_PARENTHESES)).is_ok());
        assert!(matches!(read(&parentheses(super::super::MAX_PARENTHESES + 1)), Err((_, Problem::TooNested(_)))));
        assert!(read(&format!("{{{{json {}", "(".repeat(30_000))).is_err());
        assert!(read(&"{{#if a}}{{/if}}".repeat(3000)).is_ok(), "blocks beside each other are not deep");
    }
}
