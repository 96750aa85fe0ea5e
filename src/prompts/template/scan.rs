//! Characters to tags, names and values: the lexical part of [`super::read`].

use super::read::{Args, Fault, fault};
use super::space::is_space;
use super::tree::{Call, Expr, Path, Place, Strip};
use super::{MAX_ARGUMENTS, MAX_LEVELS, MAX_PARENTHESES, MAX_SEGMENTS};
use crate::prompts::Problem;
use crate::prompts::helpers::{self, Asked, Position};
use serde_json::Value;
use std::cell::Cell;

/// A position in a source.
pub(super) struct Reader<'s> {
    source: &'s str,
    at: usize,
    start: Place,
    /// Where each line begins.
    lines: Vec<usize>,
    /// The last place asked for: position, line, characters before it. Asking again counts only from there, so that one long line
    /// with many tags is not counted over and over.
    last: Cell<(usize, usize, usize)>,
}

/// What a tag is, by its first characters.
pub(super) enum Tag {
    /// Read to its end.
    Comment(Strip),
    RawBlock,
    Value {
        is_triple: bool,
    },
    Partial,
    Inline,
    Block {
        is_inverted: bool,
    },
    Else,
    Chain,
    Close,
    Unsupported(&'static str),
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s str, start: Place) -> Self {
        let lines = std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Reader { source, at: 0, start, lines, last: Cell::new((0, 0, 0)) }
    }

    /// Where the reader stands in the file.
    pub(super) fn place(&self) -> Place {
        let line = self.lines.partition_point(|&begin| begin <= self.at) - 1;
        let (from, counted) = match self.last.get() {
            (at, last, column) if last == line && at <= self.at => (at, column),
            _ => (self.lines[line], 0),
        };
        let column = counted + self.source[from..self.at].chars().count();
        self.last.set((self.at, line, column));
        Place { line: self.start.line + line, column: column + if line == 0 { self.start.column } else { 1 } }
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(is_space).len();
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn take(&mut self, bytes: usize) -> &'s str {
        let taken = &self.rest()[..bytes];
        self.at += bytes;
        taken
    }

    /// Reads text up to the next tag; whether there is one. `\{{` is text, `\\{{` is a backslash and a tag.
    pub(super) fn text(&mut self, texts: &mut Vec<String>) -> bool {
        let mut push = |text: &str| {
            if !text.is_empty() {
                texts.push(text.to_string());
            }
        };
        loop {
            let Some(found) = self.rest().find("{{") else {
                push(self.take(self.rest().len()));
                return false;
            };
            let before = self.take(found);
            if before.ends_with("\\\\") || !before.ends_with('\\') {
                push(if before.ends_with("\\\\") { &before[..found - 1] } else { before });
                return true;
            }
            push(&before[..found - 1]);
            let next = self.rest()[2..].find("{{").map(|n| n + 2);
            let slashes = |end: usize| self.rest()[2..end].bytes().rev().take(2).take_while(|&byte| byte == b'\\').count();
            let end = next.map_or(self.rest().len(), |end| end - slashes(end));
            push(self.take(end));
        }
    }

    /// Reads the beginning of a tag; what it is, and whether a tilde opens it.
    pub(super) fn tag(&mut self) -> Result<(Tag, bool), Fault> {
        if self.eat("{{{{") {
            return Ok((Tag::RawBlock, false));
        }
        let begin = self.at;
        self.at += 2;
        let open = self.eat("~");
        if self.eat("{") {
            return Ok((Tag::Value { is_triple: true }, open));
        }
        self.skip_space();
        let tag = match self.rest().chars().next() {
            Some('!') => Tag::Comment(self.comment(begin, open)?),
            Some('#') if self.eat("#>") => {
                Tag::Unsupported("a partial with a block, {{#> card}}…{{/card}}; give it what it needs by name, {{> card text=summary}},")
            }
            Some('#') if self.eat("#*") => Tag::Inline,
            Some('#') => self.one(Tag::Block { is_inverted: false }),
            Some('>') => self.one(Tag::Partial),
            Some('/') => self.one(Tag::Close),
            Some('&') => self.one(Tag::Value { is_triple: false }),
            Some('*') => Tag::Unsupported("a decorator, {{* …}},"),
            Some('^') => {
                self.at += 1;
                if self.is_closing() { Tag::Else } else { Tag::Block { is_inverted: true } }
            }
            Some('e') if self.rest().starts_with("else") && !self.rest()[4..].starts_with(is_name) => {
                self.at += 4;
                if self.is_closing() { Tag::Else } else { Tag::Chain }
            }
            _ => Tag::Value { is_triple: false },
        };
        Ok((tag, open))
    }

