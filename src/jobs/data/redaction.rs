//! What is taken out of logged requests before anything is made of them, whatever the log's own rules were when they were written.

use super::operators;
use crate::config::guardrails::Detector;
use crate::config::{GuardrailsConfig, LogConfig};
use crate::guardrails::detect;
use crate::monitor::{Finding, Redactor};

/// Every detector there is, with the patterns and fields of the configuration.
pub fn redactor(config: &LogConfig, guardrails: &GuardrailsConfig) -> Redactor {
    let own = operators::patterns(&LogConfig::default(), guardrails);
    let own = own.iter().map(|(name, regex)| -> (&str, Finding) {
        let regex = regex.clone();
        (name, Box::new(move |text, places| places.extend(regex.find_iter(text).map(|found| found.range()))))
    });
    let finding =
        |detector: Detector| -> (&str, Finding) { (detector.name(), Box::new(move |text, places| detect::find(detector, text, places))) };
    Redactor::strictest(config, own.chain(Detector::ALL.into_iter().map(finding)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_detectors_find_is_taken_out_once() {
        let redactor = redactor(&LogConfig::default(), &GuardrailsConfig::default());
        assert_eq!(redactor.text("write to ann@example.com from 10.0.0.1"), "write to [email] from [ip_address]");
        assert_eq!(redactor.text("nothing here"), "nothing here");
    }
}
