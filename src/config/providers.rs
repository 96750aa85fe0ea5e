//! `[providers.<name>]`: places that answer model calls. The kinds with their base URLs are a table here, so that the file can be
//! checked without the providers themselves; `providers/` gives each its code.

use super::raw::{Problems, Section};
use super::{Secret, env};
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use crate::types::messages::VERSIONS;
use serde::Serialize;
use std::ops::Range;

/// One configured provider.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProviderConfig {
    /// Name that callers put before the slash: `<name>/<model>`.
    #[serde(skip)]
    pub name: String,
    /// Registry word: `openai`, `compatible`, or a row of `providers/compatible.rs` such as `groq`.
    pub kind: String,
    /// Base URL; rows bring their own.
    pub base_url: Option<String>,
    /// Version of the service's API: Azure's `api-version`, Anthropic's `anthropic-version`.
    pub api_version: Option<String>,
    /// API key, read from the environment.
    pub api_key: Option<Secret>,
    /// Models to list under `/v1/models`; others can be called as well.
    pub models: Vec<String>,
    /// Seconds to connect.
    pub connect_timeout_s: u64,
    /// Seconds for a whole reply, or for the first byte of a streamed one.
    pub timeout_s: u64,
    /// Seconds that a stream may be silent.
    pub idle_timeout_s: u64,
    /// Seconds until a reply begins; as `timeout_s` where it is not given.
    pub first_byte_timeout_s: u64,
    /// Seconds for a call in all, streamed replies too.
    pub total_timeout_s: Option<u64>,
    /// Calls that the service works on at once.
    pub max_concurrency: Option<usize>,
    /// Calls that may wait for their turn.
    pub max_queue: usize,
    /// Milliseconds that a call waits for its turn.
    pub queue_timeout_ms: u64,
}

impl ProviderConfig {
    /// A provider with the default times and no settings of its own.
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        let (name, kind) = (name.into(), kind.into());
        ProviderConfig {
            name,
            kind,
            base_url: None,
            api_version: None,
            api_key: None,
            models: Vec::new(),
            connect_timeout_s: 10,
            timeout_s: 600,
            idle_timeout_s: 120,
            first_byte_timeout_s: 600,
            total_timeout_s: None,
            max_concurrency: None,
            max_queue: 100,
            queue_timeout_ms: 10_000,
        }
    }
}

/// Whether a provider of this name can be called.
///
/// # Errors
/// The names that can be, when it is none of them.
pub(super) fn known_name<'c>(name: &str, configured: &'c [ProviderConfig]) -> Result<(), Vec<&'c str>> {
    let own = KINDS.iter().copied().filter(|kind| !WITHOUT_ADDRESS.contains(kind));
    let mut names: Vec<&str> = configured.iter().map(|config| config.name.as_str()).chain(own).chain(RESERVED).collect();
    if names.contains(&name) {
        return Ok(());
    }
    names.sort_unstable();
    names.dedup();
    Err(names)
}

/// What is wrong with the name of a provider, and the way out; none where nothing is.
pub(super) fn unknown_provider(name: &str, configured: &[ProviderConfig]) -> Option<String> {
    let names = known_name(name, configured).err()?;
    let nearest = did_you_mean(name, names.iter().copied());
    let way_out = if nearest.is_empty() { format!("; add [providers.{name}], or use one of {}", names.join(", ")) } else { nearest };
    Some(format!("unknown provider \"{name}\"{way_out}"))
}

/// What is wrong with a `provider/model`, or the name of a route that may be in the database; none where nothing is.
pub(super) fn unknown_model(name: &str, configured: &[ProviderConfig]) -> Option<String> {
    match name.split_once('/') {
        Some((provider, "")) => Some(format!("expected a model after \"{provider}/\"")),
        Some((provider, _)) => unknown_provider(provider, configured),
        None if is_slug(name) => None,
        None => Some("expected provider/model or the name of a route".into()),
    }
}

/// Names that Refit gives out itself.
const RESERVED: [&str; 2] = ["local", "mock"];

/// Kinds that may be written in the file. `providers::KINDS` has the code for each; a test there holds the two together.
pub const KINDS: &[&str] = &[
    "openai",
    "compatible",
    "azure",
    "anthropic",
    "gemini",
    "groq",
    "mistral",
    "together",
    "fireworks",
    "deepseek",
    "xai",
    "openrouter",
    "perplexity",
    "ollama",
    "vllm",
    "llamacpp",
    "lmstudio",
];

/// Kinds that have no address of their own.
const WITHOUT_ADDRESS: [&str; 2] = ["compatible", "azure"];

