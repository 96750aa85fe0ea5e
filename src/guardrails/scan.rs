//! Sets applied to the texts of a request or a reply: what is found is replaced, and told without being repeated.

use super::{detect, texts};
use crate::config::guardrails::{Action, Detector, GuardrailSet, Side, compile};
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::embeddings::EmbeddingRequest;
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// What a log row says at most.
const MAX_FINDINGS: usize = 64;

/// A set, compiled.
pub struct Guard {
    /// As it was configured.
    pub set: GuardrailSet,
    rules: Vec<Rule>,
}

struct Rule {
    name: String,
    find: Find,
    /// What stands in a placeholder: `EMAIL`.
    label: String,
    replace: Option<String>,
}

enum Find {
    Detector(Detector),
    Pattern(Regex),
}

/// What was found at one place, without what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the set.
    pub set: String,
    /// Detector or pattern; `size`, `schema`, `moderation`.
    pub detector: String,
    /// Which way the text went.
    pub on: Side,
    /// `redact`, `refuse`, `repair`, `allow`.
    pub action: &'static str,
    /// How many.
    pub count: u64,
    /// Where, as a path of the request or the reply.
    #[serde(rename = "where")]
    pub place: String,
    /// Categories of a moderation, or why it could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why a text may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Name of the set.
    pub set: String,
    /// What it found.
    pub what: String,
    /// Where.
    pub place: String,
}

/// The placeholders of one call: the same value has the same one throughout.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<(String, String), usize>,
    given: HashMap<String, usize>,
    /// What placeholders stand for, where it is to be restored.
    restored: HashMap<String, String>,
}

impl Names {
    /// Whether any placeholder is to be restored.
    pub fn restores(&self) -> bool {
        !self.restored.is_empty()
    }

    fn placeholder(&mut self, label: &str, value: &str) -> String {
        let key = (label.to_string(), value.to_string());
        let given = self.given.entry(key.0.clone()).or_default();
        let number = *self.numbers.entry(key).or_insert_with(|| {
            *given += 1;
            *given
        });
        format!("[{label}_{number}]")
    }

    /// A text with its placeholders restored. None where it has none.
    pub fn restore(&self, text: &str) -> Option<String> {
        let (mut restored, mut rest, mut changed) = (String::new(), text, false);
        while let Some(open) = rest.find('[') {
            let value = rest[open..].find(']').and_then(|close| Some((self.restored.get(&rest[open..=open + close])?, open + close + 1)));
            let (value, end) = value.map_or((&rest[open..=open], open + 1), |(value, end)| (value.as_str(), end));
            changed |= end > open + 1;
            restored.push_str(&rest[..open]);
            restored.push_str(value);
            rest = &rest[end..];
        }
        restored.push_str(rest);
        changed.then_some(restored)
    }
}

/// What a scan brought to light. The texts are redacted, also those that may not pass: they are logged.
#[derive(Debug, Default)]
pub struct Scanned {
    /// What was found, by set and place.
    pub findings: Vec<Finding>,
    /// Why the whole may not pass.
    pub refused: Option<Refused>,
    /// Whether a text was changed.
    pub changed: bool,
}

impl Guard {
    /// Compiles a set that the configuration has checked.
    pub fn new(set: GuardrailSet) -> Self {
        let own = set.patterns.iter().filter_map(|pattern| {
            let label = pattern.name.to_uppercase().replace(['-', '.'], "_");
            let find = Find::Pattern(compile(&pattern.regex).ok()?);
            Some(Rule { name: pattern.name.clone(), find, label, replace: pattern.replace.clone() })
        });
        let known = Detector::ALL.into_iter().filter(|detector| set.detectors.contains(detector));
        let known = known.map(|detector| {
            let name = detector.name().to_string();
            Rule { label: name.to_uppercase(), name, find: Find::Detector(detector), replace: None }
        });
        let rules = own.chain(known).collect();
        Guard { set, rules }
    }

    fn scans(&self, side: Side) -> bool {
        self.set.on.contains(&side) && !self.rules.is_empty()
    }

