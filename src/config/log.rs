//! `[log]`: what the request log keeps, for how long, and what is taken out of it before it is written.

use super::raw::{Problems, Section};
use regex::Regex;
use std::ops::Range;

/// What `redact` may name.
pub const DETECTORS: [&str; 6] = ["email", "phone", "card", "iban", "ip", "secret"];
/// Longest pattern; its compiled form is bounded, too.
const MAX_PATTERN_BYTES: usize = 1_000;
const MAX_COMPILED_BYTES: usize = 1 << 20;
const MAX_DAYS: u64 = 36_500;
const MAX_BODY_BYTES: u64 = 1 << 30;

/// Settings of the request log.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LogConfig {
    /// Keep request and reply bodies; without them only the figures are kept.
    pub bodies: bool,
    /// Detectors whose finds are taken out of bodies; of [`DETECTORS`].
    pub redact: Vec<String>,
    /// Regular expressions whose finds are taken out.
    pub redact_patterns: Vec<String>,
    /// Fields whose values are taken out: `user`, `messages[].content`.
    pub redact_fields: Vec<String>,
    /// Days after which a request is deleted; 0 for never.
    pub retention_days: u64,
    /// Days after which a request's bodies are deleted and its figures kept; 0 for never.
    pub bodies_retention_days: u64,
    /// Bytes that are kept of a body; 0 for all.
    pub max_body_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            bodies: true,
            redact: Vec::new(),
            redact_patterns: Vec::new(),
            redact_fields: Vec::new(),
            retention_days: 0,
            bodies_retention_days: 0,
            max_body_bytes: 0,
        }
    }
}

/// A pattern of `redact_patterns`, compiled within its bounds.
///
/// # Errors
/// What is wrong with it.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("a pattern has at most {MAX_PATTERN_BYTES} bytes"));
    }
    let built = regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES).build();
    let built = built.map_err(|error| error.to_string().lines().last().unwrap_or("it cannot be read").to_string())?;
    if built.is_match("") { Err("it finds the empty text, which is everywhere".to_string()) } else { Ok(built) }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> LogConfig {
    let default = LogConfig::default();
    let config = LogConfig {
        bodies: section.switch("bodies", default.bodies, problems),
        redact: checked(&mut section, "redact", problems, |name| {
            let known = DETECTORS.contains(&name);
            if known { Ok(()) } else { Err(format!("there is no such detector; known: {}", DETECTORS.join(", "))) }
        }),
        redact_patterns: checked(&mut section, "redact_patterns", problems, |pattern| compile(pattern).map(drop)),
        redact_fields: checked(&mut section, "redact_fields", problems, |path| match is_path(path) {
            true => Ok(()),
            false => Err("expected names with dots between them, [] for each item of a list: \"messages[].content\"".to_string()),
        }),
        retention_days: section.integer("retention_days", 0..=MAX_DAYS, default.retention_days, problems),
        bodies_retention_days: section.integer("bodies_retention_days", 0..=MAX_DAYS, default.bodies_retention_days, problems),
        max_body_bytes: section.integer("max_body_bytes", 0..=MAX_BODY_BYTES, default.max_body_bytes, problems),
    };
    section.finish(problems);
    config
}

/// A list of texts, each of which has to pass a check.
fn checked(
    section: &mut Section<'_, '_>,
    key: &'static str,
    problems: &mut Problems<'_>,
    check: impl Fn(&str) -> Result<(), String>,
) -> Vec<String> {
    let span: Range<usize> = section.take(key).map_or(0..0, |value| value.span());
    let texts = section.texts(key, problems);
    for (at, text) in texts.iter().enumerate() {
        if let Err(message) = check(text) {
            problems.add(span.clone(), format!("{}[{at}]", section.name(key)), message);
        }
    }
    texts
}

/// Whether a text is a path: `a`, `a.b`, `a[].b`, `a[]`.
fn is_path(text: &str) -> bool {
    let step = |step: &str| {
        let name = step.trim_end_matches("[]");
        !name.is_empty() && step.len() - name.len() <= 4 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    text.len() <= 256 && text.split('.').all(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_with_dots_and_lists() {
        for good in ["user", "messages[].content", "metadata.customer-id", "a[][].b"] {
            assert!(is_path(good), "{good}");
        }
        for bad in ["", ".", "a..b", "[]", "a[0]", "$.a", "a b"] {
            assert!(!is_path(bad), "{bad}");
        }
    }

    #[test]
    fn a_pattern_must_find_something_and_stay_small() {
        assert!(compile("acct-[0-9]{6}").is_ok());
        for bad in ["(", "x*", "[a-z]{1000}{1000}"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
