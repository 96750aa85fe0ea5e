//! `[prompts]`: labels that move only with proof, and the suites that give it.

use super::raw::{Problems, Section};
use crate::types::ids::is_slug;
use serde::Serialize;
use std::collections::BTreeMap;

/// Settings of prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PromptsConfig {
    /// Labels that a version gets only when a stored run of its suite passes the suite's gate.
    pub protected: Vec<String>,
    /// Suite of a prompt, by its name; of others it is the suite with the prompt's name.
    pub suites: BTreeMap<String, String>,
}

impl PromptsConfig {
    /// Whether a label moves only with proof.
    pub fn protects(&self, label: &str) -> bool {
        self.protected.iter().any(|protected| protected == label)
    }

    /// The suite whose runs prove a prompt.
    pub fn suite_of<'n>(&'n self, prompt: &'n str) -> &'n str {
        self.suites.get(prompt).map_or(prompt, String::as_str)
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> PromptsConfig {
    let span = section.take("protected").map_or(0..0, |value| value.span());
    let protected = section.texts("protected", problems);
    if let Some(wrong) = protected.iter().find(|label| !is_slug(label) || *label == "latest") {
        let message = if wrong == "latest" {
            "\"latest\" is the newest version; it cannot be protected"
        } else {
            "expected labels: a-z, 0-9, '.', '_', '-'"
        };
        problems.add(span, section.name("protected"), message);
    }
    let suites = section.section("suites", problems).map(|names| suites(&names, problems)).unwrap_or_default();
    section.finish(problems);
    PromptsConfig { protected, suites }
}

fn suites(names: &Section<'_, '_>, problems: &mut Problems<'_>) -> BTreeMap<String, String> {
    let mut suites = BTreeMap::new();
    for (prompt, _, value) in names.entries() {
        match value.get_ref().as_str().filter(|suite| is_slug(suite)) {
            Some(suite) => drop(suites.insert(prompt.to_string(), suite.to_string())),
            None => problems.add(value.span(), names.name(prompt), "expected the name of a suite, as its file says in `name`"),
        }
    }
    suites
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn labels_and_suites_are_read_and_mistakes_named() {
        let text = "[prompts]\nprotected = [\"production\"]\n[prompts.suites]\ngreet = \"greetings\"\n";
        let prompts = Config::parse(text, Path::new("refit.toml")).expect("valid").prompts;
        assert!(prompts.protects("production") && !prompts.protects("staging"));
        assert_eq!((prompts.suite_of("greet"), prompts.suite_of("other")), ("greetings", "other"));
        let wrong =
            Config::parse("[prompts]\nprotected = [\"latest\"]\nsuites = { greet = 1 }\n", Path::new("refit.toml")).expect_err("wrong");
        let text = wrong.to_string();
        assert!(text.contains("line 2: prompts.protected") && text.contains("line 3: prompts.suites.greet"), "{text}");
    }
}
