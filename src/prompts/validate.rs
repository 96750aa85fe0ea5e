//! What is refused before a template is compiled. Handlebars compiles and renders by recursion, and a stack overflow aborts the whole
//! process, so nesting is bounded on the raw text first; cycles of partials are found on the parsed template.
//!
//! The scan never counts less nesting than the grammar could find: where it cannot tell text from tag it counts both.

use super::Problem;
use super::references::{self, Partials};
use handlebars::Template;

/// Largest prompt file, in bytes.
pub const MAX_SOURCE_BYTES: usize = 64 * 1024;
/// Deepest nesting of blocks.
pub const MAX_DEPTH: usize = 64;
/// Most blocks (`{{#…}}`, `{{else …}}`, `{{{{…}}}}`) in one template: bounds the depth whatever the scan makes of comments.
pub const MAX_BLOCKS: usize = 256;
/// Most brackets inside one tag: bounds nested subexpressions and literals.
pub const MAX_BRACKETS: usize = 64;

/// Checks a template body's size and nesting, without parsing it. The error comes with the line, from 1.
///
/// # Errors
/// [`Problem::SourceTooLarge`] and [`Problem::TooNested`].
pub fn scan(body: &str) -> Result<(), (usize, Problem)> {
    if body.len() > MAX_SOURCE_BYTES {
        return Err((1, Problem::SourceTooLarge(body.len())));
    }
    let fault = |at: usize, text: String| Err((body[..at].matches('\n').count() + 1, Problem::TooNested(text)));
    let (mut depth, mut blocks, mut at) = (0usize, 0usize, 0usize);
    while let Some(found) = body[at..].find("{{") {
        let start = at + found;
        let tag = Tag::at(body, start);
        if tag.opens {
            depth += 1;
        }
        blocks += usize::from(tag.opens || tag.branches);
        if tag.closes && !is_escaped(body, start) {
            depth = depth.saturating_sub(1);
        }
        if depth > MAX_DEPTH {
            return fault(start, format!("blocks are nested deeper than {MAX_DEPTH}"));
        }
        if blocks > MAX_BLOCKS {
            return fault(start, format!("more than {MAX_BLOCKS} blocks in one template"));
        }
        if tag.brackets > MAX_BRACKETS {
            return fault(start, format!("more than {MAX_BRACKETS} brackets in one tag"));
        }
        at = tag.end;
    }
    Ok(())
}

/// Checks a compiled template: partials must exist, be named plainly and lead nowhere back.
///
/// # Errors
/// [`Problem::Recursive`], [`Problem::Unsupported`] and unknown partials, with the line in the body.
pub fn partials<'a>(body: &'a Template, registered: impl IntoIterator<Item = (&'a str, &'a Template)>) -> Result<(), (usize, Problem)> {
    let mut graph = Partials::default();
    references::partials(body, "", &mut graph)?;
    for (name, template) in registered {
        graph.define(name);
        references::partials(template, name, &mut graph)?;
    }
    graph.check()
}

fn is_escaped(body: &str, start: usize) -> bool {
    body[..start].bytes().rev().take_while(|&byte| byte == b'\\').count() == 1
}

/// What the scan needs to know of one tag.
struct Tag {
    opens: bool,
    branches: bool,
    closes: bool,
    brackets: usize,
    /// Where the scan goes on.
    end: usize,
}

impl Tag {
    fn at(body: &str, start: usize) -> Tag {
        let braces = body[start..].bytes().take_while(|&byte| byte == b'{').count();
        let inner = start + 2;
        if body[inner..].starts_with('!') {
            let end = if body[inner..].starts_with("!--") { body[inner..].find("--}}").map(|n| inner + n + 4) } else { None };
            let end = end.or_else(|| body[inner..].find("}}").map(|n| inner + n + 2)).unwrap_or(body.len());
            return Tag { opens: false, branches: false, closes: false, brackets: 0, end };
        }
        let raw = braces >= 4;
        let head = body[start + braces.min(4)..].trim_start_matches(['~', ' ', '\t', '\n', '\r']);
        let close = close_of(body, inner);
        let next = body[inner..].find("{{").map_or(body.len(), |n| inner + n);
        // A bracketed path may hide the end of its tag; then everything up to the next tag is counted.
        let hidden = body[inner..close].contains('[');
        let counted = if hidden { &body[inner..next.max(close)] } else { &body[inner..close] };
        Tag {
            opens: !head.starts_with('/') && (raw || head.starts_with('#')),
            branches: head.starts_with("else") || head.starts_with('^'),
            closes: head.starts_with('/'),
            brackets: counted.bytes().filter(|byte| matches!(byte, b'(' | b'[' | b'{')).count().saturating_sub(braces.saturating_sub(2)),
            end: (start + braces).max(if hidden { close.min(next.max(inner)) } else { close }),
        }
    }
}

/// End of the tag whose inside begins at `inner`: the first `}}` outside of quotes, or the first at all when a quote stays open.
fn close_of(body: &str, inner: usize) -> usize {
    let bytes = body.as_bytes();
    let (mut quote, mut i) = (None, inner);
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return i,
            _ => {}
        }
        i += 1;
    }
    // An open quote may be an apostrophe of the text behind a broken tag.
    let first = body[inner..].find("}}").map(|n| inner + n);
    first.filter(|_| quote.is_some()).unwrap_or(body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_bounded_and_ordinary_text_is_not() {
        let nested = |n: usize| format!("{}x{}", "{{#if a}}".repeat(n), "{{/if}}".repeat(n));
        assert!(scan(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(scan(&format!("\n{}", nested(MAX_DEPTH + 1))).expect_err("too deep").0, 2);
        assert!(scan(&"{{#if a}}{{/if}}".repeat(MAX_BLOCKS)).is_ok());
        assert!(scan(&"{{#if a}}{{/if}}".repeat(MAX_BLOCKS + 1)).is_err());
        assert!(scan(&format!("{{{{{}", "(".repeat(900))).is_err());
        assert!(scan(&format!("{{{{a [}}}}] {}", "(".repeat(900))).is_err());
        assert!(scan(&format!("{{{{a \"}}}}\" {}", "(".repeat(900))).is_err());
        assert!(scan(&format!("{{{{name}}}} {}", "[{(".repeat(900))).is_ok(), "brackets of plain text do not count");
        assert!(scan("{{! {{#if}} }} {{{{raw}}}} {{/if}} {{{{/raw}}}} \\{{#if}} {{{json this}}} ü{{").is_ok());
    }

    #[test]
    fn a_comment_cannot_hide_depth() {
        let bomb = "{{#if a}}{{!-- }}{{/if}} --}}".repeat(400);
        assert!(scan(&bomb).is_err());
    }
}
