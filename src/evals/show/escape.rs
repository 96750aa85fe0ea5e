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