    fn limit(&self, side: Side) -> Option<u64> {
        match side {
            Side::Input => self.set.max_input_chars,
            Side::Output => self.set.max_output_chars,
        }
    }

    /// Everything that the rules find in a text, in order; what overlaps is one, named by the rule that found its beginning.
    fn matches(&self, text: &str) -> Vec<(Range<usize>, &Rule)> {
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for rule in &self.rules {
            match &rule.find {
                Find::Detector(detector) => detect::find(*detector, text, &mut places),
                Find::Pattern(regex) => places.extend(regex.find_iter(text).map(|found| found.range()).filter(|place| !place.is_empty())),
            }
            all.extend(places.drain(..).map(|place| (place, rule)));
        }
        // Stable: where two begin together, the longer one and then the earlier rule comes first.
        all.sort_by_key(|(place, _)| (place.start, std::cmp::Reverse(place.end)));
        let mut apart: Vec<(Range<usize>, &Rule)> = Vec::new();
        for (place, rule) in all {
            match apart.last_mut() {
                Some((last, _)) if place.start < last.end => last.end = last.end.max(place.end),
                _ => apart.push((place, rule)),
            }
        }
        apart
    }

    /// Redacts a text; true when it was changed.
    fn redact(&self, side: Side, place: &str, text: &mut String, into: &mut Scan<'_>) -> bool {
        let matches = self.matches(text);
        if matches.is_empty() {
            return false;
        }
        let (mut written, mut end) = (String::with_capacity(text.len()), 0);
        for (found, rule) in matches {
            written.push_str(&text[end..found.start]);
            let value = &text[found.clone()];
            match &rule.replace {
                Some(replace) => written.push_str(replace),
                None => {
                    let placeholder = into.names.placeholder(&rule.label, value);
                    written.push_str(&placeholder);
                    if self.set.restore && side == Side::Input {
                        into.names.restored.insert(placeholder, value.to_string());
                    }
                }
            }
            end = found.end;
            into.found(self, side, &rule.name, place);
        }
        written.push_str(&text[end..]);
        *text = written;
        true
    }
}

/// A scan going on.
struct Scan<'n> {
    names: &'n mut Names,
    scanned: Scanned,
}

impl Scan<'_> {
    fn found(&mut self, guard: &Guard, side: Side, what: &str, place: &str) {
        let refuses = guard.set.action == Action::Refuse;
        let findings = &mut self.scanned.findings;
        let same = |finding: &Finding| finding.set == guard.set.name && finding.detector == what && finding.place == place;
        match findings.iter().position(same) {
            Some(known) => findings[known].count += 1,
            None if findings.len() >= MAX_FINDINGS => {}
            None => findings.push(Finding {
                set: guard.set.name.clone(),
                detector: what.to_string(),
                on: side,
                action: if refuses { "refuse" } else { "redact" },
                count: 1,
                place: place.to_string(),
                detail: None,
            }),
        }
        if refuses && self.scanned.refused.is_none() {
            let what = format!("found {what}");
            self.scanned.refused = Some(Refused { set: guard.set.name.clone(), what, place: place.to_string() });
        }
    }

    fn too_long(&mut self, guard: &Guard, side: Side, (chars, limit): (u64, u64)) {
        let place = if side == Side::Input { "messages" } else { "choices" };
        self.scanned.findings.push(Finding {
            set: guard.set.name.clone(),
            detector: "size".into(),
            on: side,
            action: "refuse",
            count: chars,
            place: place.into(),
            detail: None,
        });
        if self.scanned.refused.is_none() {
            let what = format!("takes at most {limit} characters, found {chars},");
            self.scanned.refused = Some(Refused { set: guard.set.name.clone(), what, place: place.into() });
        }
    }
}

/// Applies sets to a request, those that refuse first.
pub fn request(guards: &[Arc<Guard>], request: &mut ChatRequest, names: &mut Names) -> Scanned {
    each(guards, Side::Input, names, |each| texts::of_request(request, each))
}