    fn one(&mut self, tag: Tag) -> Tag {
        self.at += 1;
        tag
    }

    /// Whether the tag ends here.
    fn is_closing(&mut self) -> bool {
        self.skip_space();
        self.rest().starts_with("}}") || self.rest().starts_with("~}}")
    }

    fn comment(&mut self, begin: usize, open: bool) -> Result<Strip, Fault> {
        self.at += 1;
        let rest = self.rest();
        let end = if rest.starts_with("--") {
            let ends = |at: &usize| rest[..*at].ends_with("--") || rest[..*at].ends_with("--~");
            rest.match_indices("}}").map(|(at, _)| at).find(ends).map(|at| at + 2)
        } else {
            rest.find("}}").map(|n| n + 2)
        };
        let Some(end) = end else {
            let close = if rest.starts_with("--") { "--}}" } else { "}}" };
            self.at = begin;
            return fault(self.place(), format!("the comment is never closed: {close} is missing"));
        };
        Ok(Strip { open, close: self.take(end).ends_with("~}}") })
    }

    /// The end of a tag.
    pub(super) fn close(&mut self, open: bool) -> Result<Strip, Fault> {
        self.skip_space();
        let close = self.eat("~");
        if self.eat("}}") { Ok(Strip { open, close }) } else { self.unclosed("}}") }
    }

    /// The end of `{{{…}}}`.
    pub(super) fn close_triple(&mut self, open: bool) -> Result<Strip, Fault> {
        self.skip_space();
        if !self.eat("}") {
            return self.unclosed("}}}");
        }
        let close = self.eat("~");
        if self.eat("}}") { Ok(Strip { open, close }) } else { self.unclosed("}}}") }
    }

    fn unclosed<T>(&mut self, end: &str) -> Result<T, Fault> {
        let odd: String = self.rest().chars().take(12).take_while(|&c| c != '\n').collect();
        // The place that helps is the tag's beginning when the text simply ends.
        if odd.is_empty() || self.rest().starts_with('}') {
            self.at = self.source[..self.at].rfind("{{").unwrap_or(self.at);
            return fault(self.place(), format!("the tag is not closed: {end} is missing"));
        }
        fault(self.place(), format!("\"{odd}\" is not understood here: the tag should end with {end}"))
    }

    /// What a tag calls or shows: a path, or a text or number that names a variable.
    pub(super) fn callee(&mut self) -> Result<Path, Fault> {
        self.skip_space();
        let (place, begin) = (self.place(), self.at);
        if self.rest().starts_with('(') {
            return Err((place, Problem::Unsupported("a helper whose name is computed".into())));
        }
        let Some(literal) = self.literal()? else { return self.path() };
        let name = match literal {
            Expr::Literal(Value::String(text)) => text,
            Expr::Literal(other) => other.to_string(),
            _ => "undefined".into(),
        };
        let original = self.source[begin..self.at].to_string();
        Ok(Path { is_data: false, is_scoped: true, depth: 0, parts: vec![name], original, place })
    }

    pub(super) fn partial_name(&mut self, tag: Place) -> Result<String, Fault> {
        self.skip_space();
        match self.rest().chars().next() {
            Some('(') => Err((tag, Problem::Unsupported("a partial whose name is computed; use {{#if …}} around several,".into()))),
            Some('@') => Err((tag, Problem::Unsupported("the block of a partial, {{> @partial-block}},".into()))),
            _ => {
                let path = self.callee()?;
                Ok(if path.original.starts_with(['"', '\'', '[']) { path.parts.concat() } else { path.original })
            }
        }
    }

