//! What is taken out of a body before it is logged: fields by their place, finds of detectors and of patterns, and what is too long.
//! It happens before the row reaches its segment, so that nothing of it is ever on the disk.
//!
//! Bodies are read as JSON first: in the text of a body a secret may be written with escapes (`\\u0040` for `@`) that no pattern sees.
//! What looks like JSON inside a text, such as the arguments of a tool call, is read likewise. What cannot be read is searched as it is.

use crate::config::LogConfig;
use crate::config::log::{DETECTORS, compile};
use crate::types::json;
use crate::types::secrets::{KEY_SHAPES, cards};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::ops::Range;

/// Texts that are JSON inside a text are read so deep.
const MAX_NESTED: usize = 4;
/// Bytes that are searched behind those that are kept.
const MARGIN_BYTES: usize = 64 << 10;
/// What stands in the place of a field.
const FIELD: &str = "[redacted]";

/// The detectors of the log alone. They are for logs: what they find too much costs a word of the log.
const PATTERNS: [(&str, &str); 4] = [
    ("email", r"(?i)[a-z0-9._%+'-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+"),
    ("phone", r"(?:\+|\b00)[1-9](?:[ ./()-]{0,2}[0-9]){6,14}\b|\(?\b[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}\b"),
    ("iban", r"(?i)\b[a-z]{2}[0-9]{2}(?: ?[a-z0-9]{4}){2,7}(?: ?[a-z0-9]{1,4})?\b"),
    ("ip", r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\b"),
];
/// What may be a key besides those that have a known shape.
const LIKE_KEYS: &str =
    r"\b(?:sk|rk|pk|xox[abprs]|gh[pousr]|glpat|hf)[_-][A-Za-z0-9_-]{16,}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*";

/// Takes out of bodies what the log is not to have.
#[derive(Debug)]
pub struct Redactor {
    finders: Vec<Finder>,
    fields: Vec<Vec<Step>>,
    max_bytes: usize,
}

#[derive(Debug)]
struct Finder {
    find: Find,
    /// What stands in the place of a find.
    label: String,
}

enum Find {
    Pattern(Regex),
    Cards,
    Other(Finding),
}

/// Gives the places of what it finds in a text.
pub type Finding = Box<dyn Fn(&str, &mut Vec<Range<usize>>) + Send + Sync>;

impl std::fmt::Debug for Find {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Find::Pattern(pattern) => pattern.as_str(),
            Find::Cards => "cards",
            Find::Other(_) => "other",
        })
    }
}

impl Find {
    /// A detector by its name in the configuration.
    fn named(name: &str) -> Option<Self> {
        let pattern = match name {
            "card" => return Some(Find::Cards),
            "secret" => &[&KEY_SHAPES[..], &[LIKE_KEYS]].concat().join("|"),
            _ => PATTERNS.iter().find(|(known, _)| *known == name)?.1,
        };
        compile(pattern).ok().map(Find::Pattern)
    }

    fn places(&self, text: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        match self {
            Find::Pattern(pattern) => found.extend(pattern.find_iter(text).map(|find| find.range())),
            Find::Cards => cards(text, &mut found),
            Find::Other(find) => find(text, &mut found),
        }
        found
    }
}

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Each,
}

impl Redactor {
    /// What a configuration asks for; none where it asks for nothing.
    pub fn of(config: &LogConfig) -> Option<Self> {
        let asked = DETECTORS.iter().filter(|name| config.redact.iter().any(|asked| asked == *name));
        let named = asked.filter_map(|name| Some(Finder { find: Find::named(name)?, label: format!("[{name}]") }));
        let own = |pattern: &String| Some(Finder { find: Find::Pattern(compile(pattern).ok()?), label: FIELD.to_string() });
        let finders: Vec<_> = config.redact_patterns.iter().filter_map(own).chain(named).collect();
        let fields: Vec<_> = config.redact_fields.iter().map(|path| steps(path)).collect();
        let max_bytes = usize::try_from(config.max_body_bytes).unwrap_or(usize::MAX);
        let asks = !finders.is_empty() || !fields.is_empty() || max_bytes > 0;
        asks.then_some(Redactor { finders, fields, max_bytes })
    }

    /// All that can be taken out: what a configuration asks for, what `others` find under their names, and every detector of the log.
    /// Nothing is cut.
    pub fn strictest(config: &LogConfig, others: Vec<(&str, Finding)>) -> Self {
        let own = |pattern: &String| Some(Finder { find: Find::Pattern(compile(pattern).ok()?), label: FIELD.to_string() });
        let others = others.into_iter().map(|(name, find)| Finder { find: Find::Other(find), label: format!("[{name}]") });
        let named = DETECTORS.iter().filter_map(|name| Some(Finder { find: Find::named(name)?, label: format!("[{name}]") }));
        let finders = config.redact_patterns.iter().filter_map(own).chain(others).chain(named).collect();
        Redactor { finders, fields: config.redact_fields.iter().map(|path| steps(path)).collect(), max_bytes: 0 }
    }