pub(super) fn read(section: &Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<ProviderConfig> {
    let mut configs = Vec::new();
    for (name, span, value) in section.entries() {
        let path = section.name(name);
        if RESERVED.contains(&name) {
            problems.add(span, path, "this name is Refit's own; choose another");
            continue;
        }
        if !is_slug(name) {
            problems.add(span, path, "a provider's name is 1 to 64 of a-z, 0-9, '.', '_', '-'");
            continue;
        }
        let Some(table) = value.get_ref().as_table() else {
            problems.add(span, &path, format!("expected a table ([{path}])"));
            continue;
        };
        configs.push(read_one(name, span, Section::new(table, path), problems));
    }
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    configs
}

fn read_one(name: &str, span: Range<usize>, mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> ProviderConfig {
    let kind_span = section.take("kind").map_or(span.clone(), |value| value.span());
    let kind = section.text("kind", problems).unwrap_or_else(|| name.to_string());
    if !KINDS.contains(&kind.as_str()) {
        let nearest = did_you_mean(&kind, KINDS.iter().copied());
        let way_out = if nearest.is_empty() { format!("; known: {}", KINDS.join(", ")) } else { nearest };
        problems.add(kind_span, section.name("kind"), format!("unknown kind \"{kind}\"{way_out}"));
    }
    let base_url = base_url(&mut section, problems);
    if WITHOUT_ADDRESS.contains(&kind.as_str()) && base_url.is_none() {
        problems.add(span, section.name("base_url"), format!("the kind \"{kind}\" needs a base_url"));
    }
    let api_version = api_version(&kind, &mut section, problems);
    let defaults = ProviderConfig::new(name, kind);
    let timeout_s = section.integer("timeout_s", 1..=86_400, defaults.timeout_s, problems);
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let config = ProviderConfig {
        base_url,
        api_version,
        api_key: secret("api_key", &mut section, problems),
        models: section.texts("models", problems),
        connect_timeout_s: section.integer("connect_timeout_s", 1..=600, defaults.connect_timeout_s, problems),
        timeout_s,
        idle_timeout_s: section.integer("idle_timeout_s", 1..=86_400, defaults.idle_timeout_s, problems),
        first_byte_timeout_s: section.integer("first_byte_timeout_s", 1..=86_400, timeout_s, problems),
        total_timeout_s: Some(section.integer("total_timeout_s", 1..=86_400, 0, problems)).filter(|seconds| *seconds > 0),
        max_concurrency: Some(section.integer("max_concurrency", 1..=1_000_000, 0, problems)).filter(|n| *n > 0).map(count),
        max_queue: count(section.integer("max_queue", 0..=1_000_000, defaults.max_queue as u64, problems)),
        queue_timeout_ms: section.integer("queue_timeout_ms", 1..=3_600_000, defaults.queue_timeout_ms, problems),
        ..defaults
    };
    section.finish(problems);
    config
}

fn api_version(kind: &str, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
    let span = section.take("api_version")?.span();
    let version = section.text("api_version", problems)?;
    match kind {
        "azure" => Some(version),
        "anthropic" if VERSIONS.contains(&version.as_str()) => Some(version),
        "anthropic" => {
            problems.add(span, section.name("api_version"), format!("expected one of {}", VERSIONS.join(", ")));
            None
        }
        _ => {
            problems.add(span, section.name("api_version"), format!("the kind \"{kind}\" has no versions; azure and anthropic have"));
            None
        }
    }
}

fn base_url(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
    let span = section.take("base_url")?.span();
    let url = section.text("base_url", problems)?;
    let authority = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = authority.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or(""));
    if host.is_none_or(|host| host.is_empty() || host.contains('@')) || url.contains(['?', '#', ' ']) {
        let message = "expected http://HOST[:PORT][/PATH] or https://…, without user, query or fragment";
        problems.add(span, section.name("base_url"), message);
        return None;
    }
    Some(url.trim_end_matches('/').to_string())
}

/// `{ env = "NAME" }`: the only way to give a secret. A variable that is not set is no problem of the file; the provider says so
/// when it is called.
fn secret(key: &'static str, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Secret> {
    let value = section.take(key)?;
    let name = section.name(key);
    let Some(table) = value.get_ref().as_table() else {
        problems.add(value.span(), name, "secrets are not written here: use { env = \"NAME_OF_A_VARIABLE\" }");
        return None;
    };
    let mut inner = Section::new(table, name.clone());
    let variable = inner.text("env", problems);
    if variable.is_none() {
        problems.add(value.span(), name.clone(), "expected { env = \"NAME_OF_A_VARIABLE\" }");
    }
    inner.finish(problems);
    let variable = variable?;
    let text = env::text(&variable);
    if text.is_none() {
        problems.note(value.span(), name, format!("the environment variable {variable} is not set"));
    }
    text.map(|text| Secret::of_variable(&variable, text))
}