    /// Text up to `{{{{/title}}}}`.
    pub(super) fn raw_text(&mut self, title: &str, place: Place) -> Result<String, Fault> {
        self.skip_space();
        if !self.eat("}}}}") {
            return self.unclosed("}}}}");
        }
        let end = format!("{{{{{{{{/{title}}}}}}}}}");
        let Some(found) = self.rest().find(&end) else {
            return fault(place, format!("{{{{{{{{{title}}}}}}}}} is never closed: {end} is missing"));
        };
        let text = self.take(found).to_string();
        self.at += end.len();
        Ok(text)
    }

    /// Values, fields by name, and names between bars, up to the end of the tag or parenthesis.
    pub(super) fn arguments(&mut self, parentheses: usize) -> Result<Args, Fault> {
        let mut args = Args::default();
        loop {
            self.skip_space();
            if self.rest().is_empty() || self.rest().starts_with(['}', '~', ')']) {
                return Ok(args);
            }
            if let Some(rest) = self.rest().strip_prefix("as")
                && rest.starts_with(is_space)
                && rest.trim_start_matches(is_space).starts_with('|')
            {
                args.names = self.names()?;
                return Ok(args);
            }
            let place = self.place();
            if args.params.len() + args.hash.len() == MAX_ARGUMENTS {
                return Err((place, Problem::TooNested(format!("more than {MAX_ARGUMENTS} values in one tag"))));
            }
            match self.key() {
                Some(key) => {
                    self.skip_space();
                    let value = self.value(parentheses)?;
                    args.hash.push((key, value));
                }
                None if args.hash.is_empty() => {
                    let value = self.value(parentheses)?;
                    args.params.push(value);
                }
                None => return fault(place, "values without a name come before those with a name"),
            }
        }
    }

    /// `key=`, or nothing and no step.
    fn key(&mut self) -> Option<String> {
        let begin = self.at;
        let key = match self.eat("[") {
            true => self.rest().find(']').map(|n| self.take(n)),
            false => Some(self.name()),
        };
        self.eat("]");
        self.skip_space();
        match key {
            Some(key) if !key.is_empty() && self.eat("=") => Some(key.to_string()),
            _ => {
                self.at = begin;
                None
            }
        }
    }

    fn names(&mut self) -> Result<Vec<String>, Fault> {
        let place = self.place();
        self.at += self.rest().find('|').map_or(0, |n| n + 1);
        let mut names = Vec::new();
        loop {
            self.skip_space();
            if self.eat("|") {
                return if names.is_empty() { fault(place, "there is no name between | and |") } else { Ok(names) };
            }
            match self.name() {
                "" => return fault(place, "names behind `as` stand between two bars: as |item|"),
                _ if names.len() == 2 => return fault(place, "two names at most stand between the bars: as |item index|"),
                name => names.push(name.to_string()),
            }
        }
    }

    fn value(&mut self, parentheses: usize) -> Result<Expr, Fault> {
        let place = self.place();
        if self.eat("(") {
            if parentheses == MAX_PARENTHESES {
                return Err((place, Problem::TooNested(format!("parentheses are nested deeper than {MAX_PARENTHESES}"))));
            }
            return self.call(place, parentheses + 1);
        }
        if let Some(literal) = self.literal()? {
            return Ok(literal);
        }
        Ok(Expr::Path(self.path()?))
    }

    fn call(&mut self, place: Place, parentheses: usize) -> Result<Expr, Fault> {
        let path = self.callee()?;
        let Args { params, hash, names } = self.arguments(parentheses)?;
        if !names.is_empty() || !self.eat(")") {
            return fault(place, "the parenthesis is not closed: ) is missing");
        }
        let asked = Asked {
            name: &path.original,
            position: Position::Inside,
            params: params.len(),
            hash: hash.iter().map(|(key, _)| key.as_str()).collect(),
        };
        match helpers::resolve(&asked) {
            Ok(Some(helper)) => Ok(Expr::Call(Call { helper, params, hash, place })),
            Ok(None) => fault(place, format!("there is no helper \"{}\"", path.original)),
            Err(problem) => fault(place, problem),
        }
    }

