//! Scorers made of scorers. `all` is the least of their values, `any` the greatest: for values of 0 and 1 that is "and" and "or". They
//! ask from left to right and stop where the outcome stands, so that a judge at the end is asked only where it matters. `weighted` is the
//! weighted mean, `not` is 1 less the value, `threshold` is 1 where the value is within its bounds. Each looks at the main metric of its
//! parts.

use super::{Asks, Author, Case, Options, Scale, Scored, Scorer, Services, build_for};
use futures_util::future::BoxFuture;
use serde_json::Value;

/// A part, and the name of its main metric.
struct Part {
    scorer: Box<dyn Scorer>,
    metric: String,
    weight: f64,
}

impl Part {
    fn new(spec: &Value, weight: f64, author: &Author) -> Result<Self, String> {
        let scorer = build_for(spec, author.clone()).map_err(|(_, problem)| problem)?;
        let metric = scorer.metrics().into_iter().next().unwrap_or_default();
        Ok(Part { scorer, metric, weight })
    }

    /// A part whose value is from 0 to 1.
    fn share(spec: &Value, weight: f64, author: &Author) -> Result<Self, String> {
        let part = Part::new(spec, weight, author)?;
        match part.scorer.scale(&part.metric) {
            Scale::Pass | Scale::Share => Ok(part),
            Scale::Less(unit) | Scale::Plain(unit) => {
                Err(format!("{} is in {unit}, not from 0 to 1; put it into `threshold`", part.metric))
            }
        }
    }

    fn scale(&self) -> Scale {
        self.scorer.scale(&self.metric)
    }

    async fn value(&self, case: &Case<'_>, services: &dyn Services) -> Result<(Option<f64>, String), String> {
        let scored = self.scorer.score(case, services).await.map_err(|problem| format!("{}: {problem}", self.metric))?;
        let value = scored.values.first().copied().flatten();
        let why = scored.explanation.map(|why| format!(" ({why})")).unwrap_or_default();
        let shown = value.map_or("unknown".into(), |value| format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_string());
        Ok((value, format!("{} {shown}{why}", self.metric)))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    All,
    Any,
    Weighted,
}

struct Combined {
    name: String,
    how: How,
    parts: Vec<Part>,
}

pub(super) fn all(name: String, options: Options) -> Result<Box<dyn Scorer>, String> {
    combined(name, How::All, options)
}

pub(super) fn any(name: String, options: Options) -> Result<Box<dyn Scorer>, String> {
    combined(name, How::Any, options)
}

pub(super) fn weighted(name: String, options: Options) -> Result<Box<dyn Scorer>, String> {
    combined(name, How::Weighted, options)
}

fn combined(name: String, how: How, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let author = options.author.clone();
    let parts = match options.take("scorers") {
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        Some(_) => return Err("scorers must be a list of scorers".into()),
        None => return Err("scorers is missing".into()),
    };
    options.finish()?;
    let parts = parts.iter().map(|part| if how == How::Weighted { with_weight(part, &author) } else { Part::share(part, 1.0, &author) });
    Ok(Box::new(Combined { name, how, parts: parts.collect::<Result<_, _>>()? }))
}

/// `{scorer: …, weight: 2}`, or a scorer with weight 1.
fn with_weight(part: &Value, author: &Author) -> Result<Part, String> {
    let Some(map) = part.as_object().filter(|map| map.contains_key("scorer")) else { return Part::share(part, 1.0, author) };
    let mut options = Options::new(map.clone(), author.clone());
    let (scorer, weight) = (options.take("scorer").unwrap_or_default(), options.number("weight", 0.0)?.unwrap_or(1.0));
    options.finish()?;
    if weight <= 0.0 {
        return Err("weight must be more than 0".into());
    }
    Part::share(&scorer, weight, author)
}

impl Scorer for Combined {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        let is_verdict = self.how != How::Weighted && self.parts.iter().all(|part| part.scale() == Scale::Pass);
        if is_verdict { Scale::Pass } else { Scale::Share }
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let (mut shown, mut outcome) = (Vec::new(), Outcome::new(self.how));
            for part in &self.parts {
                let (value, text) = part.value(case, services).await?;
                shown.push(text);
                outcome.add(value, part.weight);
                if outcome.stands() {
                    break;
                }
            }
            Ok(Scored { values: vec![outcome.value()], explanation: Some(shown.join(", ")) })
        })
    }

    fn runs_commands(&self) -> bool {
        self.parts.iter().any(|part| part.scorer.runs_commands())
    }

    fn is_unpinned(&self) -> bool {
        self.parts.iter().any(|part| part.scorer.is_unpinned())
    }

    fn compares_with(&self) -> Vec<String> {
        self.parts.iter().flat_map(|part| part.scorer.compares_with()).collect()
    }

    fn asks(&self) -> Vec<Asks> {
        self.parts.iter().flat_map(|part| part.scorer.asks()).collect()
    }
}

