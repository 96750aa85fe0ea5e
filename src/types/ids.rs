//! Identifiers: a prefix that says what it names and a UUIDv7 (RFC 9562), so that ids sort by the time they were made.

use uuid::Uuid;

/// A new id such as `run_0193…` (32 hex digits).
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::now_v7().simple())
}

/// Whether a text from outside may be looked up as an id or a name: 1–128 of `[A-Za-z0-9._:@/-]`, no `..`.
pub fn is_safe_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.contains("..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'/' | b'-'))
}

/// Whether a text may name a prompt, dataset, suite, adapter or route: 1–64 of `[a-z0-9._-]`, beginning with a letter or digit.
pub fn is_slug(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_names_cannot_climb() {
        let (a, b) = (new_id("run"), new_id("run"));
        assert!(a < b && a.starts_with("run_") && a.len() == 36);
        assert!(!is_safe_name("../x") && is_safe_name("local/smollm2:a-1"));
        assert!(is_slug("support-intake") && !is_slug("Support") && !is_slug("a/b") && !is_slug(""));
    }
}
