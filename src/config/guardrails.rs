//! `[guardrails.<set>]`: what is looked for in requests and replies, and what is done about it. A release may hold such sets, too,
//! written in itself ([`inline`]). What finds and redacts is the room `guardrails`.

use super::ProviderConfig;
use super::providers::unknown_model;
use super::raw::{Problems, Section};
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// Bytes that a compiled pattern may take: enough for any sane one, and a bound for `(a{1000}){1000}`.
const MAX_PATTERN_BYTES: usize = 1 << 20;
const MAX_PATTERNS: usize = 64;
/// The key of `[guardrails]` that is no set.
const DEFAULT: &str = "default";

/// What detectors there are, by their names in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Keys of well-known services, private-key blocks, JSON web tokens.
    ApiKey,
    /// Bank account numbers, with country, length and check digits.
    Iban,
    /// Card numbers, with their check digit.
    CreditCard,
    /// E-mail addresses.
    Email,
    /// US social security numbers, written with separators.
    UsSsn,
    /// IPv4 and IPv6 addresses.
    IpAddress,
    /// Phone numbers: international with a plus, or North American with separators.
    Phone,
}

impl Detector {
    /// All of them; where two find the same text, the earlier one names it.
    pub const ALL: [Detector; 7] =
        [Detector::ApiKey, Detector::Iban, Detector::CreditCard, Detector::Email, Detector::UsSsn, Detector::IpAddress, Detector::Phone];

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Detector::ApiKey => "api_key",
            Detector::Iban => "iban",
            Detector::CreditCard => "credit_card",
            Detector::Email => "email",
            Detector::UsSsn => "us_ssn",
            Detector::IpAddress => "ip_address",
            Detector::Phone => "phone",
        }
    }
}

/// What is done about a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A placeholder stands for it.
    Redact,
    /// The call is refused.
    Refuse,
}

/// Which way a text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// To the model.
    Input,
    /// From it.
    Output,
}

/// A pattern of the user's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PatternConfig {
    /// What it finds, for errors, the log and the placeholder.
    pub name: String,
    /// Regular expression without look-around or back-references, which is what keeps it linear.
    pub regex: String,
    /// What stands for a match; a numbered `[NAME_1]` without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace: Option<String>,
}

/// A model that judges texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModerationConfig {
    /// `provider/model`.
    pub model: String,
    /// Which texts it sees.
    pub on: Vec<Side>,
    /// Score from which a category counts, 0 to 1; without it the model's own verdict does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Categories that count; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// What happens when the model cannot be asked.
    pub on_error: OnError,
}

/// What happens to a call that could not be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is refused.
    Refuse,
    /// It goes on, and its log row says that it was not judged.
    Allow,
}

/// One set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GuardrailSet {
    /// Its name, for errors and the log.
    #[serde(skip)]
    pub name: String,
    /// Detectors, each once.
    pub detectors: Vec<Detector>,
    /// Patterns of the user's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<PatternConfig>,
    /// What is done about what they find.
    pub action: Action,
    /// Which texts they look at.
    pub on: Vec<Side>,
    /// Whether placeholders in the reply become what they stand for again.
    pub restore: bool,
    /// Characters that all texts of a request may have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_input_chars: Option<u64>,
    /// Characters that all texts of a reply may have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_chars: Option<u64>,
    /// Whether a reply must fit the `response_format` of its request.
    pub validate_output: bool,
    /// A model that judges texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moderation: Option<ModerationConfig>,
    /// Names in `model` that the set is for: routes, or models as `provider/model`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}

impl GuardrailSet {
    /// Whether the set looks at texts that go this way, be it by a detector, a size, a schema or a model.
    pub fn looks_at(&self, side: Side) -> bool {
        let matches = self.on.contains(&side) && !(self.detectors.is_empty() && self.patterns.is_empty());
        let bounded = match side {
            Side::Input => self.max_input_chars.is_some(),
            Side::Output => self.max_output_chars.is_some() || self.validate_output,
        };
        matches || bounded || self.moderation.as_ref().is_some_and(|moderation| moderation.on.contains(&side))
    }

    /// The set as a release holds it: everything in itself, but the names it is for.
    pub fn to_inline(&self) -> Value {
        let own = GuardrailSet { routes: Vec::new(), ..self.clone() };
        let mut value = serde_json::to_value(own).expect("a set is texts, numbers and lists: serialising cannot fail");
        value["name"] = self.name.clone().into();
        value
    }
}

/// `[guardrails]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GuardrailsConfig {
    /// Names of the sets that every call goes through.
    pub default: Vec<String>,
    /// The sets by name.
    #[serde(flatten)]
    pub sets: BTreeMap<String, GuardrailSet>,
}

