//! `[cache]`: replies that are given again, for which names, how many bytes and how long; `[cache.semantic]`: also to questions that
//! mean the same.

use super::ProviderConfig;
use super::providers::unknown_model;
use super::raw::{Problems, Section};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeValue;

/// Settings of the cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheConfig {
    /// Whether replies are kept and given again, where nothing else is said for a name.
    pub enabled: bool,
    /// Bytes of replies that are kept; beyond them those go that are asked for least.
    pub max_bytes: u64,
    /// Bytes of one reply; larger ones are not kept.
    pub max_entry_bytes: u64,
    /// Seconds that a reply is kept.
    pub ttl_s: u64,
    /// Whether replies to requests that leave room for chance (no temperature of 0, no seed) are kept too.
    pub sampled: bool,
    /// Names (routes, `provider/model`) for which the cache is on or off whatever `enabled` says.
    pub routes: BTreeMap<String, bool>,
    /// `[cache.semantic]`
    pub semantic: SemanticConfig,
}

/// Settings of the semantic cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SemanticConfig {
    /// Whether questions that mean the same get the same reply.
    pub enabled: bool,
    /// Model that makes the vectors, as in `/v1/embeddings`.
    pub model: String,
    /// Cosine of two questions from which on they mean the same.
    pub threshold: f64,
    /// Questions that are kept; the oldest go first.
    pub max_entries: u64,
}

/// Makes vectors where no other model is named: small, and on this machine.
const LOCAL_MODEL: &str = "local/all-minilm-l6-v2";

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            enabled: false,
            max_bytes: 64 << 20,
            max_entry_bytes: 1 << 20,
            ttl_s: 3_600,
            sampled: true,
            routes: BTreeMap::new(),
            semantic: SemanticConfig::default(),
        }
    }
}

impl Default for SemanticConfig {
    fn default() -> Self {
        SemanticConfig { enabled: false, model: LOCAL_MODEL.into(), threshold: 0.95, max_entries: 1_000 }
    }
}

impl CacheConfig {
    /// How long a reply is kept.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_s)
    }
}

pub(super) fn read(mut section: Section<'_, '_>, providers: &[ProviderConfig], problems: &mut Problems<'_>) -> CacheConfig {
    let default = CacheConfig::default();
    let max_bytes = section.integer("max_bytes", 65_536..=1 << 40, default.max_bytes, problems);
    let routes = section.section("routes", problems).map(|names| switches(&names, providers, problems));
    let semantic = section.section("semantic", problems).map(|section| semantic(section, problems));
    let config = CacheConfig {
        enabled: section.switch("enabled", default.enabled, problems),
        max_bytes,
        // A smaller cache holds smaller replies.
        max_entry_bytes: section.integer("max_entry_bytes", 1_024..=1 << 30, default.max_entry_bytes, problems).min(max_bytes / 4),
        ttl_s: section.integer("ttl_s", 1..=31_536_000, default.ttl_s, problems),
        sampled: section.switch("sampled", default.sampled, problems),
        routes: routes.unwrap_or_default(),
        semantic: semantic.unwrap_or_default(),
    };
    section.finish(problems);
    config
}

fn switches(names: &Section<'_, '_>, providers: &[ProviderConfig], problems: &mut Problems<'_>) -> BTreeMap<String, bool> {
    let mut switches = BTreeMap::new();
    for (name, span, value) in names.entries() {
        if let Some(why) = unknown_model(name, providers) {
            problems.add(span, names.name(name), why);
        }
        match value.get_ref().as_bool() {
            Some(on) => drop(switches.insert(name.to_string(), on)),
            None => problems.add(value.span(), names.name(name), "expected true or false: whether replies of this name are kept"),
        }
    }
    switches
}

fn semantic(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> SemanticConfig {
    let default = SemanticConfig::default();
    let config = SemanticConfig {
        enabled: section.switch("enabled", default.enabled, problems),
        threshold: section.take("threshold").map_or(default.threshold, |value| {
            cosine(value).unwrap_or_else(|| {
                problems.add(value.span(), section.name("threshold"), "expected a number above 0 and up to 1");
                default.threshold
            })
        }),
        max_entries: section.integer("max_entries", 1..=20_000, default.max_entries, problems),
        model: section.text("model", problems).unwrap_or(default.model),
    };
    section.finish(problems);
    config
}

fn cosine(value: &Spanned<DeValue<'_>>) -> Option<f64> {
    let number = match value.get_ref() {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) => number.as_str().parse().ok(),
        _ => None,
    };
    number.filter(|number: &f64| *number > 0.0 && *number <= 1.0)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError};
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("refit.toml"))
    }

    #[test]
    fn names_are_switched_and_every_mistake_has_its_key() {
        let config = parse("[cache]\nmax_bytes = 1_000_000\n[cache.routes]\nsupport = true\n\"openai/gpt-4o\" = false\n").expect("valid");
        assert_eq!((config.cache.routes["support"], config.cache.routes["openai/gpt-4o"], config.cache.enabled), (true, false, false));
        assert_eq!(config.cache.max_entry_bytes, 250_000, "one reply is at most a quarter");
        let wrong =
            parse("[cache]\nttl_s = 0\n[cache.routes]\na = 1\n\"opnai/x\" = true\n[cache.semantic]\nenabled = 1\nthreshold = 1.5\n")
                .expect_err("wrong");
        let text = wrong.to_string();
        for key in [
            "cache.ttl_s",
            "cache.routes.a",
            "cache.routes.opnai/x: unknown provider",
            "cache.semantic.enabled",
            "cache.semantic.threshold",
        ] {
            assert!(text.contains(key), "{key}: {text}");
        }
    }
}