    /// A text, number, truth value, `null` or `undefined`; nothing and no step for anything else.
    fn literal(&mut self) -> Result<Option<Expr>, Fault> {
        if let Some(quote @ ('"' | '\'')) = self.rest().chars().next() {
            return self.quoted(quote).map(Some);
        }
        let word = &self.rest()[..self.rest().find(|c: char| !is_name(c) && c != '.').unwrap_or(self.rest().len())];
        let ends = self.rest()[word.len()..].chars().next().is_none_or(|c| is_space(c) || matches!(c, '~' | '}' | ')'));
        let value = match word {
            _ if !ends => return Ok(None),
            "true" | "false" => Expr::Literal(Value::Bool(word == "true")),
            "null" => Expr::Literal(Value::Null),
            "undefined" => Expr::Undefined,
            _ => match number(word) {
                Some(number) => Expr::Literal(number),
                None => return Ok(None),
            },
        };
        self.at += word.len();
        Ok(Some(value))
    }

    /// A text in quotation marks; a backslash before the same mark takes its meaning away.
    fn quoted(&mut self, quote: char) -> Result<Expr, Fault> {
        let place = self.place();
        let rest = &self.rest()[1..];
        let mut end = None;
        for (at, _) in rest.match_indices(quote) {
            if !rest[..at].ends_with('\\') {
                end = Some(at);
                break;
            }
        }
        let Some(end) = end else { return fault(place, "the closing quotation mark is missing") };
        self.at += end + 2;
        Ok(Expr::Literal(Value::String(rest[..end].replace(&format!("\\{quote}"), &quote.to_string()))))
    }

    fn name(&mut self) -> &'s str {
        self.take(self.rest().find(|c: char| !is_name(c)).unwrap_or(self.rest().len()))
    }

    /// `user.name`, `../title`, `@index`, `this`, `[any text]`.
    fn path(&mut self) -> Result<Path, Fault> {
        let (place, begin) = (self.place(), self.at);
        let mut path = Path { is_data: self.eat("@"), is_scoped: false, depth: 0, parts: Vec::new(), original: String::new(), place };
        loop {
            if self.eat("[") {
                path.parts.push(self.bracketed(place)?);
            } else {
                let dots = self.rest().len() - self.rest().trim_start_matches('.').len();
                let segment = if dots > 0 { self.take(dots.min(2)) } else { self.name() };
                match segment {
                    "" => return self.no_name(),
                    "." | ".." | "this" if !path.parts.is_empty() => {
                        return fault(place, format!("\"{segment}\" can stand at the start of a name only"));
                    }
                    "." | "this" => path.is_scoped = true,
                    ".." => (path.is_scoped, path.depth) = (true, path.depth + 1),
                    name => path.parts.push(name.to_string()),
                }
            }
            if path.parts.len() > MAX_SEGMENTS || path.depth > MAX_LEVELS {
                return Err((place, Problem::TooNested(format!("a name has more than {MAX_SEGMENTS} parts"))));
            }
            if !self.eat("/") && !self.eat(".") {
                break;
            }
        }
        path.original = self.source[begin..self.at].to_string();
        let ends = self.rest().chars().next().is_none_or(|c| is_space(c) || matches!(c, '=' | '~' | '}' | ')' | '|' | ']'));
        if ends { Ok(path) } else { self.no_name() }
    }

    fn bracketed(&mut self, place: Place) -> Result<String, Fault> {
        let mut name = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                ']' => {
                    self.at += at + 1;
                    return Ok(name);
                }
                '\\' if matches!(self.rest()[at + 1..].chars().next(), Some('\\' | ']')) => {
                    name.extend(characters.next().map(|(_, escaped)| escaped));
                }
                c => name.push(c),
            }
        }
        fault(place, "the bracket of a name is not closed: ] is missing")
    }

    fn no_name<T>(&mut self) -> Result<T, Fault> {
        match self.rest().chars().next() {
            None => self.unclosed("}}"),
            Some('}' | '~') => fault(self.place(), "the name of a variable is missing"),
            Some(odd) => {
                let quote = "a name with such a character stands in brackets, {{[my name!]}}";
                fault(self.place(), format!("\"{odd}\" is not understood here ({quote}; a text stands in quotation marks)"))
            }
        }
    }
}

/// Whether a character may stand in a name.
fn is_name(c: char) -> bool {
    !is_space(c) && !"!\"#%&'()*+,./;<=>@[\\]^`{|}~".contains(c)
}

fn number(word: &str) -> Option<Value> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    if let Ok(whole) = word.parse::<i64>() {
        return Some(whole.into());
    }
    word.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
}
