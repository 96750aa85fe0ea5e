//! White space that tags take away: `~` takes all of it on its side; a block, comment or partial that has a line for itself takes the line.
//!
//! Source: handlebars.js 4.7, `lib/handlebars/compiler/whitespace-control.js`; the order of the steps matters and is the same.

use super::tree::{Block, Inline, Node, Program, Strip, Text};

/// What JavaScript's `\s` and `trim` mean.
pub fn is_space(c: char) -> bool {
    (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}'
}

/// Whether a text has nothing but white space.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_space)
}

/// Takes away what the tags of a whole template swallow, and gathers its inline partials.
pub fn control(template: &mut Program) {
    program(template, true);
    gather(template);
}

/// What a node asks of its neighbours.
#[derive(Default)]
struct Asks {
    strip: Strip,
    /// Opens at the end of a line, as far as its inside shows.
    opens_line: bool,
    /// Closes at the start of a line, as far as its inside shows.
    closes_line: bool,
    /// May have a line for itself.
    is_inline: bool,
}

fn program(program: &mut Program, is_root: bool) {
    for i in 0..program.body.len() {
        let asks = match &mut program.body[i] {
            Node::Text(_) => continue,
            Node::Print(print) => Asks { strip: print.strip, ..Asks::default() },
            Node::Comment(strip) => Asks { strip: *strip, is_inline: true, ..Asks::default() },
            Node::Partial(partial) => Asks { strip: partial.strip, is_inline: true, ..Asks::default() },
            Node::Block(block) => self::block(block),
            Node::Inline(inline) => self::inline(inline),
        };
        let body = &mut program.body;
        let (after_break, before_break) = (line_starts(&body[..i], is_root), line_ends(&body[i + 1..], is_root));
        if asks.strip.close {
            omit_right(&mut body[i + 1..], true);
        }
        if asks.strip.open {
            omit_left(&mut body[..i], true);
        }
        if asks.is_inline && after_break && before_break {
            omit_right(&mut body[i + 1..], false);
            let indent = indentation(&body[..i]);
            if omit_left(&mut body[..i], false)
                && let Node::Partial(partial) = &mut body[i]
            {
                partial.indent = indent;
            }
        }
        if asks.opens_line && after_break {
            if let Some(first) = bodies(&mut body[i]).0 {
                omit_right(&mut first.body, false);
            }
            omit_left(&mut body[..i], false);
        }
        if asks.closes_line && before_break {
            omit_right(&mut body[i + 1..], false);
            let (first, last) = bodies(&mut body[i]);
            if let Some(last) = last.or(first) {
                omit_left(&mut last.body, false);
            }
        }
    }
}

/// A node's bodies: the one that comes first in the text, and the one behind `{{else}}`.
fn bodies(node: &mut Node) -> (Option<&mut Program>, Option<&mut Program>) {
    match node {
        Node::Block(block) => match (&mut block.program, &mut block.inverse) {
            // `{{^x}}` has only the second, or has them the other way round.
            (None, only) => (only.as_mut(), None),
            (first, second) => (first.as_mut(), second.as_mut()),
        },
        Node::Inline(inline) => (Some(&mut inline.program), None),
        _ => (None, None),
    }
}

fn inline(inline: &mut Inline) -> Asks {
    program(&mut inline.program, false);
    let body = &mut inline.program.body;
    let (opens_line, closes_line) = (line_ends(body, false), line_starts(body, false));
    if inline.open.close {
        omit_right(body, true);
    }
    if inline.close.open {
        omit_left(body, true);
    }
    Asks { strip: Strip { open: inline.open.open, close: inline.close.close }, opens_line, closes_line, is_inline: false }
}