/// Compiles a pattern, bounded in size.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES).build();
    let regex = built.map_err(|error| match error {
        regex::Error::Syntax(text) => text.lines().last().unwrap_or("a mistake").trim_start_matches("error: ").to_string(),
        regex::Error::CompiledTooBig(limit) => format!("compiled, it is larger than {limit} bytes"),
        other => other.to_string(),
    })?;
    if regex.is_match("") { Err("it matches the empty text, which is everywhere".into()) } else { Ok(regex) }
}

/// Reads a set that a release holds in itself; its name is `name`, or `release`.
///
/// # Errors
/// What is wrong, with the keys.
pub fn inline(value: &Value) -> Result<GuardrailSet, String> {
    let mut value = value.clone();
    let fields = value.as_object_mut().ok_or("expected the name of a set, or a set as an object")?;
    let name = match fields.shift_remove("name") {
        None => "release".to_string(),
        Some(Value::String(name)) if is_slug(&name) => name,
        Some(_) => return Err("name: expected 1 to 64 of a-z, 0-9, '.', '_', '-'".into()),
    };
    if fields.contains_key("routes") {
        return Err("routes: a release is on its own routes".into());
    }
    // The same reader as for the file, so that both say the same.
    let text = toml::to_string(&value).map_err(|error| format!("the set cannot be read: {error}"))?;
    let tree = DeTable::parse(&text).map_err(|error| format!("the set cannot be read: {error}"))?;
    let mut problems = Problems::new(&text);
    let set = read_set(&name, Section::new(tree.get_ref(), ""), None, &mut problems);
    match problems.found.is_empty() {
        true => Ok(set),
        false => Err(problems.found.iter().map(|p| format!("{}: {}", p.key, p.message)).collect::<Vec<_>>().join("; ")),
    }
}

pub(super) fn read(mut section: Section<'_, '_>, providers: &[ProviderConfig], problems: &mut Problems<'_>) -> GuardrailsConfig {
    let at = section.take(DEFAULT).map(|value| value.span());
    let default = section.texts(DEFAULT, problems);
    let mut sets = BTreeMap::new();
    for (name, span, value) in section.entries().filter(|(name, ..)| *name != DEFAULT) {
        let path = section.name(name);
        if !is_slug(name) {
            problems.add(span, path, "a set's name is 1 to 64 of a-z, 0-9, '.', '_', '-'");
            continue;
        }
        let Some(table) = value.get_ref().as_table() else {
            problems.add(span, &path, format!("expected a table ([{path}]); the one key here that is no set is \"{DEFAULT}\""));
            continue;
        };
        let before = problems.found.len();
        let set = read_set(name, Section::new(table, path.clone()), Some(providers), problems);
        let does_nothing = !set.looks_at(Side::Input) && !set.looks_at(Side::Output);
        if does_nothing && problems.found.len() == before {
            problems.add(span, path, "the set does nothing: it has no detectors, patterns, maximum sizes, validate_output or moderation");
        }
        sets.insert(name.to_string(), set);
    }
    for name in default.iter().filter(|name| !sets.contains_key(*name)) {
        let nearest = did_you_mean(name, sets.keys().map(String::as_str));
        problems.add(at.clone().unwrap_or(0..0), section.name(DEFAULT), format!("there is no set \"{name}\"{nearest}"));
    }
    GuardrailsConfig { default, sets }
}

/// `providers`: those that its names may be of, where that is known.
fn read_set(name: &str, mut section: Section<'_, '_>, providers: Option<&[ProviderConfig]>, problems: &mut Problems<'_>) -> GuardrailSet {
    let set = GuardrailSet {
        name: name.to_string(),
        detectors: detectors(&mut section, problems),
        patterns: patterns(&mut section, problems),
        action: word("action", &[("redact", Action::Redact), ("refuse", Action::Refuse)], &mut section, problems).unwrap_or(Action::Redact),
        on: sides(&mut section, problems),
        restore: section.switch("restore", false, problems),
        max_input_chars: size("max_input_chars", &mut section, problems),
        max_output_chars: size("max_output_chars", &mut section, problems),
        validate_output: section.switch("validate_output", false, problems),
        moderation: section.section("moderation", problems).map(|section| moderation(section, providers, problems)),
        routes: routes(&mut section, providers, problems),
    };
    if set.restore && (set.action == Action::Refuse || !set.on.contains(&Side::Input)) {
        let span = section.take("restore").map_or(0..0, |value| value.span());
        problems.add(span, section.name("restore"), "only what is redacted on input can be restored");
    }
    section.finish(problems);
    set
}