    /// Takes finds out of every text, number and name of a value; whether there were any.
    pub fn value(&self, value: &mut Value) -> bool {
        self.walk(value, 0, &mut usize::MAX.clone())
    }

    /// The metadata of a body, taken out of it before, as they are logged: what stands at `metadata.…` goes from them, too.
    pub fn metadata(&self, metadata: String) -> String {
        let Ok(value) = serde_json::from_str::<Value>(&metadata) else { return self.text(&metadata) };
        let body = self.redacted(json!({"metadata": value}).to_string());
        let left = serde_json::from_str::<Value>(&body).ok().and_then(|mut body| body.get_mut("metadata").map(Value::take));
        left.filter(Value::is_object).map_or_else(|| "{}".to_string(), |left| left.to_string())
    }

    /// A body as it is logged.
    pub fn body(&self, text: String) -> String {
        self.cut(self.redacted(text))
    }

    /// A text without what patterns and detectors find, such as the comment of a feedback.
    pub fn text(&self, text: &str) -> String {
        self.found(text, 0, &mut usize::MAX.clone()).into_owned()
    }

    fn redacted(&self, text: String) -> String {
        if self.finders.is_empty() && self.fields.is_empty() {
            return text;
        }
        let mut left = if self.max_bytes == 0 { usize::MAX } else { self.max_bytes };
        let Ok((mut value, repeats)) = json::read_noting_repeats(text.as_bytes(), json::MAX_VALUES) else {
            // Where a field ends cannot be told.
            let searched = |left: &mut usize| self.found(&text, MAX_NESTED, left).into_owned();
            return if self.fields.is_empty() { searched(&mut left) } else { json!(FIELD).to_string() };
        };
        // Of a key that stands twice only the last value was looked at, so that only it is kept.
        let mut changed = repeats;
        for path in &self.fields {
            changed |= take_out(&mut value, path);
        }
        if !self.finders.is_empty() {
            changed |= self.walk(&mut value, 0, &mut left);
        }
        // What is as it was keeps its spelling.
        if changed { value.to_string() } else { text }
    }

    /// Replaces finds in every text of a value, and in names, in the order in which they are written; whether there were any. `left` are
    /// the bytes that are kept from here on: what comes after them is cut off, and not searched.
    fn walk(&self, value: &mut Value, nested: usize, left: &mut usize) -> bool {
        match value {
            _ if *left == 0 => false,
            Value::String(text) => {
                let Cow::Owned(new) = self.found(text, nested, left) else { return false };
                *text = new;
                true
            }
            // A card's number may be written as one. How many bytes it was written with is not known.
            Value::Number(number) => {
                let Cow::Owned(new) = self.found(&number.to_string(), MAX_NESTED, &mut left.clone()) else { return false };
                *value = new.into();
                true
            }
            Value::Array(items) => items.iter_mut().fold(false, |changed, item| self.walk(item, nested, left) | changed),
            Value::Object(fields) => self.walk_fields(fields, nested, left),
            _ => false,
        }
    }

    fn walk_fields(&self, fields: &mut Map<String, Value>, nested: usize, left: &mut usize) -> bool {
        let mut changed = false;
        let renamed = |name: &str, left: &mut usize| match self.found(name, MAX_NESTED, left) {
            Cow::Owned(new) => Some(new),
            Cow::Borrowed(_) => None,
        };
        let new_name = |(name, value): (&String, &mut Value)| {
            let new = renamed(name, left);
            changed |= self.walk(value, nested, left);
            new
        };
        let new_names: Vec<_> = fields.iter_mut().map(new_name).collect();
        if new_names.iter().all(Option::is_none) {
            return changed;
        }
        let named = std::mem::take(fields).into_iter().zip(new_names);
        *fields = named.map(|((name, value), new)| (new.unwrap_or(name), value)).collect();
        true
    }