/// Applies sets to values of the caller's own: the variables of a prompt.
pub fn values(guards: &[Arc<Guard>], place: &str, value: &mut Value, names: &mut Names) -> Scanned {
    each(guards, Side::Input, names, |each| texts::of_variables(place, value, each))
}

/// Applies sets to a request for vectors. Token ids are numbers, not texts.
pub fn embedding(guards: &[Arc<Guard>], request: &mut EmbeddingRequest, names: &mut Names) -> Scanned {
    let is_text = request.texts().is_some();
    each(guards, Side::Input, names, |each| {
        let changed = is_text && texts::of_variables("input", &mut request.input, each);
        texts::of_extra(&mut request.extra, each) || changed
    })
}

/// Applies sets to the body of a moderation: its input is a text, several, or parts.
pub fn moderation(guards: &[Arc<Guard>], request: &mut Map<String, Value>, names: &mut Names) -> Scanned {
    let input = request.shift_remove("input");
    let mut scanned = Scanned::default();
    let input = input.map(|mut input| {
        scanned = each(guards, Side::Input, names, |each| {
            let changed = texts::of_value("input", &mut input, each);
            texts::of_extra(request, each) || changed
        });
        input
    });
    request.extend(input.map(|input| ("input".to_string(), input)));
    scanned
}

/// Applies sets to a reply.
pub fn reply(guards: &[Arc<Guard>], reply: &mut ChatResponse, names: &mut Names) -> Scanned {
    each(guards, Side::Output, names, |each| texts::of_reply(reply, each))
}

/// Applies the rules of sets to a text of our own that may repeat something: an error, a path.
pub fn told(guards: &[Arc<Guard>], mut text: String, names: &mut Names) -> String {
    each(guards, Side::Output, names, |each| each("", &mut text));
    text
}

