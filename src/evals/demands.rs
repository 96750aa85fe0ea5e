//! What a suite's gate demands besides thresholds: not to be worse than another beyond a margin, and cases that must pass whatever the
//! average says. How they are written and checked; [`gate`](super::gate) judges them.

use crate::stats::Paired;
use crate::types::error::did_you_mean;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A demand, for one target or for every one.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Target that must meet it; every one when absent.
    pub target: Option<String>,
    /// What is demanded.
    pub what: What,
}

/// What is demanded.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The worse end of the paired difference's 95 % interval is no worse than the margin.
    NotWorseThan {
        /// What is compared with.
        other: Other,
        /// Metric.
        metric: String,
        /// How much worse is not worse, in units of the metric.
        margin: f64,
    },
    /// Every repeat of these cases gets full marks.
    MustPass(MustPass),
}

/// What a target must not be worse than.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Other {
    /// The release that is live on a route, by the newest run of the suite that measured it on the same samples.
    Route(String),
    /// Another target of the run.
    Target(String),
}

/// Cases by id, or by a tag in `metadata.tags`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MustPass {
    /// Sample ids.
    #[serde(default)]
    pub ids: Vec<String>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What became of a demand, for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Demanded {
    /// Target.
    pub target: String,
    /// `not_worse_than` or `must_pass`.
    pub demand: String,
    /// Whether it was met.
    pub passed: bool,
    /// For people.
    pub reason: String,
    /// The difference that decided, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paired: Option<Paired>,
    /// Cases that did not pass, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<String>,
}

/// The part of a gate's entry that is a demand.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    metric: Option<String>,
    #[serde(default)]
    not_worse_than: Option<Other>,
    #[serde(default)]
    margin: Option<f64>,
    #[serde(default)]
    must_pass: Option<MustPass>,
}

impl Raw {
    /// The demand.
    ///
    /// # Errors
    /// What is missing or does not belong together.
    pub(super) fn checked(self) -> Result<Demand, String> {
        let Raw { target, metric, not_worse_than, margin, must_pass } = self;
        let what = match (not_worse_than, must_pass, metric) {
            (Some(other), None, Some(metric)) => {
                let margin = margin.unwrap_or(0.0);
                if !margin.is_finite() || margin < 0.0 {
                    return Err(format!("margin must be 0 or more, not {margin}"));
                }
                What::NotWorseThan { other, metric, margin }
            }
            (Some(_), None, None) => return Err("not_worse_than needs a `metric`".into()),
            (None, Some(must_pass), None) if margin.is_none() => {
                if must_pass.ids.is_empty() && must_pass.tags.is_empty() {
                    return Err("must_pass names neither `ids` nor `tags`".into());
                }
                What::MustPass(must_pass)
            }
            (None, Some(_), _) => return Err("must_pass takes no `metric` and no `margin`: these cases get full marks".into()),
            _ => return Err("one entry is a threshold (at_least, at_most), not_worse_than or must_pass".into()),
        };
        Ok(Demand { target, what })
    }
}

impl Demand {
    /// Refuses names that the suite does not have, and figures that no case has a value for: word at fault and problem.
    ///
    /// # Errors
    /// With the nearest name.
    pub(super) fn check(&self, (metrics, figures): (&[String], &[String]), targets: &[&str]) -> Result<(), (String, String)> {
        let unknown = |what: &str, name: &str, known: &[&str]| {
            let nearest = did_you_mean(name, known.iter().copied());
            Err((name.to_string(), format!("gate: there is no {what} \"{name}\"{nearest}")))
        };
        if let Some(target) = self.target.as_ref().filter(|target| !targets.contains(&target.as_str())) {
            return unknown("target", target, targets);
        }
        let What::NotWorseThan { other, metric, .. } = &self.what else { return Ok(()) };
        if !metrics.contains(metric) && figures.contains(metric) {
            let problem =
                format!("gate: \"{metric}\" has no value for each case to compare; not_worse_than takes one of: {}", metrics.join(", "));
            return Err((metric.clone(), problem));
        }
        if !metrics.contains(metric) {
            let known: Vec<_> = metrics.iter().map(String::as_str).collect();
            return unknown("metric", metric, &known);
        }
        match other {
            Other::Target(name) if !targets.contains(&name.as_str()) => unknown("target", name, targets),
            _ => Ok(()),
        }
    }
}

impl MustPass {
    /// Whether a sample is one of them.
    pub(super) fn has(&self, id: &str, metadata: &serde_json::Map<String, Value>) -> bool {
        let tagged = |tag: &Value| tag.as_str().is_some_and(|tag| self.tags.iter().any(|wanted| wanted == tag));
        let of = |value: &Value| value.as_array().map_or(tagged(value), |tags| tags.iter().any(tagged));
        self.ids.iter().any(|wanted| wanted == id) || metadata.get("tags").is_some_and(of)
    }

    /// For people: `c1, c2, tag safety`.
    pub(super) fn shown(&self) -> String {
        self.ids.iter().cloned().chain(self.tags.iter().map(|tag| format!("tag {tag}"))).collect::<Vec<_>>().join(", ")
    }
}
