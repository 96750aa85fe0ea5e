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
        }
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
    let config = ProviderConfig {
        base_url,
        api_version,
        api_key: secret("api_key", &mut section, problems),
        models: section.texts("models", problems),
        connect_timeout_s: section.integer("connect_timeout_s", 1..=600, defaults.connect_timeout_s, problems),
        timeout_s: section.integer("timeout_s", 1..=86_400, defaults.timeout_s, problems),
        idle_timeout_s: section.integer("idle_timeout_s", 1..=86_400, defaults.idle_timeout_s, problems),
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
