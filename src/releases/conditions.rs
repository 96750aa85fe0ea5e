//! Gate conditions: what a metric must at least be, or at most where less is better. Pure; suites (`evals::gate`) and routes ([`super::gate`]) use the same type.
//!
//! Metrics are one JSON object per target: `{"<scorer>": {"mean", "standard_error", "ci95": [low, high]}}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// One condition: `metric` measured `on` the mean or an end of the interval must be within the bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Condition {
    /// Name in the metrics, such as `exact_match` or `json_field.intent`.
    pub metric: String,
    /// Which number of the metric is compared.
    pub on: Measure,
    /// What it must be.
    pub bound: Bound,
}

/// What a number must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

/// A condition as it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    metric: String,
    #[serde(default)]
    on: Measure,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
}

impl TryFrom<Wire> for Condition {
    type Error = String;

    fn try_from(Wire { metric, on, at_least, at_most }: Wire) -> Result<Self, String> {
        Ok(Condition { metric, on, bound: Bound::of(at_least, at_most)? })
    }
}

impl From<Condition> for Wire {
    fn from(Condition { metric, on, bound }: Condition) -> Self {
        let (at_least, at_most) = match bound {
            Bound::AtLeast(bound) => (Some(bound), None),
            Bound::AtMost(bound) => (None, Some(bound)),
        };
        Wire { metric, on, at_least, at_most }
    }
}

impl Bound {
    /// The one of the two that is given.
    ///
    /// # Errors
    /// Where neither or both are.
    pub fn of(at_least: Option<f64>, at_most: Option<f64>) -> Result<Self, String> {
        match (at_least, at_most) {
            (Some(bound), None) => Ok(Bound::AtLeast(bound)),
            (None, Some(bound)) => Ok(Bound::AtMost(bound)),
            (None, None) => Err("a threshold has at_least or at_most".into()),
            (Some(_), Some(_)) => Err("a threshold has at_least or at_most; write two for a range".into()),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        }
    }

    /// For people: `>= 0.6` of a number that is, `< 0.6` of one that is not.
    fn shown(self, holds: bool) -> String {
        match (self, holds) {
            (Bound::AtLeast(bound), true) => format!(">= {bound}"),
            (Bound::AtLeast(bound), false) => format!("< {bound}"),
            (Bound::AtMost(bound), true) => format!("<= {bound}"),
            (Bound::AtMost(bound), false) => format!("> {bound}"),
        }
    }
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
    /// Upper end of the 95 % interval: the same where less is better.
    CiHigh,
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
            Measure::CiHigh => metric.and_then(|metric| metric.get("ci95")?.get(1)),
        };
        let value = number.and_then(Value::as_f64).filter(|value| value.is_finite());
        let passed = value.is_some_and(|value| self.bound.holds(value));
        let reason = match value {
            None if metric.is_none() => format!("{self}: the run has no metric \"{}\"", self.metric),
            None => format!("{self}: the run has no such number"),
            Some(value) => format!("{} {} {value:.4} {}", self.metric, self.on, self.bound.shown(passed)),
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
            Measure::CiHigh => "ci_high",
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound {
            Bound::AtLeast(bound) => write!(f, "{}:{}>={bound}", self.metric, self.on),
            Bound::AtMost(bound) => write!(f, "{}:{}<={bound}", self.metric, self.on),
        }
    }
}

impl FromStr for Condition {
    type Err = String;

    /// Reads `METRIC>=NUMBER`, `METRIC<=NUMBER` or `METRIC:ci_low>=NUMBER`, as the command line takes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected METRIC>=NUMBER, METRIC<=NUMBER or METRIC:ci_low>=NUMBER, such as exact_match:ci_low>=0.5";
        let least = text.split_once(">=").map(|sides| (sides, Bound::AtLeast as fn(f64) -> Bound));
        let most = || text.split_once("<=").map(|sides| (sides, Bound::AtMost as fn(f64) -> Bound));
        let ((left, right), bound) = least.or_else(most).ok_or_else(|| format!("{text:?}: {expected}"))?;
        let (metric, on) = match left.trim().rsplit_once(':') {
            Some((metric, "ci_low")) => (metric, Measure::CiLow),
            Some((metric, "ci_high")) => (metric, Measure::CiHigh),
            Some((metric, "mean")) => (metric, Measure::Mean),
            Some((_, other)) => return Err(format!("{text:?}: \"{other}\" is none of mean, ci_low and ci_high")),
            None => (left.trim(), Measure::Mean),
        };
        let number = right.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| format!("{text:?}: \"{}\" is not a number; {expected}", right.trim()))?;
        if metric.is_empty() {
            return Err(format!("{text:?}: the metric is missing; {expected}"));
        }
        Ok(Condition { metric: metric.to_string(), on, bound: bound(number) })
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

    #[test]
    fn where_less_is_better_a_bound_is_above() {
        let metrics = json!({"latency": {"mean": 120.0, "ci95": [100.0, 140.0]}});
        let verdicts = check(&[condition("latency<=120"), condition("latency:ci_high<=130"), condition("latency>=1")], &metrics);
        assert_eq!(verdicts.iter().map(|one| one.passed).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(verdicts[1].reason, "latency ci_high 140.0000 > 130");
        let wire = json!({"metric": "latency", "on": "ci_high", "at_most": 130.0});
        let read: Condition = serde_json::from_value(wire.clone()).expect("a condition");
        assert_eq!((serde_json::to_value(&read).expect("JSON"), read), (wire, condition("latency:ci_high<=130")));
        for wrong in [json!({"metric": "a"}), json!({"metric": "a", "at_least": 1, "at_most": 2}), json!({"metric": "a", "at_lest": 1})] {
            assert!(serde_json::from_value::<Condition>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