    /// A text without finds; borrowed where there were none.
    fn found<'t>(&self, text: &'t str, nested: usize, left: &mut usize) -> Cow<'t, str> {
        if *left == 0 {
            return Cow::Borrowed(text);
        }
        if nested < MAX_NESTED
            && text.trim_start().starts_with(['{', '['])
            && let Ok((mut value, repeats)) = json::read_noting_repeats(text.as_bytes(), json::MAX_VALUES)
        {
            return if self.walk(&mut value, nested + 1, left) | repeats { Cow::Owned(value.to_string()) } else { Cow::Borrowed(text) };
        }
        // A find may begin in what is kept and end behind it.
        let (searched, rest) = text.split_at(text.floor_char_boundary(left.saturating_add(MARGIN_BYTES)));
        let found = self.finders.iter().fold(Cow::Borrowed(searched), |text, finder| match finder.replaced(&text) {
            Some(new) => Cow::Owned(new),
            None => text,
        });
        *left = left.saturating_sub(found.len());
        match found {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(found) => Cow::Owned(found + rest),
        }
    }

    /// A body that is not too long, as JSON that says how much is missing.
    fn cut(&self, text: String) -> String {
        if self.max_bytes == 0 || text.len() <= self.max_bytes {
            return text;
        }
        let kept = &text[..text.floor_char_boundary(self.max_bytes)];
        let why = format!("the log keeps {} of {} bytes", self.max_bytes, text.len());
        json!({"refit": {"cut": why}, "text": kept}).to_string()
    }
}

impl Finder {
    fn replaced(&self, text: &str) -> Option<String> {
        let places = self.find.places(text);
        let (mut written, mut end) = (String::with_capacity(text.len()), 0);
        for place in &places {
            written.push_str(&text[end..place.start]);
            written.push_str(&self.label);
            end = place.end;
        }
        written.push_str(&text[end..]);
        (!places.is_empty()).then_some(written)
    }
}

fn steps(path: &str) -> Vec<Step> {
    let step = |step: &str| {
        let name = step.trim_end_matches("[]");
        let lists = (step.len() - name.len()) / 2;
        std::iter::once(Step::Field(name.to_string())).chain((0..lists).map(|_| Step::Each)).collect::<Vec<_>>()
    };
    path.split('.').flat_map(step).collect()
}