fn block(block: &mut Block) -> Asks {
    for body in [&mut block.program, &mut block.inverse].into_iter().flatten() {
        program(body, false);
    }
    let (open, middle, close) = (block.open, block.middle, block.close);
    let (first, second) = match (&mut block.program, &mut block.inverse) {
        (None, only) => (only.as_mut(), None),
        (first, second) => (first.as_mut(), second.as_mut()),
    };
    let Some(first) = first else { return Asks::default() };
    let opens_line = line_ends(&first.body, false);
    let Some(second) = second else {
        let closes_line = line_starts(&first.body, false);
        if open.close {
            omit_right(&mut first.body, true);
        }
        if close.open {
            omit_left(&mut first.body, true);
        }
        return Asks { strip: Strip { open: open.open, close: close.close }, opens_line, closes_line, is_inline: false };
    };
    // Of an `{{else if}}` the body counts, not the block that it is.
    let other = chained_body(second);
    let closes_line = line_starts(&other.body, false);
    if open.close {
        omit_right(&mut first.body, true);
    }
    if middle.open {
        omit_left(&mut first.body, true);
    }
    if middle.close {
        omit_right(&mut other.body, true);
    }
    if close.open {
        omit_left(&mut other.body, true);
    }
    if line_starts(&first.body, false) && line_ends(&other.body, false) {
        omit_left(&mut first.body, false);
        omit_right(&mut other.body, false);
    }
    Asks { strip: Strip { open: open.open, close: close.close }, opens_line, closes_line, is_inline: false }
}

fn chained_body(program: &mut Program) -> &mut Program {
    if !program.is_chained || !matches!(program.body.first(), Some(Node::Block(block)) if block.program.is_some()) {
        return program;
    }
    let Some(Node::Block(block)) = program.body.first_mut() else { unreachable!("the line above looked") };
    block.program.get_or_insert_default()
}

/// Whether a line starts behind these nodes.
fn line_starts(before: &[Node], is_root: bool) -> bool {
    match before {
        [] => is_root,
        [rest @ .., Node::Text(text)] => {
            let tail = &text.original[text.original.trim_end_matches(is_space).len()..];
            tail.contains('\n') || (rest.is_empty() && is_root && tail.len() == text.original.len())
        }
        _ => false,
    }
}

/// Whether a line ends before these nodes.
fn line_ends(after: &[Node], is_root: bool) -> bool {
    match after {
        [] => is_root,
        [Node::Text(text), rest @ ..] => {
            let head = &text.original[..text.original.len() - text.original.trim_start_matches(is_space).len()];
            head.contains('\n') || (rest.is_empty() && is_root && head.len() == text.original.len())
        }
        _ => false,
    }
}

fn indentation(before: &[Node]) -> String {
    match before.last() {
        Some(Node::Text(Text { original, .. })) => original[original.trim_end_matches([' ', '\t']).len()..].to_string(),
        _ => String::new(),
    }
}

/// Takes white space from the start of the first text: all of it, or the rest of its line.
fn omit_right(after: &mut [Node], all: bool) {
    let Some(Node::Text(text)) = after.first_mut() else { return };
    if !all && text.right_stripped {
        return;
    }
    let left = if all {
        text.value.trim_start_matches(is_space)
    } else {
        let rest = text.value.trim_start_matches([' ', '\t']);
        let rest = rest.strip_prefix('\r').unwrap_or(rest);
        rest.strip_prefix('\n').unwrap_or(rest)
    };
    text.right_stripped = left.len() != text.value.len();
    text.value = left.to_string();
}

/// Takes white space from the end of the last text: all of it, or a line's indentation. Whether there was any.
fn omit_left(before: &mut [Node], all: bool) -> bool {
    let Some(Node::Text(text)) = before.last_mut() else { return false };
    if !all && text.left_stripped {
        return false;
    }
    let left = if all { text.value.trim_end_matches(is_space) } else { text.value.trim_end_matches([' ', '\t']) };
    text.left_stripped = left.len() != text.value.len();
    text.value.truncate(left.len());
    text.left_stripped
}

/// Moves inline partials out of the bodies and drops what renders nothing.
fn gather(program: &mut Program) {
    for node in std::mem::take(&mut program.body) {
        match node {
            Node::Inline(mut inline) => {
                gather(&mut inline.program);
                program.inlines.insert(inline.name.clone(), inline);
            }
            Node::Block(mut block) => {
                [&mut block.program, &mut block.inverse].into_iter().flatten().for_each(gather);
                program.body.push(Node::Block(block));
            }
            Node::Text(text) if text.value.is_empty() => {}
            Node::Text(text) => program.body.push(Node::Text(Text { original: String::new(), ..text })),
            Node::Comment(_) => {}
            other => program.body.push(other),
        }
    }
}
