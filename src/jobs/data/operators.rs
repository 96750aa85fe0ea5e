//! What the operator looks for besides what every detector finds: the patterns of guardrails and of the request log.

use crate::config::{GuardrailsConfig, LogConfig};
use regex::Regex;

/// A pattern, and what its finds are called.
pub type Named = (String, Regex);

/// The operator's patterns; one that stands in several sets once. They were checked when the configuration was read.
pub fn patterns(log: &LogConfig, guardrails: &GuardrailsConfig) -> Vec<Named> {
    let of_guardrails = guardrails.sets.values().flat_map(|set| &set.patterns).map(|pattern| (pattern.name.clone(), &pattern.regex));
    let of_log = log.redact_patterns.iter().enumerate().map(|(at, regex)| (format!("redact_patterns[{at}]"), regex));
    let mut found: Vec<Named> = Vec::new();
    for (name, source) in of_guardrails.chain(of_log) {
        let is_new = found.iter().all(|(_, known)| known.as_str() != source.as_str());
        found.extend(Regex::new(source).ok().filter(|_| is_new).map(|regex| (name, regex)));
    }
    found
}