/// Takes out what stands at a path; whether there was anything.
fn take_out(value: &mut Value, path: &[Step]) -> bool {
    let Some((step, rest)) = path.split_first() else {
        let there = !value.is_null();
        if there {
            *value = FIELD.into();
        }
        return there;
    };
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => fields.get_mut(name).is_some_and(|value| take_out(value, rest)),
        (Step::Each, Value::Array(items)) => items.iter_mut().fold(false, |taken, item| take_out(item, rest) | taken),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(config: LogConfig) -> Redactor {
        Redactor::of(&config).expect("it asks for something")
    }

    fn named_config(names: &[&str]) -> LogConfig {
        LogConfig { redact: names.iter().map(|name| (*name).to_string()).collect(), ..LogConfig::default() }
    }

    fn named(names: &[&str]) -> Redactor {
        redactor(named_config(names))
    }

    #[test]
    fn every_detector_of_the_configuration_finds_its_kind_and_leaves_the_rest() {
        assert!(Redactor::of(&LogConfig::default()).is_none());
        assert!(DETECTORS.iter().all(|name| Find::named(name).is_some()));
        let all = named(&DETECTORS);
        for (text, kept) in [
            ("write to ann.o'neil+x@mail.example.org now", "write to [email] now"),
            ("call +49 (30) 1234-5678 or 212-555-0187", "call [phone] or [phone]"),
            // The test numbers that card schemes publish.
            ("paid with 4111 1111 1111 1111", "paid with [card]"),
            ("order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),
            ("pay 4111 1111 1111 1111 12/27, 2026 4111 1111 1111 1111", "pay [card] 12/27, 2026 [card]"),
            ("to GB82 WEST 1234 5698 7654 32.", "to [iban]."),
            ("from 192.168.10.254, not 1.2.3", "from [ip], not 1.2.3"),
            ("key sk-proj-abcdefghijklmnop1234 and AKIAIOSFODNN7EXAMPLE", "key [secret] and [secret]"),
            (format!("github_pat_{}, gsk_{}", "a1".repeat(11), "b2".repeat(20)).as_str(), "[secret], [secret]"),
            (format!("npm_{}, ASIA{}", "c3".repeat(18), "D4".repeat(8)).as_str(), "[secret], [secret]"),
            ("in 2024 the 17 people of room 4 met at 10:30", "in 2024 the 17 people of room 4 met at 10:30"),
        ] {
            assert_eq!(all.text(text), kept);
        }
    }

    #[test]
    fn escapes_nested_json_numbers_and_names_hide_nothing() {
        let all = named(&["email", "card"]);
        let body = r#"{"a\u0040b.example": 4111111111111111, "messages": [{"content": "a\u0040b.example"}],
            "arguments": "{\"to\": \"c\\u0040d.example\"}", "big": 12345678901234567890123}"#;
        let kept = all.redacted(body.to_string());
        assert!(!kept.contains("b.example") && !kept.contains("d.example") && !kept.contains("4111"), "{kept}");
        let plain = r#"{ "spelling":  1.50, "stays": "as it was" }"#;
        assert_eq!(all.redacted(plain.to_string()), plain);
        assert_eq!(all.redacted("{broken: a@b.example".to_string()), "{broken: [email]");
    }

    #[test]
    fn a_key_that_stands_twice_hides_nothing() {
        let mails = named(&["email"]);
        assert_eq!(mails.redacted(r#"{"a": "x@b.example", "a": "b"}"#.to_string()), r#"{"a":"b"}"#);
        let nested = json!({"arguments": r#"{"a": "x@b.example", "a": "b"}"#}).to_string();
        assert_eq!(mails.redacted(nested), json!({"arguments": r#"{"a":"b"}"#}).to_string());
        let fields = redactor(LogConfig { redact_fields: vec!["user".into()], ..LogConfig::default() });
        assert_eq!(fields.redacted(r#"{"user": "ann", "user": "bob"}"#.to_string()), json!({"user": FIELD}).to_string());
    }

    #[test]
    fn fields_go_by_their_place_and_a_body_that_cannot_be_read_goes_as_a_whole() {
        let fields = redactor(LogConfig { redact_fields: vec!["user".into(), "messages[].content".into()], ..LogConfig::default() });
        let kept = fields
            .redacted(json!({"user": "ann", "model": "m", "messages": [{"role": "user", "content": ["x"]}, {"role": "a"}]}).to_string());
        let kept: Value = serde_json::from_str(&kept).expect("JSON");
        assert_eq!(kept, json!({"user": FIELD, "model": "m", "messages": [{"role": "user", "content": FIELD}, {"role": "a"}]}));
        assert_eq!(fields.redacted("{\"user\": ann".into()), "\"[redacted]\"");
    }

    #[test]
    fn metadata_go_by_their_place_in_the_body() {
        let fields = redactor(LogConfig { redact_fields: vec!["metadata.email".into()], ..LogConfig::default() });
        assert_eq!(fields.metadata(r#"{"email":"ann","topic":"x"}"#.into()), r#"{"email":"[redacted]","topic":"x"}"#);
        let whole = redactor(LogConfig { redact_fields: vec!["metadata".into()], ..LogConfig::default() });
        assert_eq!(whole.metadata(r#"{"email":"ann"}"#.into()), "{}");
        let strict = Redactor::strictest(
            &LogConfig::default(),
            vec![("sign", Box::new(|text, found| found.extend(text.find('#').map(|at| at..at + 1))))],
        );
        let mut value = json!({"a": "#", "n": 4111111111111111_u64, "arguments": "{\"to\": \"a\\u0040b.example\"}"});
        assert!(strict.value(&mut value));
        assert_eq!(value, json!({"a": "[sign]", "n": "[card]", "arguments": "{\"to\":\"[email]\"}"}));
    }

    #[test]
    fn what_is_cut_off_is_not_searched_and_what_is_kept_always() {
        let short = redactor(LogConfig { max_body_bytes: 1_000, ..named_config(&["email"]) });
        let filler = "x ".repeat(MARGIN_BYTES);
        for body in [
            json!({"b@x.example": ["a@x.example", filler, "c@x.example", {"d@x.example": 1}]}).to_string(),
            json!({"text": format!("a@x.example {filler} c@x.example")}).to_string(),
            json!({"nested": json!({"b": "a@x.example", "f": filler, "c": "c@x.example"}).to_string()}).to_string(),
            format!("broken a@x.example {filler} c@x.example"),
        ] {
            let redacted = short.redacted(body.clone());
            assert!(!redacted.contains("a@x") && !redacted.contains("b@x") && redacted.contains("c@x"), "{}", &redacted[..100]);
            let logged = short.body(body);
            assert!(logged.contains("[email]") && !logged.contains("@x"), "{logged}");
        }
        // A find over the end of what is kept.
        let over = format!("{}-----BEGIN PRIVATE KEY-----{}", "y ".repeat(490), "k".repeat(10_000));
        let secret = redactor(LogConfig { max_body_bytes: 1_000, ..named_config(&["secret"]) });
        assert!(!secret.body(json!({"text": over}).to_string()).contains("kkk"));
    }

    #[test]
    fn a_long_body_is_cut_between_characters_and_stays_json() {
        let short = redactor(LogConfig { max_body_bytes: 8, ..LogConfig::default() });
        assert_eq!(short.cut("12345678".into()), "12345678");
        let cut: Value = serde_json::from_str(&short.cut("\"123456€…".into())).expect("JSON");
        assert_eq!((&cut["text"], cut["refit"]["cut"].is_string()), (&json!("\"123456"), true));
    }
}