/// What the parts so far come to.
struct Outcome {
    how: How,
    extreme: Option<f64>,
    sum: f64,
    weight: f64,
    unknown: bool,
}

impl Outcome {
    fn new(how: How) -> Self {
        Outcome { how, extreme: None, sum: 0.0, weight: 0.0, unknown: false }
    }

    fn add(&mut self, value: Option<f64>, weight: f64) {
        let Some(value) = value else {
            self.unknown = true;
            return;
        };
        (self.sum, self.weight) = (self.sum + weight * value, self.weight + weight);
        let pick = if self.how == How::Any { f64::max } else { f64::min };
        self.extreme = Some(self.extreme.map_or(value, |known| pick(known, value)));
    }

    /// Whether no further part can change it.
    fn stands(&self) -> bool {
        match self.how {
            How::All => self.extreme.is_some_and(|value| value <= 0.0),
            How::Any => self.extreme.is_some_and(|value| value >= 1.0),
            How::Weighted => false,
        }
    }

    /// None where a part that matters is not known.
    fn value(&self) -> Option<f64> {
        match self.how {
            _ if self.unknown && !self.stands() => None,
            How::Weighted => Some(self.sum / self.weight),
            _ => self.extreme,
        }
    }
}

struct Not {
    name: String,
    part: Part,
}

pub(super) fn not(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let part = Part::share(&options.take("scorer").ok_or("scorer is missing")?, 1.0, &options.author.clone())?;
    options.finish()?;
    Ok(Box::new(Not { name, part }))
}

impl Scorer for Not {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        self.part.scale()
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let (value, text) = self.part.value(case, services).await?;
            Ok(Scored { values: vec![value.map(|value| 1.0 - value)], explanation: Some(text) })
        })
    }

    fn runs_commands(&self) -> bool {
        self.part.scorer.runs_commands()
    }

    fn is_unpinned(&self) -> bool {
        self.part.scorer.is_unpinned()
    }

    fn compares_with(&self) -> Vec<String> {
        self.part.scorer.compares_with()
    }

    fn asks(&self) -> Vec<Asks> {
        self.part.scorer.asks()
    }
}