/// Names that the set is for; a set for a provider that nobody has would never be applied.
fn routes(section: &mut Section<'_, '_>, providers: Option<&[ProviderConfig]>, problems: &mut Problems<'_>) -> Vec<String> {
    let span = section.take("routes").map_or(0..0, |value| value.span());
    let names = section.texts("routes", problems);
    for why in names.iter().filter_map(|name| unknown_model(name, providers?)) {
        problems.add(span.clone(), section.name("routes"), why);
    }
    names
}

fn detectors(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<Detector> {
    let span = section.take("detectors").map_or(0..0, |value| value.span());
    let mut found = Vec::new();
    for given in section.texts("detectors", problems) {
        match Detector::ALL.into_iter().find(|detector| detector.name() == given) {
            Some(detector) if found.contains(&detector) => {}
            Some(detector) => found.push(detector),
            None => {
                let names = Detector::ALL.map(Detector::name);
                let nearest = did_you_mean(&given, names);
                let way_out = if nearest.is_empty() { format!("; known: {}", names.join(", ")) } else { nearest };
                problems.add(span.clone(), section.name("detectors"), format!("there is no detector \"{given}\"{way_out}"));
            }
        }
    }
    found
}

fn patterns(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<PatternConfig> {
    let Some(value) = section.take("patterns") else { return Vec::new() };
    let path = section.name("patterns");
    let expected = "expected a list of tables such as { name = \"ticket\", regex = \"T-[0-9]+\" }";
    let Some(items) = value.get_ref().as_array().filter(|items| items.len() <= MAX_PATTERNS) else {
        problems.add(value.span(), path, format!("{expected}, at most {MAX_PATTERNS}"));
        return Vec::new();
    };
    let mut patterns = Vec::new();
    for (place, item) in items.iter().enumerate() {
        let path = format!("{path}[{place}]");
        let Some(table) = item.get_ref().as_table() else {
            problems.add(item.span(), path, expected);
            continue;
        };
        let mut inner = Section::new(table, path);
        let name = inner.text("name", problems);
        if name.as_ref().is_none_or(|name| !is_slug(name)) {
            problems.add(item.span(), inner.name("name"), "expected 1 to 64 of a-z, 0-9, '.', '_', '-'");
        }
        let at = inner.take("regex").map_or_else(|| item.span(), |value| value.span());
        let regex = inner.text("regex", problems);
        match regex.as_deref().map(compile) {
            None => problems.add(at, inner.name("regex"), "expected a regular expression"),
            Some(Err(why)) => problems.add(at, inner.name("regex"), format!("not a pattern that can be used: {why}")),
            Some(Ok(_)) => {}
        }
        let replace = inner.take("replace").and_then(|value| value.get_ref().as_str().map(str::to_string));
        inner.finish(problems);
        if let (Some(name), Some(regex)) = (name, regex) {
            patterns.push(PatternConfig { name, regex, replace });
        }
    }
    patterns
}

const SIDES: &[(&str, Side)] = &[("input", Side::Input), ("output", Side::Output)];

fn sides(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<Side> {
    let Some(value) = section.take("on") else { return vec![Side::Input, Side::Output] };
    let given = section.texts("on", problems);
    let known: Vec<_> = given.iter().filter_map(|name| SIDES.iter().find(|(side, _)| side == name).map(|(_, side)| *side)).collect();
    if known.is_empty() || known.len() != given.len() {
        problems.add(value.span(), section.name("on"), "expected a list of \"input\", \"output\" or both");
    }
    known
}

fn moderation(mut section: Section<'_, '_>, providers: Option<&[ProviderConfig]>, problems: &mut Problems<'_>) -> ModerationConfig {
    let at = section.take("model").map_or(0..0, |value| value.span());
    let model = section.text("model", problems).unwrap_or_default();
    if model.split_once('/').is_none_or(|(provider, model)| provider.is_empty() || model.is_empty()) {
        problems.add(at, section.name("model"), "expected provider/model, such as \"openai/omni-moderation-latest\"");
    } else if let Some(why) = providers.and_then(|providers| unknown_model(&model, providers)) {
        problems.add(at, section.name("model"), why);
    }
    let threshold = section.take("threshold").and_then(|value| {
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| (0.0..=1.0).contains(number));
        if number.is_none() {
            problems.add(value.span(), section.name("threshold"), "expected a number from 0 to 1");
        }
        number
    });
    let outcomes = [("refuse", OnError::Refuse), ("allow", OnError::Allow)];
    let moderation = ModerationConfig {
        model,
        on: sides(&mut section, problems),
        threshold,
        categories: section.texts("categories", problems),
        on_error: word("on_error", &outcomes, &mut section, problems).unwrap_or(OnError::Refuse),
    };
    section.finish(problems);
    moderation
}

fn size(key: &'static str, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<u64> {
    section.take(key)?;
    Some(section.integer(key, 1..=1_000_000_000, 0, problems))
}

/// One of a few words.
fn word<T: Copy>(key: &'static str, known: &[(&str, T)], section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<T> {
    let at = section.take(key)?.span();
    let given = section.text(key, problems)?;
    let found = known.iter().find(|(name, _)| *name == given).map(|(_, value)| *value);
    if found.is_none() {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        problems.add(at, section.name(key), format!("expected \"{}\"", names.join("\" or \"")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError};
    use serde_json::json;
    use std::path::Path;

    fn read(text: &str) -> Result<GuardrailsConfig, Vec<String>> {
        match Config::parse(text, Path::new("refit.toml")) {
            Ok(config) => Ok(config.guardrails),
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.into_iter().map(|p| format!("{} {}: {}", p.line, p.key, p.message)).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn every_problem_of_a_set_is_told_with_its_line() {
        let text = "[guardrails]\ndefault = [\"pi\"]\n[guardrails.pii]\ndetectors = [\"emial\"]\naction = \"drop\"\n\
            patterns = [{ name = \"t\", regex = \"(\" },\n { name = \"u\", regex = \"a*\" }]\non = [\"inputs\"]\n\
            moderation = { model = \"x\", threshold = 2 }\n[guardrails.none]\n[guardrails.r]\ndetectors = [\"email\"]\naction = \"refuse\"\nrestore = true\n";
        let found = read(text).expect_err("problems");
        let all = found.join("\n");
        for (line, part) in [
            (2, "there is no set \"pi\"; did you mean \"pii\"?"),
            (4, "there is no detector \"emial\"; did you mean \"email\"?"),
            (5, "\"redact\" or \"refuse\""),
            (6, "patterns[0].regex: not a pattern that can be used: unclosed group"),
            (7, "patterns[1].regex: not a pattern that can be used: it matches the empty text"),
            (8, "on: expected a list of"),
            (9, "moderation.model: expected provider/model"),
            (9, "threshold: expected a number from 0 to 1"),
            (10, "the set does nothing"),
            (14, "only what is redacted on input can be restored"),
        ] {
            assert!(found.iter().any(|problem| problem.starts_with(&format!("{line} ")) && problem.contains(part)), "{part}\n{all}");
        }
        assert_eq!(found.len(), 10, "{all}");
    }

    #[test]
    fn a_set_for_nobody_is_told() {
        let text = "[providers.up]\nkind = \"compatible\"\nbase_url = \"http://x\"\n[guardrails.a]\ndetectors = [\"email\"]\n\
            routes = [\"opnai/x\", \"up/m\", \"local/m:a\", \"gated\", \"up/\"]\nmoderation = { model = \"upp/m\" }\n";
        let found = read(text).expect_err("problems");
        assert_eq!(found.len(), 3, "{found:?}");
        for part in [
            "6 guardrails.a.routes: unknown provider \"opnai\"; did you mean",
            "a model after",
            "7 guardrails.a.moderation.model: unknown provider",
        ] {
            assert!(found.iter().any(|problem| problem.contains(part)), "{part}: {found:?}");
        }
    }

    #[test]
    fn a_set_means_the_same_in_the_file_and_in_a_release() {
        let text = "[guardrails.pii]\ndetectors = [\"email\", \"iban\"]\npatterns = [{ name = \"ticket\", regex = \"T-[0-9]+\", replace = \"[t]\" }]\n\
            max_input_chars = 9\nmoderation = { model = \"openai/m\", threshold = 0.5, on = [\"input\"] }\nroutes = [\"r\"]\n";
        let config = read(text).expect("valid");
        let set = &config.sets["pii"];
        assert_eq!((set.action, set.on.as_slice(), set.restore), (Action::Redact, [Side::Input, Side::Output].as_slice(), false));
        let again = inline(&set.to_inline()).expect("what is written can be read");
        assert_eq!(again, GuardrailSet { routes: Vec::new(), ..set.clone() });
        let wrong = inline(&json!({"detectors": ["emial"], "acton": "redact"})).expect_err("two mistakes");
        assert!(wrong.contains("detectors: there is no detector") && wrong.contains("did you mean \"action\"?"), "{wrong}");
        assert!(inline(&json!("pii")).is_err() && inline(&json!({"routes": ["r"]})).is_err());
    }

    #[test]
    fn a_pattern_that_would_grow_beyond_its_bound_is_refused() {
        assert!(compile("(a{1000}){1000}").is_err_and(|why| why.contains("larger than")));
        assert!(compile("(?=a)").is_err_and(|why| why.contains("look-around")));
    }
}
