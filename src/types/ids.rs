//! Identifiers: a prefix that says what it names and a UUIDv7 (RFC 9562), so that ids sort by the time they were made.

use uuid::fmt::Simple;
use uuid::timestamp::context::{ContextV7, ThreadLocalContext};
use uuid::{Timestamp, Uuid};

/// A new id such as `run_0193…` (32 hex digits). Ids of one thread sort by the time they were made, those of several up to fractions of a
/// microsecond.
pub fn new_id(prefix: &str) -> String {
    // One for each thread, so that none waits for another.
    thread_local!(static CONTEXT: ContextV7 = ContextV7::new().with_additional_precision());
    let made = Uuid::new_v7(Timestamp::now(ThreadLocalContext::new(&CONTEXT)));
    let mut digits = [0; Simple::LENGTH];
    let mut id = String::with_capacity(prefix.len() + 1 + Simple::LENGTH);
    id.push_str(prefix);
    id.push('_');
    id.push_str(made.simple().encode_lower(&mut digits));
    id
}

/// Adds bytes as lower-case hexadecimal digits.
pub fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
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
        // The version and the variant of RFC 9562.
        assert!(a.as_bytes()[16] == b'7' && matches!(a.as_bytes()[20], b'8' | b'9' | b'a' | b'b'), "{a}");
        assert!(!is_safe_name("../x") && is_safe_name("local/smollm2:a-1"));
        assert!(is_slug("support-intake") && !is_slug("Support") && !is_slug("a/b") && !is_slug(""));
    }
}
