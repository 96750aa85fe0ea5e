//! Gate conditions: what a metric must at least be. Pure; suites (`evals::gate`) and routes ([`super::gate`]) use the same type.
//!
//! Metrics are one JSON object per target: `{"<scorer>": {"mean", "standard_error", "ci95": [low, high]}}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// One condition: `metric` measured `on` the mean or the interval's lower end must be at least `at_least`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Name in the metrics, such as `exact_match` or `json_field.intent`.
    pub metric: String,
    /// Which number of the metric is compared.
    #[serde(default)]
    pub on: Measure,
    /// Smallest value that passes.
    pub at_least: f64,
}

/// Which number of a metric a condition looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The mean over samples.
    #[default]
    Mean,
    /// Lower end of the 95 % interval: what the data supports, not what it happened to show.
    CiLow,
}

/// What became of one condition, with the number used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The condition.
    pub condition: Condition,
    /// The number found; `null` when the metrics have none.
    pub value: Option<f64>,
    /// Whether it was met.
    pub passed: bool,
    /// For people: `exact_match mean 0.712 >= 0.6`.
    pub reason: String,
}

impl Condition {
    /// Checks the condition against one target's metrics. A missing or non-finite number does not pass.
    pub fn check(&self, metrics: &Value) -> Verdict {
        let metric = metrics.get(&self.metric);
        let number = match self.on {
            Measure::Mean => metric.and_then(|metric| metric.get("mean")),
            Measure::CiLow => metric.and_then(|metric| metric.get("ci95")?.get(0)),
        };
        let value = number.and_then(Value::as_f64).filter(|value| value.is_finite());
        let passed = value.is_some_and(|value| value >= self.at_least);
        let reason = match value {
            None if metric.is_none() => format!("{self}: the run has no metric \"{}\"", self.metric),
            None => format!("{self}: the run has no such number"),
            Some(value) => format!("{} {} {value:.4} {} {}", self.metric, self.on, if passed { ">=" } else { "<" }, self.at_least),
        };
        Verdict { condition: self.clone(), value, passed, reason }
    }
}

/// Checks all conditions, in order. No conditions give no verdicts: the caller decides what that means.
pub fn check(conditions: &[Condition], metrics: &Value) -> Vec<Verdict> {
    conditions.iter().map(|condition| condition.check(metrics)).collect()
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Measure::Mean => "mean",
            Measure::CiLow => "ci_low",
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}>={}", self.metric, self.on, self.at_least)
    }
}

impl FromStr for Condition {
    type Err = String;

    /// Reads `METRIC>=NUMBER` or `METRIC:ci_low>=NUMBER`, as the command line takes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected METRIC>=NUMBER or METRIC:ci_low>=NUMBER, such as exact_match:ci_low>=0.5";
        let (left, right) = text.split_once(">=").ok_or_else(|| format!("{text:?}: {expected}"))?;
        let (metric, on) = match left.trim().rsplit_once(':') {
            Some((metric, "ci_low")) => (metric, Measure::CiLow),
            Some((metric, "mean")) => (metric, Measure::Mean),
            Some((_, other)) => return Err(format!("{text:?}: \"{other}\" is neither mean nor ci_low")),
            None => (left.trim(), Measure::Mean),
        };
        let at_least = right.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let at_least = at_least.ok_or_else(|| format!("{text:?}: \"{}\" is not a number; {expected}", right.trim()))?;
        if metric.is_empty() {
            return Err(format!("{text:?}: the metric is missing; {expected}"));
        }
        Ok(Condition { metric: metric.to_string(), on, at_least })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn condition(text: &str) -> Condition {
        text.parse().expect("a condition")
    }

    #[test]
    fn mean_and_interval_are_compared_and_equality_passes() {
        let metrics = json!({"exact_match": {"mean": 0.6, "standard_error": 0.05, "ci95": [0.5, 0.7]}});
        let verdicts = check(&[condition("exact_match>=0.6"), condition("exact_match:ci_low>=0.51")], &metrics);
        assert!(verdicts[0].passed && verdicts[0].value == Some(0.6));
        assert!(!verdicts[1].passed && verdicts[1].value == Some(0.5));
        assert_eq!(verdicts[1].reason, "exact_match ci_low 0.5000 < 0.51");
    }

    #[test]
    fn missing_metrics_never_pass() {
        let verdict = condition("json_field.intent>=0").check(&json!({"exact_match": {"mean": 1}}));
        assert!(!verdict.passed && verdict.reason.contains("json_field.intent"));
        assert!(!condition("exact_match:ci_low>=0").check(&json!({"exact_match": {"mean": 1, "ci95": null}})).passed);
    }

    #[test]
    fn text_form_round_trips_and_errors_name_the_fault() {
        assert_eq!(condition("a.b:mean >= 1").to_string().parse(), Ok(condition("a.b>=1")));
        for (text, fault) in
            [("a>0.5", "expected"), ("a:p50>=1", "p50"), ("a>=x", "\"x\""), (">=1", "metric is missing"), ("a>=NaN", "NaN")]
        {
            assert!(text.parse::<Condition>().expect_err(text).contains(fault), "{text}");
        }
    }
}
