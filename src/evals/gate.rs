//! The gate of a suite: its conditions over the metrics of a run. Pure; routes have a gate of their own (`releases::gate`).

use super::suite::GateCondition;
use crate::releases::conditions::Verdict;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the gate said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Whether every condition was met.
    pub passed: bool,
    /// One per condition and target.
    pub verdicts: Vec<TargetVerdict>,
}

/// One condition, for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetVerdict {
    /// Target.
    pub target: String,
    /// The condition, the number found, and whether it was met.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Judges a run's metrics, given by target. `None` when the suite has no gate: then nothing was asked and nothing is passed.
pub fn judge(conditions: &[GateCondition], targets: &[(String, Value)]) -> Option<Gate> {
    if conditions.is_empty() {
        return None;
    }
    let mut verdicts = Vec::new();
    for GateCondition { target: wanted, condition } in conditions {
        let meant = targets.iter().filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name));
        verdicts.extend(meant.map(|(name, metrics)| TargetVerdict { target: name.clone(), verdict: condition.check(metrics) }));
    }
    Some(Gate { passed: !verdicts.is_empty() && verdicts.iter().all(|one| one.verdict.passed), verdicts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_for_their_target_or_for_all() {
        let metrics = |mean: f64| json!({"exact_match": {"mean": mean, "standard_error": 0.1, "ci95": [mean - 0.2, mean + 0.2]}});
        let targets = [("base".to_string(), metrics(0.1)), ("best".to_string(), metrics(0.6))];
        let gate = |target: Option<&str>, text: &str| {
            let condition = GateCondition { target: target.map(String::from), condition: text.parse().expect("a condition") };
            judge(&[condition], &targets).expect("judged").passed
        };
        assert!(gate(Some("best"), "exact_match>=0.6") && !gate(None, "exact_match>=0.6") && gate(None, "exact_match>=0.1"));
        assert!(!gate(Some("best"), "exact_match:ci_low>=0.5") && gate(Some("best"), "exact_match:ci_low>=0.39"));
        assert!(!gate(Some("none"), "exact_match>=0"), "nothing measured is nothing passed");
        assert_eq!(judge(&[], &targets), None);
    }
}