fn each(guards: &[Arc<Guard>], side: Side, names: &mut Names, walk: impl FnOnce(&mut texts::Each<'_>) -> bool) -> Scanned {
    let mut scan = Scan { names, scanned: Scanned::default() };
    let bounded = guards.iter().any(|guard| guard.limit(side).is_some());
    let mut chars = 0;
    let changed = walk(&mut |place, text| {
        if bounded {
            chars += text.chars().count() as u64;
        }
        let mut changed = false;
        for guard in guards.iter().filter(|guard| guard.scans(side)) {
            changed |= guard.redact(side, place, text, &mut scan);
        }
        changed
    });
    for guard in guards {
        if let Some(limit) = guard.limit(side).filter(|limit| chars > *limit) {
            scan.too_long(guard, side, (chars, limit));
        }
    }
    Scanned { changed, ..scan.scanned }
}

/// Puts back what placeholders in a reply stand for.
pub fn restore(reply: &mut ChatResponse, names: &Names) -> bool {
    texts::of_reply(reply, &mut |_, text| names.restore(text).map(|restored| *text = restored).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::guardrails::inline;
    use serde_json::json;

    fn guards(sets: &[Value]) -> Vec<Arc<Guard>> {
        sets.iter().map(|set| Arc::new(Guard::new(inline(set).expect("a set")))).collect()
    }

    fn asked(guards: &[Arc<Guard>], text: &str) -> (String, Scanned, Names) {
        let mut names = Names::default();
        let mut chat: ChatRequest =
            serde_json::from_value(json!({"model": "m", "messages": [{"role": "user", "content": text}]})).expect("a request");
        let scanned = request(guards, &mut chat, &mut names);
        (chat.messages[0].plain_text(), scanned, names)
    }

    #[test]
    fn equal_values_have_equal_placeholders_and_each_kind_counts_for_itself() {
        let set = guards(&[
            json!({"detectors": ["email", "ip_address"], "patterns": [{"name": "ticket", "regex": "T-[0-9]+", "replace": "[t]"}]}),
        ]);
        let (text, scanned, names) = asked(&set, "a@b.de, c@d.de and a@b.de from 10.0.0.1 about T-17");
        assert_eq!(text, "[EMAIL_1], [EMAIL_2] and [EMAIL_1] from [IP_ADDRESS_1] about [t]");
        assert_eq!(
            scanned.findings.iter().map(|f| (f.detector.as_str(), f.count)).collect::<Vec<_>>(),
            [("email", 3), ("ip_address", 1), ("ticket", 1)]
        );
        assert!(scanned.changed && scanned.refused.is_none() && !names.restores());
        let told = serde_json::to_string(&scanned.findings).expect("writes");
        assert!(!told.contains("a@b.de") && told.contains("\"where\":\"messages[0].content\""), "{told}");
    }

    #[test]
    fn what_overlaps_is_replaced_as_a_whole() {
        let set = guards(&[json!({"detectors": ["email"], "patterns": [{"name": "bob", "regex": "bob@"}]})]);
        assert_eq!(asked(&set, "bob@example.com!").0, "[EMAIL_1]!");
        let set = guards(&[json!({"patterns": [{"name": "a", "regex": "one two"}, {"name": "b", "regex": "two three"}]})]);
        assert_eq!(asked(&set, "one two three").0, "[A_1]");
    }

    #[test]
    fn a_refusal_names_the_place_and_the_text_is_redacted_all_the_same() {
        let set = guards(&[json!({"name": "cards", "detectors": ["credit_card"], "action": "refuse"})]);
        let (text, scanned, _) = asked(&set, "pay 4111 1111 1111 1111");
        let refused = scanned.refused.expect("refused");
        assert_eq!((text.as_str(), refused.set.as_str(), refused.place.as_str()), ("pay [CREDIT_CARD_1]", "cards", "messages[0].content"));
        let (_, scanned, _) = asked(&guards(&[json!({"max_input_chars": 3})]), "four");
        assert!(scanned.refused.is_some_and(|refused| refused.what.contains("at most 3 characters, found 4")));
        assert!(asked(&guards(&[json!({"max_input_chars": 3})]), "äöü").1.refused.is_none());
    }

    #[test]
    fn replies_are_restored_in_one_pass_and_in_json() {
        let set = guards(&[json!({"detectors": ["email"], "restore": true, "patterns": [{"name": "quote", "regex": "\"[^\"]*\""}]})]);
        let (_, _, names) = asked(&set, "a@b.de says \"[EMAIL_1]\"");
        let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"to\":\"[EMAIL_1]\",\"say\":\"[QUOTE_1]\"}"}}]);
        let mut answer: ChatResponse = serde_json::from_value(json!({"choices": [{"index": 0, "logprobs": {}, "message":
            {"role": "assistant", "content": "To [EMAIL_1] [EMAIL_9] [", "tool_calls": call}}]}))
        .expect("a reply");
        assert!(restore(&mut answer, &names));
        assert_eq!(answer.text(), "To a@b.de [EMAIL_9] [");
        let arguments = answer.choices[0].message.extra["tool_calls"][0]["function"]["arguments"].as_str().expect("a text");
        assert_eq!(serde_json::from_str::<Value>(arguments).expect("still JSON"), json!({"to": "a@b.de", "say": "\"[EMAIL_1]\""}));
        assert!(!answer.choices[0].extra.contains_key("logprobs"));
    }

    #[test]
    fn a_number_in_arguments_becomes_a_text_and_escapes_hide_nothing() {
        let set = guards(&[json!({"detectors": ["credit_card", "email"]})]);
        let arguments = r#"{"card": 4111111111111111, "to": "a\u0040b.de", "x@y.de": 1}"#;
        let mut chat: ChatRequest = serde_json::from_value(json!({"model": "m", "messages": [{"role": "assistant", "content": null,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]}]}))
        .expect("a request");
        request(&set, &mut chat, &mut Names::default());
        let arguments = chat.messages[0].extra["tool_calls"][0]["function"]["arguments"].as_str().expect("a text");
        let read: Value = serde_json::from_str(arguments).expect("still JSON");
        assert_eq!(read, json!({"card": "[CREDIT_CARD_1]", "to": "[EMAIL_1]", "[EMAIL_2]": 1}));
    }
}
