//! Texts of anybody inside of markup.

/// A text for HTML and XML, attributes included. `other` says what else is written otherwise in a format, and how.
pub(super) fn escape(text: &str, other: fn(char) -> Option<&'static str>) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => match other(c) {
                Some(written) => escaped.push_str(written),
                None => escaped.push(c),
            },
        }
    }
    escaped
}

/// A text of anybody for a terminal: what a terminal would obey (escape sequences, other control characters, turned directions) is written
/// as what it is.
pub(super) fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return text.into();
    }
    text.chars()
        .fold(String::with_capacity(text.len() + 8), |mut shown, c| {
            if is_obeyed(c) {
                shown.extend(c.escape_unicode())
            } else {
                shown.push(c)
            }
            shown
        })
        .into()
}

/// Control characters, and those that turn the direction of what follows.
pub(super) fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_obeys_nothing_that_anybody_wrote() {
        assert_eq!(super::visible("a\u{1b}[2Jb\nc\u{9b}\u{202e}"), "a\\u{1b}[2Jb\\u{a}c\\u{9b}\\u{202e}");
        assert_eq!(super::visible("größer → 1"), "größer → 1");
    }
}