struct Threshold {
    name: String,
    part: Part,
    /// Place of the metric among the part's.
    place: usize,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

pub(super) fn threshold(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let mut part = Part::new(&options.take("scorer").ok_or("scorer is missing")?, 1.0, &options.author.clone())?;
    let (at_least, at_most) = (options.number("at_least", f64::MIN)?, options.number("at_most", f64::MIN)?);
    let metrics = part.scorer.metrics();
    let place = match options.text("metric")? {
        None => 0,
        Some(metric) => {
            let unknown = || format!("{} has no metric \"{metric}\" (metrics: {})", part.metric, metrics.join(", "));
            metrics.iter().position(|known| *known == metric).ok_or_else(unknown)?
        }
    };
    options.finish()?;
    if at_least.is_none() && at_most.is_none() {
        return Err("give at_least, at_most or both".into());
    }
    part.metric.clone_from(&metrics[place]);
    Ok(Box::new(Threshold { name, part, place, at_least, at_most }))
}

impl Scorer for Threshold {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            let scored = self.part.scorer.score(case, services).await.map_err(|problem| format!("{}: {problem}", self.part.metric))?;
            let Some(value) = scored.values.get(self.place).copied().flatten() else {
                return Ok(Scored { values: vec![None], explanation: Some(format!("{} is not known", self.part.metric)) });
            };
            let within = self.at_least.is_none_or(|bound| value >= bound) && self.at_most.is_none_or(|bound| value <= bound);
            Ok(Scored::from(within).because(format!("{} is {value}", self.part.metric)))
        })
    }

    fn runs_commands(&self) -> bool {
        self.part.scorer.runs_commands()
    }

    fn is_unpinned(&self) -> bool {
        self.part.scorer.is_unpinned()
    }

    fn compares_with(&self) -> Vec<String> {
        self.part.scorer.compares_with()
    }

    fn asks(&self) -> Vec<Asks> {
        self.part.scorer.asks()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{look, looked, refused};
    use crate::evals::Reply;
    use serde_json::json;

    #[test]
    fn parts_are_combined() {
        let value = |spec, output: &str| look(&spec, output, json!("Paris")).expect("a score").values[0].expect("a value");
        let (yes, no) = (json!("exact_match"), json!({"includes": {"value": "London"}}));
        assert_eq!(value(json!({"all": [yes, no]}), "Paris"), 0.0);
        assert_eq!(value(json!({"any": [no, yes]}), "Paris"), 1.0);
        assert_eq!(value(json!({"not": no}), "Paris"), 1.0);
        assert_eq!(value(json!({"not": {"scorer": yes, "name": "wrong"}}), "Paris"), 0.0);
        let weighted = json!({"weighted": {"scorers": [{"scorer": yes, "weight": 3}, no]}});
        assert_eq!(value(weighted, "Paris"), 0.75);
        assert_eq!(value(json!({"threshold": {"scorer": "edit_distance", "at_least": 0.8}}), "Pariss"), 1.0);
        let edits = json!({"threshold": {"scorer": "edit_distance", "metric": "edit_distance.edits", "at_most": 0}});
        assert_eq!(value(edits, "Pariss"), 0.0);
        let nested = json!({"all": {"scorers": [{"any": [no, yes]}, {"not": no}], "name": "fine"}});
        let scored = look(&nested, "Paris", json!("Paris")).expect("a score");
        assert_eq!(scored.values, [Some(1.0)]);
        assert_eq!(scored.explanation.as_deref(), Some("any 1 (includes 0, exact_match 1), not 1 (includes 0)"));
    }

    #[test]
    fn what_is_not_known_stays_unknown_where_it_matters() {
        let reply = Reply { output: "a".into(), ..Reply::default() };
        let cheap = json!({"threshold": {"scorer": "cost", "at_most": 5}});
        let value = |spec| looked(&spec, &reply, json!("a")).expect("a score").values[0];
        assert_eq!(value(json!({"all": [cheap, "exact_match"]})), None);
        assert_eq!(value(json!({"all": [cheap, {"not": "exact_match"}]})), Some(0.0), "one that fails decides");
        assert_eq!(value(json!({"any": [cheap, "exact_match"]})), Some(1.0));
        assert_eq!(value(json!({"not": cheap})), None);
    }

    #[test]
    fn the_outcome_is_known_before_an_error_comes() {
        let fails = json!({"numeric": {}});
        assert!(look(&json!({"all": ["exact_match", fails]}), "x", json!("x")).is_err());
        assert_eq!(look(&json!({"all": ["exact_match", fails]}), "y", json!("x")).expect("a score").values, [Some(0.0)]);
        assert_eq!(look(&json!({"any": ["exact_match", fails]}), "x", json!("x")).expect("a score").values, [Some(1.0)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(refused(json!({"all": []})).contains("list of scorers"));
        assert!(refused(json!({"all": ["exact_mach"]})).contains("did you mean \"exact_match\"?"));
        assert!(refused(json!({"all": ["latency"]})).contains("latency is in ms, not from 0 to 1; put it into `threshold`"));
        assert!(refused(json!({"threshold": {"scorer": "latency"}})).contains("give at_least, at_most or both"));
        assert!(refused(json!({"threshold": {"scorer": "latency", "at_most": 5, "metric": "x"}})).contains("has no metric \"x\""));
        assert!(refused(json!({"weighted": [{"scorer": "latency", "wight": 2}]})).contains("did you mean \"weight\"?"));
    }
}
